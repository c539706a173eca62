"""What one lent GPU can tell in nine minutes, each number beside what was predicted of it.

    python -m bench.gpu                    all parts; table and gpu.json
    python -m bench.gpu --parts head,step  some of them, in this order
    python -m bench.gpu --carry            make bench/gpu_carry.npz anew, on a CPU, in some minutes
    python -m bench.gpu --dry              on a GPU that is not there (bench/fake_gpu.py)
    python -m bench.gpu --cpu              on this CPU, small: checks the program, no speed

Needs torch with triton, numpy and this repository; `cache` and `book` some packages of tdbook too.
The parts run one after the other in one process, since what was compiled serves the next. Where one
fails, or takes longer than its limit, its rows so far stay, and where its process can no longer be
used, another goes on with the part after it. A part that begins with little time left is skipped.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In order of value; seconds, compiling included, that each may take at most.
LIMIT = {"machine": 45, "numbers": 90, "step": 190, "head": 60, "waits": 30, "deterministic": 50}
LIMIT |= {"scoring": 45, "cache": 60, "tiny": 45, "flash": 75, "book": 60}
START = 60  # seconds in which a process must have begun with its first part
LEAST = 8  # with fewer seconds left, no part begins

# What was predicted (shared/GPU.md, 3 and 4): row → low and high on an H200, on a B200. Computed
# from FLOP and bytes, ± 25 %. Where only a B200's is given there, an H200's is it by the ratio of
# the plan's step, 64 ms to 35 ms; rows with an H200's alone were measured on such a machine.
PREDICTED = {
    "product of bfloat16, random, TFLOP/s": ((769, 798), (1550, 1550)),
    "product of bfloat16, zeros, TFLOP/s": ((894, 894), None),
    "copy, TB/s": ((4.3, 4.3), (6.5, 6.5)),
    "waits of the host in a step": ((0, 1), (0, 1)),
    "head: products, ms": ((10.4, 10.4), (5.7, 5.7)),
    "head: element-wise, ms": ((5.6, 6.8), (3.7, 3.7)),
    "head: element-wise with the core before, ms": ((27, 38), (17, 24.5)),
    "50m uncompiled, tokens/s": ((230e3, 230e3), None),
    "50m, tokens/s": ((512e3, 512e3), (924e3, 924e3)),
    "50m, ms a micro-batch": ((64, 64), (35, 35)),
    "50m, flash, tokens/s": ((475e3, 475e3), None),
    "50m, share of the published peak": ((0.49, 0.49), (0.39, 0.39)),
    "50m, memory, GB": ((12, 14.7), (12, 14.7)),
    "80m, tokens/s": ((411e3, 411e3), (752e3, 752e3)),
    "120m, tokens/s": ((337e3, 337e3), (617e3, 617e3)),
    "120m, memory, GB": ((21, 25.1), (21, 25.1)),
    "adapter, tokens/s": ((530e3, 530e3), (967e3, 967e3)),
    "adapter, memory, GB": ((11, 14), (11, 14)),
    "02 in TF32, tokens/s": ((267e3, 267e3), (489e3, 489e3)),
    "02 in bfloat16, compiled, tokens/s": ((702e3, 702e3), (1285e3, 1285e3)),
    "tiny: validation loss, bfloat16 − float32, nats": ((-0.01, 0.01), (-0.01, 0.01)),
    "parts of 30 steps that differ after a stop": ((0, 0), (0, 0)),
}


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="gpu.json", help="file for the results (gpu.json)")
    parser.add_argument("--parts", default=",".join(LIMIT), help="some of: %(default)s")
    parser.add_argument("--minutes", type=float, default=9, help="of all parts together (9)")
    kinds = {"--dry": "on a GPU that is not there", "--cpu": "small, on this CPU"}
    for name, what in (kinds | {"--carry": "make the numbers that are carried"}).items():
        parser.add_argument(name, action="store_true", help=what)
    # for its own processes: the moment, by the machine's clock, when all must be over
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    given.parts = given.parts.split(",")
    if odd := [part for part in given.parts if part not in LIMIT]:
        parser.error(f"--parts has {odd[0]!r}: give some of {','.join(LIMIT)}")
    return given


class Report:
    """Rows as they come, in a file after each."""

    def __init__(self, path: Path):
        self.path, self.rows, self.parts, self.began = path, [], {}, time.monotonic()

    def add(self, part: str, row: dict) -> None:
        spans = PREDICTED.get(row["what"], (None, None))
        row |= {"part": part} | dict(zip(("h200", "b200"), spans, strict=True))
        self.rows.append(row)
        self.write()

    def end(self, part: str, seconds: float, fault: str = "") -> None:
        self.parts[part] = {"seconds": round(seconds, 1), "fault": fault}
        print(f"{self.seconds:5.0f} s  {part}: {fault or 'done'} ({seconds:.0f} s)", flush=True)
        self.write()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def write(self) -> None:
        content = {"seconds": self.seconds, "parts": self.parts, "rows": self.rows}
        beside = self.path.with_suffix(".begun")
        beside.write_text(json.dumps(content, indent=1), encoding="utf8")
        beside.replace(self.path)  # whole, whenever this program is stopped

    def table(self) -> str:
        """Without the rows that are details: those are in the file alone."""
        lines = ["| what | measured | of the predicted | H200, predicted | B200, predicted |"]
        lines.append("|---|---|---|---|---|")
        name = next((row["note"] for row in self.rows if row["what"] == "GPU"), "").lower()
        here = next((gpu for gpu in ("h200", "b200") if gpu in name), "")
        for row in self.rows:
            if not row["detail"]:
                value = " ".join(filter(None, (_number(row["value"]), row["note"])))
                cells = row["what"], value, _ratio(row["value"], row.get(here))
                spans = (_span(row[gpu]) for gpu in ("h200", "b200"))
                lines.append(f"| {' | '.join((*cells, *spans))} |")
        told = (f"{name}: {x['fault']}" for name, x in self.parts.items() if x["fault"])
        return "\n".join([*lines, "", *told, f"{self.seconds:.0f} s in all"])


def _ratio(x: float | None, span: tuple[float, float] | None) -> str:
    """How far a number is from the nearer end of what was predicted."""
    if x is None or span is None:
        return ""
    low, high = span
    nearest = min(max(x, low), high)
    return "within" if x == nearest else f"{x / nearest:.2f} ×" if nearest else "outside"


def _number(x: float | None) -> str:
    if x is None:
        return ""
    return f"{x:,.0f}" if abs(x) >= 1000 or x == round(x, 9) == int(x) else f"{x:.3g}"


def _span(span: tuple[float, float] | None) -> str:
    return "–".join(dict.fromkeys(map(_number, span))) if span else ""


class Child:
    """A process that runs parts, and its messages as they come."""

    def __init__(self, parts: list[str], given: argparse.Namespace, until: float):
        kind = [f"--{name}" for name in ("dry", "cpu") if getattr(given, name)]
        words = [sys.executable, "-m", "bench.gpu", *kind]
        words += ["--child", str(until), "--parts", ",".join(parts)]
        how = dict(cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.process, self.messages = subprocess.Popen(words, **how), queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put(None)

    def next(self, seconds: float) -> dict | None:
        """The next message, None where the process has ended. queue.Empty: none in that time."""
        return self.messages.get(timeout=max(0.1, seconds))

    def end(self) -> int:
        """With all that it started, such as processes that compile."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return self.process.wait()


def run(given: argparse.Namespace) -> Report:
    """All parts, in as many processes as that takes."""
    report, left = Report(Path(given.out)), list(given.parts)
    until = report.began + 60 * given.minutes
    while left and until - time.monotonic() >= LEAST:
        child = Child(left, given, until)
        try:
            follow(child, report, left, until)
        finally:
            child.end()
    for part in left:
        report.end(part, 0, "skipped, no time left")
    return report


def follow(child: Child, report: Report, left: list[str], until: float) -> None:
    """Until the process has ended, or a part must be; takes the parts that are over out of left."""
    began, limit, begun, tried = time.monotonic(), START, False, {*left}
    while left:
        try:
            message = child.next(min(began + limit, until) - time.monotonic())
        except queue.Empty:
            took = time.monotonic() - began
            what = "stopped" if begun else "its process did not begin"
            report.end(left.pop(0), took, f"{what}, {took:.0f} s were over")
            return
        now = time.monotonic()
        if message is None:
            if begun or not report.parts.keys() & tried:
                fault = f"its process ended with {child.process.wait()}"
                report.end(left.pop(0), now - began, fault)
            return  # else its last part left it unusable: another goes on
        if "begin" in message:
            if until - now < LEAST:
                return
            began, limit, begun = now, LIMIT[left[0]], True
        elif "row" in message:
            report.add(left[0], message["row"])
        else:
            report.end(left.pop(0), now - began, message["end"])
            began, limit, begun = now, START, False


def main(words: list[str]) -> None:
    given = options(words)
    if given.child:
        if given.dry:
            from bench import fake_gpu  # noqa: F401  before torch
        from bench import gpu_parts

        kind = "fake" if given.dry else "cpu" if given.cpu else "cuda"
        gpu_parts.run(given.parts, kind, LIMIT, given.child)
    elif given.carry:
        from bench import gpu_carry

        gpu_carry.make()
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that its processes end too
        print(run(given).table())


if __name__ == "__main__":
    main(sys.argv[1:])
