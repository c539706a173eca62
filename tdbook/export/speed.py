"""Seconds of a prompt, and of the tokens written after it, for several ways of writing in turns.

A way is a function of a number of tokens, which writes that many after its prompt. One token costs
the prompt; `tokens` more cost the decoding:  decode = T(1 + tokens) − T(1),  a pair timed together.
CPU time is the whole process's, its other threads (llama.cpp's) included: a busy machine moves it
little, and with one thread it is what an idle machine's clock says. Legend: R repeats.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_S = 0.1  # that is timed at once: a clock's own step and a neighbour's burst are small in it


@dataclass(frozen=True)
class Seconds:
    """Of one way, each repeat; the n-th repeats of all ways stood side by side."""

    tokens: int  # decoded, the one that the prompt gives left out
    prompt_cpu_R: np.ndarray
    decode_cpu_R: np.ndarray
    prompt_wall_R: np.ndarray
    decode_wall_R: np.ndarray

    @property
    def whole_cpu_R(self) -> np.ndarray:
        return self.prompt_cpu_R + self.decode_cpu_R

    @property
    def tokens_per_second(self) -> float:
        """Decoding alone, CPU time, the median."""
        return self.tokens / float(np.median(self.decode_cpu_R))


def measure(
    ways: dict[str, Callable[[int], object]], tokens: int = 64, repeats: int = 5
) -> dict[str, Seconds]:
    """Each way `repeats` times, all in turns, after a run of each that is not counted; a repeat of
    a quick way is the mean of so many writings as take LEAST_S. Threads are the caller's:
    torch.set_num_threads, and llama.cpp's own setting."""
    found, loops = {name: [] for name in ways}, {}
    for name, write in ways.items():
        write(2)
        began = time.perf_counter()
        write(1 + tokens)
        loops[name] = math.ceil(LEAST_S / max(time.perf_counter() - began, 1e-6))
    for _ in range(repeats):
        for name, write in ways.items():
            clocks = [_clocks()]
            for count in (1, 1 + tokens):
                for _ in range(loops[name]):
                    write(count)
                clocks.append(_clocks())
            prompt, both = np.diff(clocks, axis=0) / loops[name]
            found[name].append([prompt[0], both[0] - prompt[0], prompt[1], both[1] - prompt[1]])
    return {name: Seconds(tokens, *np.array(rows).T) for name, rows in found.items()}


def ratio(a_R: np.ndarray, b_R: np.ndarray) -> tuple[float, float, float]:
    """a over b, repeat by repeat: the median, the smallest, the largest."""
    each_R = a_R / b_R
    return float(np.median(each_R)), float(each_R.min()), float(each_R.max())


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()
