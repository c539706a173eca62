"""Telugu prose from a seeded grammar: sound rules → noun and verb forms → clauses → sentences → documents.

Words are data (telugu_words.yaml), rules are here. A topic has scripts, events in the order in which they happen;
a paragraph follows one script with one hero, so that what comes next can be guessed. About one sentence in 66 holds
a rare construction, each kind with its own regular form, and its position is reported.

Person codes: 1s I, 1p we, 2s you, 3m he, 3f she, 3n it, 3p they (people), 3q they (things).
"""

import re
from bisect import bisect
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random

import yaml

from tdlib.text import Document

WORDS = yaml.safe_load(Path(__file__).with_name("telugu_words.yaml").read_text(encoding="utf-8"))
VOWELS = dict(zip("అఆఇఈఉఊఋఎఏఐఒఓఔ", ["", *"ాిీుూృెేైొోౌ"], strict=True))  # letter → sign on a consonant
SIGNS = set(VOWELS.values()) - {""}
PERSONS = {"3m": ("డు", "డు"), "3f": ("", "ది"), "3n": ("", "ది"), "3p": ("రు", "రు"), "3q": ("యి", "వు")}
RARE_EVERY = (40, 92)  # sentences from one rare construction to the next: 1.5 % on average


@dataclass(frozen=True)
class Rare:
    kind: str
    document: int  # number of the document, from 0
    line: int      # number of the line in it, from 0
    text: str      # the sentence


# ---- sounds: a consonant letter carries an "a" unless a vowel sign follows it


def join(stem: str, ending: str) -> str:
    """A vowel sign at the start of an ending takes the place of the stem's last one: చేసి + ే → చేసే."""
    return (stem[:-1] if ending[:1] in SIGNS and stem[-1] in SIGNS else stem) + ending


def sandhi(first: str, second: str) -> str:
    """Short u or i gives way to a vowel: వారు + అందరు → వారందరు, ఏమి + అయింది → ఏమయింది."""
    if first[-1] not in "ుి" or second[0] not in VOWELS:
        return f"{first} {second}"
    return first[:-1] + VOWELS[second[0]] + second[1:]


def soften(first: str, second: str) -> str:
    """Classical గసడదవాదేశ: after a subject k c ṭ t p become g s ḍ d v, and the two words are one."""
    return first + second.translate(str.maketrans("కచటతప", "గసడదవ"))[0] + second[1:]


# ---- nouns


@dataclass(frozen=True)
class Noun:
    word: str
    oblique: str  # what postpositions and "of" attach to
    plural: str   # "" for a mass noun
    only: bool    # always plural
    kind: str     # its class in the word list


def read_noun(entry: str, kind: str = "") -> Noun:
    """An entry of the word list, its missing forms filled in by the ending."""
    only, mass = entry.endswith("+"), entry.endswith("*")
    word, oblique, plural = (*entry.rstrip("*+").replace("_", " ").split("/"), "", "")[:3]
    masculine = re.search("[ుా]డు$", word)
    if not plural and not mass and not only:
        swap = {"ం$": "ా", "ట్టు$": "ట్", "డ్డు$": "డ్", "ుడు$": "ు", "ాడు$": "ాళ్", "(?<!య)ి$": "ు"}
        plural = next((re.sub(end, new, word) for end, new in swap.items() if re.search(end, word)), word) + "లు"
    oblique = oblique or (word[:-1] + "ి" if masculine else word)
    return Noun(word, oblique, "" if plural == "-" else word if only else plural, only, kind)


NOUNS = {kind: [read_noun(entry, kind) for entry in entries.split()] for kind, entries in WORDS["nouns"].items()}
AFTER = {"f": " నుండి", "g": " గురించి", "m": " మీద", "k": " కోసం", "v": " దగ్గర", "x": "", "t": "తో", "l": "లో"}


@lru_cache(maxsize=100_000)
def decline(noun: Noun, case: str, plural: bool = False) -> str:
    """One case form: n subject, a object, d to, l in, t with, f from, g about, m on, k for, v near, x of.
    Endings follow the vowel before them: ని, కి after i, ను, కు elsewhere; -ం nouns take -ాన్ని, -ానికి."""
    if noun.word in WORDS["pronouns"]:
        object_, dative, stem, _ = WORDS["pronouns"][noun.word]
        return {"n": noun.word, "a": object_, "d": dative}.get(case) or stem + AFTER[case]
    plural = plural or noun.only
    stem = noun.plural[:-1] if plural else noun.oblique  # plural లు has the oblique ల
    if case == "n":
        return noun.plural if plural else noun.word
    if stem.endswith("ం") and case in "ad":
        return stem[:-1] + {"a": "ాన్ని", "d": "ానికి"}[case]
    if case in "ad":
        return stem + {"a": "నను"[1:] if stem[-1] not in "ిీ" else "ని", "d": "కి" if stem[-1] in "ిీ" else "కు"}[case]
    if case == "l" and stem in ("ఇంటి", "నీటి"):
        return stem[:-2] + "ట్లో"  # ఇంట్లో
    return stem + AFTER[case]


# ---- verbs


def read_verbs() -> dict[str, list[str]]:
    """Principal parts by dictionary form: infinitive, converb, past, non-past, imperative, past participle, "it" past."""
    table = {}
    for name, words in WORDS["verbs"].items():
        rule = WORDS["verb_classes"][name]
        for word in words.split():
            stem = word.removesuffix(rule["cite"])
            parts = [join(stem, part) for part in rule["parts"]]
            table[word] = parts if len(parts) == 7 else [*parts, parts[1] + "న", parts[1] + "ంది"]
    return table


VERBS = read_verbs()
ENDINGS = {"1s": "ాను", "1p": "ాము", "2s": "ావు", "2p": "ారు", "3m": "ాడు", "3p": "ారు", "3q": "ాయి"}
SHORT = {"1s": "ను", "1p": "ము", "2s": "వు", "2p": "రు", "3m": "డు", "3p": "రు", "3q": "వు", "3f": "దు", "3n": "దు"}
HABIT = {"3m": "వాడు", "3f": "ది", "3n": "ది", "3p": "వారు", "3q": "వి", "1p": "వాళ్లం"}


@lru_cache(maxsize=100_000)
def conjugate(verb: str, form: str, person: str = "3n") -> str:
    """One verb form; the forms without a person ignore it. "She" and "it" share their forms (వచ్చింది)."""
    inf, converb, past, soon, command, participle, it = VERBS[verb]
    glide = inf + "వ" if inf[-1] in "ోాే" else inf  # రా + ాలి → రావాలి
    loose = re.sub("(?<![ంు])డుత$|(?<=కు)డుత$", "డత", soon)  # పెడుతుంది but పెడతాడు
    it_or_she = person in ("3n", "3f")
    match form:
        case "past":
            return it if it_or_she else join(past, ENDINGS[person])
        case "nonpast":
            return soon + "ుంది" if it_or_she else loose + ENDINGS[person]
        case "progressive":
            return soon + "ోంది" if it_or_she else soon + "ున్న" + ENDINGS[person]
        case "habitual":  # used to
            return join(converb, "ే") + HABIT[person]
        case "never":     # negative of habit and future
            return inf + SHORT[person]
        case "can" | "cannot":
            return inf + {"can": "గల", "cannot": "లే"}[form] + SHORT[person]
        case "lets":      # స్త → ద్దాం, ంట → ందాం, త → దాం
            return re.sub("స్త$", "ద్త", loose).replace("ంట", "ంత")[:-1] + "దాం"
        case "if":
            if soon.endswith(("స్త", "ంట", "ోత", "ళ్త")):
                return soon + "ే"
            return re.sub("ుత$", "", soon) + "ితే" if soon.endswith(("డుత", "బుత")) else converb + "తే"
        case "classical": # చేసెను, చేసిరి
            return converb + "రి" if person == "3p" else join(converb, "ె") + "ను"
    fixed = {"converb": converb, "while": soon + "ూ", "on": inf + "గానే", "after": past + "ాక", "must": glide + "ాలి",
             "may": inf + "వచ్చు", "doing": glide + "డం", "to": glide + "డానికి", "did_not": inf + "లేదు",
             "is_not": glide + "డం లేదు", "unless": inf + "కపోతే", "although": participle + "ా", "who_did": participle,
             "who_does": join(converb, "ే"), "who_not": inf + "ని", "please": {"రా": "ర"}.get(inf, inf) + "ండి",
             "do": command, "been": inf + "బడ"}
    return fixed[form]
