"""A chat model's turns: its template applied to a conversation, and the ids of what that makes.

A template is a program (Jinja) by whoever made the model: it runs in jinja2's sandbox, and in a
process of its own, with little time and memory, that opens no file. What was typed stays text where
it spells a special token: it is marked before, and encoded by itself after, as in transformers with
sanitize_control_tokens.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2 import debug  # noqa: F401  what fails would import it
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, LONGEST = 10, 2**30, 2**20  # of a template; bytes; characters that it makes
MARKED = re.compile("\ufdd0([^\ufdd0\ufdd1]*)\ufdd1|[\ufdd0\ufdd1]")  # by no characters of any text
TRIAL = [("user", "ఒక ఊరిలో ఎవరు?"), ("assistant", "ఒక రాజు."), ("user", "2 కొడుకులా? ")]


@dataclass(frozen=True)
class Turns:
    template: str
    named: dict[str, str]  # what it may call bos_token, eos_token …
    special: Sequence[str]  # tokens that typed text does not become
    tokenize: Callable[[str, bool], list[int]]  # text, whether it may spell special tokens → ids

    def text(self, talk: list[tuple[str, str]]) -> str:
        """A conversation (role, text), ready for an answer. ValueError: the template fails."""
        spelled = "|".join(map(re.escape, sorted(self.special, key=len, reverse=True)))
        marked = [(role, re.sub(f"({spelled})", "\ufdd0\\1\ufdd1", text)) for role, text in talk]
        messages = [{"role": role, "content": text} for role, text in marked]
        values = self.named | {"messages": messages, "add_generation_prompt": True}
        how = dict(input=json.dumps([self.template, values, SECONDS]), text=True)
        done = subprocess.run([sys.executable, "-I", __file__], capture_output=True, **how)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"more than {SECONDS} s"]
            raise ValueError(f"the chat template fails ({reason[-1]:.200}): correct it")
        return json.loads(done.stdout)

    def ids(self, talk: list[tuple[str, str]]) -> list[int]:
        parts = enumerate(MARKED.split(self.text(talk)))  # text, what was marked or None, text …
        return [i for n, part in parts if part for i in self.tokenize(part, not n % 2)]


def applied(template: str, values: dict, seconds: int) -> str:
    """As transformers applies it; {% generation %}, which marks answers for training, is open."""
    blocks = dict(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    engine = ImmutableSandboxedEnvironment(**blocks)
    engine.filters["tojson"] = lambda x, **how: json.dumps(x, **{"ensure_ascii": False} | how)
    engine.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    engine.globals["raise_exception"] = sys.exit  # which tells why
    for limit, most in (("AS", MEMORY), ("CPU", seconds), ("NPROC", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))
    template = re.sub(r"({%[-+]?\s*)generation\b", r"\1if true", template)
    program = engine.from_string(re.sub(r"({%[-+]?\s*)endgeneration\b", r"\1endif", template))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # to read a program Python opens its own
    text = program.render(values)
    return text if len(text) <= LONGEST else sys.exit(f"it makes {len(text):,} characters")


if __name__ == "__main__":
    print(json.dumps(applied(*json.load(sys.stdin))))
