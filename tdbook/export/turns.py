"""A chat model's turns: its template applied to a conversation, and the ids of what that makes.

A template is a program (Jinja) by whoever made the model: it runs in jinja2's sandbox, and that in
a process of its own, with little time and memory. Text that spells a special token stays text: it
is marked before the template, and encoded by itself after.
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import strftime

from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, LONGEST = 10, 2**30, 2**20  # of a template; bytes; characters that it makes
MARKED = re.compile("\ufdd0([^\ufdd0\ufdd1]*)\ufdd1|[\ufdd0\ufdd1]")  # by no characters of any text
TRIAL = [("user", "ఒక ఊరిలో ఎవరు?"), ("assistant", "ఒక రాజు."), ("user", "2 కొడుకులా? ")]


@dataclass(frozen=True)
class Turns:
    template: str
    named: dict[str, str]  # what it may call bos_token, eos_token …
    tokenize: Callable[[str, bool], list[int]]  # text, whether it may spell special tokens → ids

    def text(self, talk: list[tuple[str, str]]) -> str:
        """A conversation (role, text), ready for an answer. ValueError: the template fails."""
        messages = [{"role": role, "content": self._marked(text)} for role, text in talk]
        values = self.named | {"messages": messages, "add_generation_prompt": True}
        how = dict(input=json.dumps([self.template, values, SECONDS]), text=True)
        done = subprocess.run([sys.executable, "-I", __file__], capture_output=True, **how)
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"more than {SECONDS} s"]
            raise ValueError(f"the model's chat template fails ({reason[-1]:.200}): correct it")
        return json.loads(done.stdout)

    def ids(self, talk: list[tuple[str, str]]) -> list[int]:
        parts = enumerate(MARKED.split(self.text(talk)))  # text, what was marked or None, text …
        return [i for n, part in parts if part for i in self.tokenize(part, not n % 2)]

    def _marked(self, text: str) -> str:
        spells = self.tokenize(text, True) != self.tokenize(text, False)
        return f"\ufdd0{text}\ufdd1" if spells else text


def applied(template: str, values: dict, seconds: int) -> str:
    """As transformers applies it; its {% generation %} marks answers in training and is a block."""
    blocks = dict(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    engine = ImmutableSandboxedEnvironment(**blocks)
    engine.filters["tojson"] = lambda x, **how: json.dumps(x, **{"ensure_ascii": False} | how)
    engine.globals |= {"strftime_now": strftime, "raise_exception": sys.exit}
    for limit, most in (("AS", MEMORY), ("CPU", seconds), ("FSIZE", 0), ("NPROC", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))
    template = re.sub(r"({%[-+]?\s*(?:end)?)generation\b", r"\1with", template)
    text = engine.from_string(template).render(values)
    return text if len(text) <= LONGEST else sys.exit(f"it makes {len(text):,} characters")


if __name__ == "__main__":
    print(json.dumps(applied(*json.load(sys.stdin))))
