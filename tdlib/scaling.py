"""Published scaling laws on paper, beside the plan's estimates at 300M → 50M. Nothing is trained.

From scratch: L̃(N, D) = E + (A/N^α + B/D^β)^γ. Distilled from a teacher of loss L_T:
L_S = L_T + L_T^−c₀ · (1 + (L_T / (L̃_S d₁))^(1/f₁))^(−c₁ f₁) · (A′/N^α′ + B′/D^β′)^γ′.
N weights, D tokens trained on, loss in nats per token. Both are from Busbridge et al. 2025,
"Distillation Scaling Laws" (arXiv 2502.08606), equations 1 and 8, fitted on English (C4) with
another tokenizer, N without embedding, students of 143M and more, little text repeated, temperature
1 and no true token in the loss. So only what may be reduced is taken over, stretched until the law
passes through our teacher, and everything that is a guess is varied (`assumptions`). Smaller
students than the fit's, another language and another recipe are covered by no band.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from tdlib.shapes import SHAPES, VOCABULARIES, LlamaConfig, of_plan, span

# E, A, α, B, β, γ. Checked: Busbridge in a stored text of the paper (v1, table 6); the others only
# in stored code that quotes them (Hoffmann et al. 2022, arXiv 2203.15556, approach 3; Besiroglu et
# al. 2024, arXiv 2404.10102, Hoffmann's points fitted again).
LAWS = {
    "busbridge": (1.220, 3355, 0.408, 18186, 0.431, 0.452),
    "hoffmann": (1.69, 406.4, 0.34, 410.7, 0.28, 1.0),
    "besiroglu": (1.8172, 482.01, 0.3478, 2085.43, 0.3658, 1.0),
}
# A′, α′, B′, β′, γ′, then c₀, c₁, f₁, d₁: Busbridge table 6 again (checked)
TERM, BREAK = (2243, 0.321, 24181, 0.637, 0.764), (2.549, 522.6, 0.090, 1.315)
WORTH = 15.39  # R*_D, Muennighoff et al. 2023 (arXiv 2305.16264); checked in stored code quoting it
UNIQUE, EPOCHS = 3.7e9, 3  # tokens of the plan's text, and how often they are read (FACTS 1)
STUDENTS = ("50m-scratch", "50m", "80m", "120m")


def supervised(n: float, d: float, law: str = "busbridge") -> float:
    """Loss from scratch, of n weights after d tokens."""
    e, a, alpha, b, beta, gamma = LAWS[law]
    return e + (a / n**alpha + b / d**beta) ** gamma


def distilled(n: float, d: float, teacher_loss: float) -> float:
    """Loss of a student; always above its teacher's, and not always lower with a better teacher."""
    a, alpha, b, beta, gamma = TERM
    c0, c1, f1, d1 = BREAK
    near = (1 + (teacher_loss / (supervised(n, d) * d1)) ** (1 / f1)) ** (-c1 * f1)
    return teacher_loss + teacher_loss**-c0 * near * (a / n**alpha + b / d**beta) ** gamma


def effective(unique: float, epochs: float) -> float:
    """Fresh tokens worth `unique` read `epochs` times: U + U R* (1 − e^(−(epochs − 1)/R*))."""
    return unique * (1 + WORTH * (1 - math.exp(-(epochs - 1) / WORTH)))


@dataclass(frozen=True)
class Assumed:
    """What nobody knows; the defaults make the middle of a band."""

    law: str = "busbridge"
    embedding: bool = False  # counted among the weights; the paper does not (its table 1)
    teacher: str = "teacher-300m"  # 20 layers, which its owner's code makes; the plan says 16
    tokens: float = effective(UNIQUE, EPOCHS)
    floor: float = LAWS["busbridge"][0]  # E of our text, which no model can beat, nats
    teacher_loss: float = of_plan("teacher", "loss")[0]
    misfit: float = 0.0  # share of the loss by which the law misses; "≲ 1 %" (section 4.4)


def assumptions(name: str) -> Iterator[Assumed]:
    """Every combination. Only Busbridge tells of a teacher, so that distilled students have one
    law; a repeated token is worth nothing, a little less than a fresh one, or as much."""
    middle = Assumed()
    yield from (Assumed(*each) for each in product(
        LAWS if name.endswith("scratch") else [middle.law],
        (False, True), ("teacher-300m", "teacher-plan"),
        (UNIQUE, middle.tokens, UNIQUE * EPOCHS),
        [middle.floor * x for x in (0.5, 1, 1.5)],
        [middle.teacher_loss + x for x in (-0.1, 0, 0.1)],
        (-0.01, 0.0, 0.01),
    ))  # fmt: skip


def loss(name: str, assumed: Assumed) -> float:
    """Predicted loss of one of STUDENTS; of the teacher's own shape it is `teacher_loss`."""
    law = assumed.law
    teacher = supervised(_weights(assumed.teacher, assumed), assumed.tokens, law)
    stretch = (assumed.teacher_loss - assumed.floor) / (teacher - LAWS[law][0])
    n = _weights(f"student-{name.removesuffix('-scratch')}", assumed)
    if name.endswith("scratch"):
        found = supervised(n, assumed.tokens, law)
    else:
        found = distilled(n, assumed.tokens, teacher)
    return (assumed.floor + stretch * (found - LAWS[law][0])) * (1 + assumed.misfit)


def _weights(shape: str, assumed: Assumed) -> int:
    config = LlamaConfig(vocab_size=VOCABULARIES[0], **SHAPES[shape])
    return config.parameters - (0 if assumed.embedding else config.embedding_parameters)


def rows(measured: Mapping[str, float]) -> list[dict]:
    """One row a student: (low, middle, high) of loss and of the gap to the teacher by the law,
    (low, high) by the plan; and the measured gap, nan where it or "teacher" was not run."""
    found, plan_teacher = [], of_plan("teacher", "loss")[0]
    for name in STUDENTS:
        losses, gaps = zip(*((y := loss(name, a), y - a.teacher_loss) for a in assumptions(name)),
                           strict=True)  # fmt: skip
        middle, plan = loss(name, Assumed()), of_plan(name, "loss")
        found.append({
            "name": name, "loss": (min(losses), middle, max(losses)), "plan": plan,
            "gap": (min(gaps), middle - plan_teacher, max(gaps)),
            "plan_gap": tuple(x - plan_teacher for x in plan),
            "measured": measured.get(name, math.nan) - measured.get("teacher", math.nan),
        })  # fmt: skip
    return found


def in_words(found: list[dict]) -> str:
    """The 50M by Busbridge alone and by the plan, and what distilling it saves."""
    both = [[loss(name, a) for a in assumptions("50m")] for name in STUDENTS[:2]]
    saved = [x - y for x, y in zip(*both, strict=True)]
    ends = [
        f"{row['name']} ends at {span(min(each), max(each))} nats (the plan: {span(*row['plan'])})"
        for row, each in zip(found, both, strict=False)
    ]
    planned = (found[0]["plan"][0] - found[1]["plan"][1], found[0]["plan"][1] - found[1]["plan"][0])
    here = found[0]["measured"] - found[1]["measured"]
    return (
        f"On paper, by the distillation paper's own fits, {' and '.join(ends)}. Distilling saves "
        f"{span(min(saved), max(saved))} nats by them, {span(*planned, 1)} by the plan's table, "
        + (f"{here:+.3f} here, at another size." if math.isfinite(here) else "not run here.")
    )
