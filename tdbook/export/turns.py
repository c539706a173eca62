"""A chat model's turns: its template applied to a conversation, and the ids of what that makes.

A template is a program (Jinja) of whoever made the model. It runs in jinja2's sandbox, as in
transformers, and in a process of its own with little time and memory, where no file can be opened.
What was typed stays text, also where it spells a special token: it is marked before the template
is applied, and what is marked is encoded by itself. transformers does so where asked
(sanitize_control_tokens).
"""

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from jinja2 import TemplateError, debug  # noqa: F401  what fails imports debug
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY, LONGEST = 10, 2**30, 2**20  # of a template; bytes; characters that it makes
MARKS = "\ufdd0\ufdd1"  # no characters: no text has them
MARKED = re.compile(f"{MARKS[0]}([^{MARKS}]*){MARKS[1]}|[{MARKS}]")
TRIAL = [("user", "ఒక ఊరిలో ఎవరు?"), ("assistant", "ఒక రాజు."), ("user", "2 కొడుకులా? ")]


@dataclass(frozen=True)
class Turns:
    template: str
    named: dict[str, str]  # what it may call bos_token, eos_token …
    special: tuple[str, ...]  # tokens that typed text does not become
    encode: Callable[[str], list[int]]  # text → ids
    parse: Callable[[str], list[int]]  # the same, and the special tokens that it spells

    def text(self, talk: list[tuple[str, str]]) -> str:
        """A conversation (role, text), ready for an answer. ValueError: the template fails."""
        longest_first = map(re.escape, sorted(self.special, key=len, reverse=True))
        spelled, messages = re.compile(f"({'|'.join(longest_first) or '(?!)'})"), []
        for role, said in talk:
            marked = spelled.sub(rf"{MARKS[0]}\1{MARKS[1]}", re.sub(f"[{MARKS}]", "", said))
            messages.append({"role": role, "content": marked})
        values = self.named | {"messages": messages, "add_generation_prompt": True}
        how = dict(input=json.dumps([self.template, values]), text=True, capture_output=True)
        try:
            done = subprocess.run([sys.executable, "-I", __file__], timeout=SECONDS, **how)
        except subprocess.TimeoutExpired:
            raise ValueError(f"the chat template takes over {SECONDS} s: correct it") from None
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"signal {-done.returncode}"]
            raise ValueError(f"the chat template fails ({reason[-1]:.200}): correct it")
        return json.loads(done.stdout)

    def ids(self, talk: list[tuple[str, str]]) -> list[int]:
        parts = MARKED.split(self.text(talk))  # text, marked, text …; None is a mark left alone
        ways = ((self.encode if i % 2 else self.parse, part) for i, part in enumerate(parts))
        return [i for encode, part in ways if part for i in encode(part)]


def _refuse(why: str) -> None:
    raise TemplateError(why)


def _applied(template: str, values: dict) -> str:
    """As transformers applies it; {% generation %}, which marks answers for training, is open."""
    blocks = dict(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    engine = ImmutableSandboxedEnvironment(**blocks)
    engine.filters["tojson"] = lambda x, **how: json.dumps(x, **{"ensure_ascii": False} | how)
    engine.globals["raise_exception"] = _refuse
    engine.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    for limit, most in (("AS", MEMORY), ("CPU", SECONDS), ("NPROC", 0)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (most, most))
    template = re.sub(r"({%[-+]?\s*)generation\b", r"\1if true", template)
    program = engine.from_string(re.sub(r"({%[-+]?\s*)endgeneration\b", r"\1endif", template))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # to read a program Python opens its own
    text = program.render(values)
    return text if len(text) <= LONGEST else _refuse(f"it makes {len(text):,} characters")


if __name__ == "__main__":
    print(json.dumps(_applied(*json.load(sys.stdin))))
