"""Minimal pairs of Telugu sentences, made for tdbook.analysis.probes; and its numbers of a folder.

    python -m bench.probes pairs                      writes tdbook/analysis/pairs.tsv
    python -m bench.probes outputs/small [MODEL …]    a table, the first model (teacher) leading

Pairs come from the writer's paradigms (corpus.grammar) by a seed, of each kind as many:
person    నేను … వెళ్లాను, not వెళ్లావు: the verb of another person, of the same number
gender    ఆమె … వెళ్లింది, not వెళ్లాడు: the verb of the other gender
plural    పిల్లల కోసం, not పిల్లలు కోసం: the nominative before a postposition or its suffix
case      బడికి వెళ్లాడు, not బడిని వెళ్లాడు: accusative for dative, or the other way round
harmony   తమ్ముడికి, not తమ్ముడికు; తమ్ముడిని, not తమ్ముడిను
What is wrong has no other right reading. An adverb follows the subject: ఆమె పొలానికి వెళ్లాడు is "he
went to her field". The wrong verb is not that which honours the subject (-ఆరు). Of plural and of
harmony the wrong form is none of the noun's paradigm; of case it is another one, and the frame's
verb governs one alone (probes.yaml). Harmony goes one way, since good prose has రైతుకి and ఆమెని
beside రైతుకు and ఆమెను: a model that writes కి and ని everywhere gets all of it right.
"""

import re
import sys
from pathlib import Path
from random import Random

import yaml

from tdbook.analysis import probes
from tdbook.analysis.probes import KINDS, PAIRS, Item
from tdbook.corpus import grammar, token_files
from tdbook.corpus.grammar import NOUNS, conjugate, decline
from tdbook.report import tables
from tdlib import files

DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf8"))
SUBJECTS, TIMES, WRONG, FRAMES = (DATA[name] for name in ("subjects", "times", "wrong", "frames"))
HEAD = "# kind, right, wrong; made by `python -m bench.probes pairs`: edit that, not this"


def pairs(count: int = 1000, seed: int = 1) -> list[Item]:
    """So many pairs, no two alike, the kinds in turn."""
    rng, found = Random(seed), {}
    while len(found) < count:
        kind = KINDS[len(found) % len(KINDS)]
        if texts := _pair(rng, kind):
            found.setdefault(texts, Item(kind, len(found), texts))
    return [*found.values()]


def _pair(rng: Random, kind: str) -> tuple[str, str] | None:
    """A right sentence and a wrong one; None where the words drawn make none."""
    wrong = WRONG.get(kind, WRONG["person"])
    person, (form, times) = rng.choice([*wrong]), rng.choice([*TIMES.items()])
    subject, time = (rng.choice(words.split()) for words in (SUBJECTS[person], times))
    frame = rng.choice(FRAMES.get(kind) or FRAMES["case"] + FRAMES["plural"])
    slot, *rest, verb = grammar.expand(rng, frame).split()
    name, many, case = grammar.NOUN.fullmatch(slot).groups()
    noun, person_2 = rng.choice(NOUNS[name]), rng.choice(wrong[person].split())
    one, own = decline(noun, case, many), conjugate(verb, form, person)
    others = {
        "plural": noun.plural + one.removeprefix(noun.plural[:-1]),
        "case": decline(noun, "d" if case == "a" else "a", many),
        "harmony": re.sub("(?<=[ిీ])([కన])ి$", r"\1ు", one),
    }
    two = (others[kind], own) if kind in others else (one, conjugate(verb, form, person_2))
    forms = {decline(noun, c, m) for c in "nadtlfgkmvx" for m in ("", "+")}
    in_use = kind in ("plural", "harmony") and two[0] in forms
    doubtful = noun.word in subject or noun.word.endswith("ెం")  # పాలెం: పాలానికి or పాలేనికి
    if two == (one, own) or in_use or doubtful:
        return None
    return tuple(" ".join([subject, time, n, *rest, v]) + "." for n, v in ((one, own), two))


def content() -> str:
    """Of pairs.tsv: kind, the right sentence, the wrong one."""
    rows = ("\t".join([item.kind, *item.texts]) for item in pairs())
    return "\n".join([HEAD, *rows, ""])


def table(folder: Path, names: list[str]) -> str:
    """As 04 has it, the first model as the base; and of how many pairs and last words."""
    tokens = token_files.open_tokens(folder / "tokens")
    found = probes.measure(folder / "models", names, tokens, names[0], "cpu")
    return f"{tables.written('probes', found.pop('rows')).to_markdown()}\n\n{found}"


if __name__ == "__main__":
    place, *models = sys.argv[1:]
    if place == "pairs":
        files.write_whole(PAIRS, content())
    else:
        models = models or sorted(x.name for x in Path(place, "models").iterdir())
        print(table(Path(place), models))
