"""Words and sentences of written Telugu: declension, conjugation, sandhi."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import NamedTuple

import yaml


def read(node: object) -> object:
    """The word list: a string under a key is a list of words, a list there stays as it is."""
    if isinstance(node, dict):
        return {key: read(value) for key, value in node.items()}
    if isinstance(node, str):
        return [w if w.isascii() else w.replace("_", " ") for w in node.split()]
    return node


WORDS = read(yaml.safe_load(Path(__file__).with_name("telugu_words.yaml").read_text("utf-8")))
# letter of a vowel → its sign on a consonant; a consonant without a sign carries "a"
VOWELS = dict(zip("అఆఇఈఉఊఋఎఏఐఒఓఔ", ["", *"ాిీుూృెేైొోౌ"], strict=True))
SIGNS, SOFT = set(VOWELS.values()) - {""}, str.maketrans("కచటతప", "గసడదవ")


def join(stem: str, ending: str) -> str:
    """A vowel sign at the start of an ending takes the place of the stem's last one: చేసి, ే → చేసే."""
    return (stem[:-1] if ending[:1] in SIGNS and stem[-1] in SIGNS else stem) + ending


def sandhi(match: re.Match) -> str:
    """first+second: a vowel, or nothing, gives way to a vowel: వారు+అందరు, మాయ్+అమ్మ → మాయమ్మ."""
    first, second = match.groups()
    stem = re.sub("ం$", "మ", first).rstrip("".join(SIGNS) + "్")
    return stem + VOWELS[second[0]] + second[1:] if second[0] in VOWELS else join(first, second)


def polish(text: str) -> str:
    """Sandhi of first+second; in classical first~second k c ṭ t p become g s ḍ d v; then blanks."""
    text = re.sub(r"([^\s“‘]+)\+(\S+)", sandhi, text)
    text = re.sub(r"(?<=[^\s“‘])~(\S)", lambda match: match[1].translate(SOFT), text)
    text = re.sub(r" +(?=[,.;?!”])", "", " ".join(text.split()))
    return re.sub("[ుి] ఏ(?=ళ్)", "ే", text)


class Noun(NamedTuple):
    word: str
    oblique: str  # what endings and postpositions attach to
    plural: str  # "" for a mass noun
    only: bool  # always plural


def rewrite(forms: dict[str, str], rules: list[list[str]]) -> str:
    """The first rule that fits: a form, a pattern in it, what takes its place."""
    form, pattern, new = next(rule for rule in rules if re.search(rule[1], forms[rule[0]]))
    return re.sub(pattern, new, forms[form], count=1)


@lru_cache(maxsize=10_000)
def read_noun(entry: str) -> Noun:
    """An entry of the word list, its missing forms filled in by its ending: పుస్తకం, పుస్తకాలు."""
    only, mass = entry.endswith("+"), entry.endswith("*")
    word, oblique, plural = (*entry.rstrip("*+").split("/"), "", "")[:3]
    if only:
        plural = word
    elif not plural and not mass:
        plural = rewrite({"word": word}, WORDS["plural"])
    return Noun(word, oblique or rewrite({"word": word}, WORDS["oblique"]), plural.strip("-"), only)


NOUNS = {kind: [read_noun(entry) for entry in words] for kind, words in WORDS["nouns"].items()}


@lru_cache(maxsize=100_000)
def decline(noun: Noun, case: str, many: str = "") -> str:
    """One case: n subject, a object, d to, l in, t with, f from, g about, k for, v near, x of."""
    after = WORDS["after"].get(case, [""])[0]
    if noun.word in WORDS["pronouns"]:
        whom, to, stem, _ = WORDS["pronouns"][noun.word]
        return {"n": noun.word, "a": whom, "d": to}.get(case) or stem + after
    plural = noun.only or (many == "+" and bool(noun.plural))
    if case == "n":
        return noun.plural if plural else noun.word
    stem = noun.plural[:-1] if plural else noun.oblique  # plural -లు has the oblique -ల
    if case in "ad":
        ends = "ాన్ని ానికి" if stem[-1] == "ం" else "ని కి" if stem[-1] in "ిీ" else "ను కు"
        return join(stem.removesuffix("ం"), ends.split()["ad".index(case)])
    return re.sub("^(ఇం|ఏ)టిలో$", r"\1ట్లో", stem + after)


def read_verb(verb: str, kind: str) -> dict[str, object]:
    """The principal parts of a verb, by the rule of its class, what follows from them; traits."""
    names = ["infinitive", "converb", "past", "nonpast", "imperative", "participle", "it"]
    rule = WORDS["verb_classes"][kind]
    forms = [join(verb.removesuffix(rule["cite"][0]), part) for part in rule["parts"]]
    parts = {"cite": verb} | dict(zip(names, forms, strict=False))
    for name, rules in WORDS["verb_parts"].items():
        parts.setdefault(name, rewrite(parts, rules))
    return parts | {"traits": {t if verb in vs else f"-{t}" for t, vs in WORDS["traits"].items()}}


VERBS = {verb: read_verb(verb, kind) for kind, verbs in WORDS["verbs"].items() for verb in verbs}


@lru_cache(maxsize=100_000)
def conjugate(verb: str, form: str, person: str = "3n") -> str:
    """One form of the word list's table; "she" and "it" mostly share theirs (వచ్చింది)."""
    forms, code = WORDS["forms"], {"3f": "3n", "1f": "1s"}.get(person, person)
    part, ending = forms.get(f"{form}_{code}") or forms[form]
    ending = (ending.get(person) or ending[code]) if isinstance(ending, dict) else ending
    return join(VERBS[verb][part], "".join(ending))


CHOICE = re.compile(r"\(([^(){}]*)\)|\{([^(){}]*)\}")
NOUN = re.compile(r"([^\s.]+?)([+*]?)\.([a-z])")  # class, several or a list of them, case


def zipf(rng: Random, words: Sequence) -> object:
    """The word at rank r with weight near 1 / (r + 1.5), r from 0."""
    return words[int(1.5 * (len(words) / 1.5 + 1) ** rng.random() - 1.5)]


def expand(rng: Random, text: str) -> str:
    """(a|b) is one of them or nothing, {a|b} one of them, from the inside out."""
    while match := CHOICE.search(text):
        options = (match[1] or match[2] or "").split("|")
        word = "" if match[2] is None and rng.random() < 0.5 else rng.choice(options)
        text = text[: match.start()] + word + text[match.end() :]
    return text


def number(rng: Random, how: str, low: int, high: int) -> str:
    """d as drawn; n round, and below a hundred often in words; heads of people: ముగ్గురు."""
    n = rng.randint(low, high)
    if how == "d" or (how == "heads" and n < 8):
        return str(n) if how == "d" else WORDS["heads"][n - 2]
    step = 5 * 10 ** max(0, len(str(high)) - 2)
    n = n if n < 20 else max(low, n // step * step)
    words = WORDS["numbers"][n - 1] if n < 100 and rng.random() < 0.6 else f"{n:,}"
    return words + " మంది" * (how == "heads")
