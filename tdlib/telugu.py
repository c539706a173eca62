"""Telugu prose from a seeded grammar: sounds, word forms, clauses, sentences, documents.

Words, endings and sentence patterns are data (telugu_words.yaml), the rules are here. A topic has
scripts, events in the order in which they happen; a paragraph follows one script with one hero and
one tense, so that what comes next can be guessed. About one sentence in 66 holds a rare
construction, each kind with its own regular form, and its position is reported.

Person codes: 1s I, 1p we, 2s you, 2p you (all), 3m he, 3f she, 3n it, 3p they (people), 3q things.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random

import yaml

from tdlib.text import Document


def load() -> dict:
    """The word list. A string under a key is a list of words; a list there stays as it is."""

    def split(node: object) -> object:
        if isinstance(node, dict):
            return {key: split(value) for key, value in node.items()}
        if isinstance(node, str):
            return [w if w.isascii() else w.replace("_", " ") for w in node.split()]
        return node

    path = Path(__file__).with_name("telugu_words.yaml")
    return split(yaml.safe_load(path.read_text(encoding="utf-8")))


WORDS = load()
# letter of a vowel → its sign on a consonant; a consonant without a sign carries "a"
VOWELS = dict(zip("అఆఇఈఉఊఋఎఏఐఒఓఔ", ["", *"ాిీుూృెేైొోౌ"], strict=True))
SIGNS = set(VOWELS.values()) - {""}
RARE_EVERY = (40, 92)  # sentences from one rare construction to the next: 1.5 % on average


@dataclass(frozen=True)
class Rare:
    kind: str
    document: int  # number of the document, from 0
    line: int  # number of the line in it, from 0
    text: str  # the sentence


# Sounds


def join(stem: str, ending: str) -> str:
    """A vowel sign at the start of an ending takes the place of the stem's last one: చేసి, ే → చేసే."""
    return (stem[:-1] if ending[:1] in SIGNS and stem[-1] in SIGNS else stem) + ending


def sandhi(match: re.Match) -> str:
    """first+second: short u or i gives way to a vowel, వారు+అందరు → వారందరు; a bare consonant
    takes it, మాయ్+అమ్మ → మాయమ్మ."""
    first, second = match.groups()
    return (
        join(first[:-1], VOWELS[second[0]] + second[1:])
        if second[0] in VOWELS
        else join(first, second)
    )


def soften(match: re.Match) -> str:
    """first~second, classical గసడదవాదేశ: after a subject k c ṭ t p become g s ḍ d v, as one word."""
    first, second = match.groups()
    return first + second[0].translate(str.maketrans("కచటతప", "గసడదవ")) + second[1:]


# Nouns


@dataclass(frozen=True)
class Noun:
    word: str
    oblique: str  # what endings and postpositions attach to
    plural: str  # "" for a mass noun
    only: bool  # always plural


PLURAL = {"ె?ం$": "ా", "ట్టు$": "ట్", "డ్డు$": "డ్", "ుడు$": "ు", "ాడు$": "ాళ్", "(?<!య)ి$": "ు"}


def read_noun(entry: str) -> Noun:
    """An entry of the word list, its missing forms filled in by its ending: పుస్తకం, పుస్తకాలు."""
    only, mass = entry.endswith("+"), entry.endswith("*")
    word, oblique, plural = (*entry.rstrip("*+").split("/"), "", "")[:3]
    if not oblique:
        oblique = word[:-1] + "ి" if re.search("[ుా]డు$", word) else word  # స్నేహితుడు, of him -డి
    if only:
        plural = word
    elif not plural and not mass:
        end = next((end for end in PLURAL if re.search(end, word)), "$")
        plural = re.sub(end, PLURAL.get(end, ""), word) + "లు"
    return Noun(word, oblique, plural.strip("-"), only)


NOUNS = {kind: [read_noun(entry) for entry in words] for kind, words in WORDS["nouns"].items()}
AFTER = {
    "m": " మీద",
    "t": "తో",
    "l": "లో",
    "f": " నుండి",
    "g": " గురించి",
    "k": " కోసం",
    "v": " దగ్గర",
    "x": "",
}


@lru_cache(maxsize=100_000)
def decline(noun: Noun, case: str, plural: bool = False) -> str:
    """One case: n subject, a object, d to, l in, t with, f from, g about, k for, v near, x of.
    Endings follow the vowel before them: ని, కి after i, ను, కు elsewhere; -ం nouns have -ాన్ని, -ానికి."""
    if noun.word in WORDS["pronouns"]:
        whom, to, stem, _ = WORDS["pronouns"][noun.word]
        return {"n": noun.word, "a": whom, "d": to}.get(case) or stem + AFTER[case]
    plural = plural or noun.only
    if case == "n":
        return noun.plural if plural else noun.word
    stem = noun.plural[:-1] if plural else noun.oblique  # plural -లు has the oblique -ల
    if case in "ad" and stem.endswith("ం"):
        return join(stem[:-1], {"a": "ాన్ని", "d": "ానికి"}[case])
    if case in "ad":
        return stem + {"a": "నిను", "d": "కికు"}[case][slice(0, 2) if stem[-1] in "ిీ" else slice(2, 4)]
    if case == "l" and stem in ("ఇంటి", "ఏటి"):
        return stem[:-2] + "ట్లో"
    return stem + AFTER[case]


# Verbs


def read_verbs() -> dict[str, dict[str, str]]:
    """The principal parts of every verb, by its dictionary form."""
    names = ["infinitive", "converb", "past", "nonpast", "imperative", "participle", "it"]
    table = {}
    for kind, verbs in WORDS["verbs"].items():
        rule = WORDS["verb_classes"][kind]
        for verb in verbs:
            stem = verb.removesuffix(rule["cite"][0])
            part = dict(zip(names, [join(stem, part) for part in rule["parts"]], strict=False))
            table[verb] = {"participle": part["converb"] + "న", "it": part["converb"] + "ంది"}
            table[verb] |= part | derived_parts(part) | {"cite": verb}
    return table


def derived_parts(part: dict[str, str]) -> dict[str, str]:
    infinitive, converb, nonpast = part["infinitive"], part["converb"], part["nonpast"]
    open_ = re.sub("(?<![ంు])డుత$", "డత", nonpast)  # పెడుతుంది but పెడతాడు
    if nonpast.endswith(("స్త", "ంట", "ోత", "ళ్త")):
        condition = nonpast + "ే"
    else:  # చెబుత → చెబితే, పెడుత → పెడితే; otherwise from the converb, దున్నితే
        short = converb.endswith("ట్టి") or nonpast.endswith("బుత")
        condition = re.sub("ుత$", "ితే", nonpast) if short else converb + "తే"
    lets = re.sub("స్త$", "ద్త", open_).replace("ంట", "ంత")[:-1] + "దాం"  # చేద్దాం, తిందాం
    return {
        "glide": infinitive + "వ" if infinitive[-1] in "ోాే" else infinitive,  # రా + ాలి → రావాలి
        "open": open_,
        "condition": condition,
        "lets": lets,
        "old": re.sub("ుని$", "ొని", converb),
        "polite": "ర" if infinitive == "రా" else infinitive,
    }


VERBS = read_verbs()


@lru_cache(maxsize=100_000)
def conjugate(verb: str, form: str, person: str = "3n") -> str:
    """One form of the word list's table; "she" and "it" share theirs (వచ్చింది)."""
    if person in ("3f", "3n") and form + "_it" in WORDS["forms"]:
        form += "_it"
    part, ending = WORDS["forms"][form]
    return join(VERBS[verb][part], ending if isinstance(ending, str) else ending[person])


# Clauses


@dataclass(frozen=True)
class Who:
    noun: Noun
    person: str  # of their verbs
    pronoun: str
    role: str = ""  # రైతు, said before the name


@dataclass(frozen=True)
class Event:
    subject: str  # "" for the hero
    plural: bool
    args: list[str]
    verb: str


@dataclass
class Scene:
    """What a paragraph holds fast: topic, people, tense, and the few things it comes back to."""

    rng: Random
    topic: dict
    tense: str
    who: dict[str, Who]  # hero, friend, doer …
    script: list[Event]
    pool: dict[str, list[Noun]]  # the nouns of a class that this paragraph knows
    said: int = 0  # sentences so far
    named: int = -1  # the sentence that last had the hero's name


def read_event(text: str) -> Event:
    subject, _, rest = text.rpartition(": ")
    *args, verb = rest.split()
    return Event(subject.rstrip("+"), subject.endswith("+"), args, verb)


def zipf(rng: Random, words: Sequence) -> object:
    """The word at rank r with weight near 1 / (r + 1.5), r from 0."""
    return words[int(1.5 * (len(words) / 1.5 + 1) ** rng.random() - 1.5)]


def pick(scene: Scene, kind: str) -> Noun:
    if kind not in scene.pool:
        size = 1 if kind in WORDS["constant"] else 3
        scene.pool[kind] = [zipf(scene.rng, NOUNS[kind]) for _ in range(size)]
    return scene.rng.choice(scene.pool[kind])


def number(rng: Random, most: int) -> str:
    n = rng.randint(2, most)
    if n < 20:
        return WORDS["units"][n - 1]
    tens = WORDS["tens"][n // 10 - 2]
    return f"{tens} {WORDS['units'][n % 10 - 1]}" if n % 10 and n % 3 else str(n)


def phrase(scene: Scene, kind: str, case: str, plural: bool, own: str) -> str:
    """A noun with at most one word before it: adjective, number, this or that, somebody's own."""
    rng, noun, chance = scene.rng, pick(scene, kind), scene.rng.random()
    simple = kind in WORDS["plain"] or kind in WORDS["people"] or not noun.plural
    counted = case == "o" and noun.plural and kind in WORDS["counted"]
    plural = noun.only or (bool(noun.plural) and (plural or (counted and rng.random() < 0.3)))
    adjectives = WORDS["adjectives"].get(kind) or ([] if simple else WORDS["adjectives"]["thing"])
    before = definite = ""
    if adjectives and chance < 0.22:
        before = zipf(rng, adjectives)
    elif counted and plural and not noun.only and chance < 0.36:
        before = number(rng, 12)
    elif not simple and chance < 0.44:
        before = definite = rng.choice(["ఆ", "ఆ", "ఈ"])
    elif own and case in "oa" and kind in WORDS["owned"] and chance < 0.56:
        before = definite = own
    if case == "o":  # people, animals and definite things take the ending, others often stand bare
        marked = kind in WORDS["animate"] or (definite and rng.random() < 0.6)
        case = "a" if marked else "n"
    return f"{before} {decline(noun, case, plural)}".strip()


def name(scene: Scene, who: Who, case: str) -> str:
    """A person in a case, the hero sometimes by a pronoun once the name has been said."""
    if who is scene.who["hero"]:
        if scene.named == scene.said or (scene.named >= 0 and scene.rng.random() < 0.5):
            return decline(read_noun(who.pronoun + "*"), case)
        scene.named = scene.said
    return decline(who.noun, case)


def arguments(scene: Scene, args: list[str], own: str) -> list[str]:
    out = []
    for arg in args:
        kind, _, case = arg.partition(".")
        if kind == "*":
            out.append(name(scene, scene.who["hero"], case))
        elif case:
            out.append(phrase(scene, kind.rstrip("+"), case, kind.endswith("+"), own))
        else:
            out.append(own if arg == "తన" else arg)
    return out


NOW = {
    "past": "past",
    "old": "past",
    "habit": "nonpast",
    "future": "nonpast",
    "prog": "progressive",
}
NOT = {"past": "did_not", "old": "did_not", "habit": "cannot", "future": "cannot", "prog": "is_not"}


def done(scene: Scene, event: Event, form: str, who: Who) -> str:
    """Arguments and verb, done by who, without naming them."""
    words = arguments(scene, event.args, WORDS["pronouns"][who.pronoun][3])
    if form == "arguments":
        return " ".join(words)
    chance = scene.rng.random() if who is scene.who["hero"] else 0.5
    if chance < 0.15 and not any(re.search("గా|నే$", arg) for arg in words):
        words.insert(0, zipf(scene.rng, WORDS["manner"]))
    elif chance > 0.92 and form in NOW.values() and "తో" not in " ".join(words):
        words.insert(0, name(scene, scene.who["friend"], "t") + " కలిసి")
    return " ".join([*words, conjugate(event.verb, form, who.person)])


def happening(scene: Scene, event: Event, form: str) -> str:
    """A clause with a subject of its own, which its verb agrees with: మబ్బులు కమ్ముకున్నాయి."""
    kind, gender = event.subject, WORDS["people"].get(event.subject, ["n"])[0]
    noun = pick(scene, kind) if kind in NOUNS else read_noun(kind + "*+"[event.plural])
    plural = noun.only or (event.plural and bool(noun.plural))
    person = {"n": "3q"}.get(gender, "3p") if plural else "3" + gender
    subject, words = decline(noun, "n", plural), arguments(scene, event.args, "")
    # రామయ్యకు జ్వరం వచ్చింది: whom it befalls comes first
    words = [*words, subject] if event.args in (["*.d"], ["తాతకు"]) else [subject, *words]
    if scene.tense != "old" and kind in WORDS["local"] and scene.rng.random() < 0.4:
        words.insert(0, decline(pick(scene, "village"), "l"))
    elif len(words) < 2 and scene.rng.random() < 0.3:
        words.append(zipf(scene.rng, WORDS["suddenly"]))
    return " ".join([*words, conjugate(event.verb, form, person)])


def passive(scene: Scene, event: Event) -> str:
    """The object becomes the subject, the doer takes చేత: పొలం రైతుల చేత దున్నబడింది. "" without one."""
    *rest, last = event.args or [""]
    if not last.endswith(".o"):
        return ""
    noun = pick(scene, last[:-2].rstrip("+"))
    plural = noun.only or ("+" in last and bool(noun.plural))
    doers = zipf(scene.rng, scene.topic["p"])[:-1] + " చేత"
    verb = conjugate(event.verb, "passive", "3q" if plural else "3n")
    return " ".join([*arguments(scene, rest, "తమ"), decline(noun, "n", plural), doers, verb])


# Sentences: the blanks of a template of the word list are filled


def person(noun: str, code: str, pronoun: str, role: str = "") -> Who:
    return Who(read_noun(noun + ("+" if code == "3p" else "*")), code, pronoun, role)


FIXED = {key: person(noun, code, noun) for key, (noun, code) in WORDS["fixed"].items()}


def mention(scene: Scene, may_drop: bool) -> str:
    """The hero as subject: role and name first, later a pronoun, the name, or nothing at all."""
    hero, chance, named = scene.who["hero"], scene.rng.random(), scene.named
    if named >= 0 and may_drop and chance < 0.18:
        return ""
    if named == scene.said or (named >= 0 and chance < 0.66):
        return hero.pronoun
    scene.named = scene.said
    if named < 0 and chance < 0.8:
        return f"{hero.role} {hero.noun.word}"
    return hero.noun.word + ("+అందరూ" if hero.noun.only and named >= 0 and chance > 0.93 else "")


def when(scene: Scene, share: float) -> str:
    """A time that fits the tense at the start of a paragraph, later often "then"."""
    if not scene.said:
        return zipf(scene.rng, WORDS["times"][scene.tense])
    return zipf(scene.rng, WORDS["then"][scene.tense]) if scene.rng.random() < share else ""


def quality(scene: Scene) -> str:
    """This field is very big: పెద్ద + ది, of several పెద్ద + వి."""
    rng, adjectives = scene.rng, WORDS["adjectives"]
    kind = rng.choice([kind for kind in scene.topic["things"] if kind in adjectives])
    noun = pick(scene, kind)
    plural = noun.only or (bool(noun.plural) and rng.random() < 0.3)
    owner = name(scene, scene.who["hero"], "x") if kind in WORDS["owned"] else "ఆ"
    which, very = rng.choice(["ఈ", owner]), rng.choice(["చాలా", "ఎంతో", "నిజంగా"])
    adjective = zipf(rng, adjectives[kind]) + ("వి" if plural else "ది")
    return f"{which} {decline(noun, 'n', plural)} {very} {adjective}"


def region(scene: Scene, case: str) -> str:
    return decline(pick(scene, "kingdom" if scene.tense == "old" else "village"), case)


BLANKS = {
    "hero": lambda s: mention(s, True),
    "hero!": lambda s: mention(s, False),
    "doer": lambda s: s.who["doer"].noun.word,
    "doer.pronoun": lambda s: {"m": "అతడు", "f": "ఆమె"}.get(s.who["doer"].person[1], "అట్టివారు"),
    "kin": lambda s: s.who["kin"].noun.word,
    "when": lambda s: when(s, 0.4),
    "when!": lambda s: when(s, 0.7),
    "place": lambda s: region(s, "l"),
    "to": lambda s: region(s, "d"),
    "quality": quality,
    "census": lambda s: zipf(s.rng, s.topic["census"]),
    "count": lambda s: number(s.rng, 60),
    "year": lambda s: str(s.rng.randint(1930, 2005)),
    "old_number": lambda s: f"{s.rng.choice(WORDS['old_tens'])} {s.rng.choice(WORDS['units'][:9])}",
}


def fill(scene: Scene, template: str, e: Event, f: Event | None) -> str:
    """The sentence of a template, or "" where the event does not suit it."""
    rng, who = scene.rng, scene.who

    def blank(match: re.Match) -> str:
        what, form, by = [*match[1].split(), "", ""][:3]
        form = {"now": NOW[scene.tense], "not": NOT[scene.tense]}.get(form, form)
        doer = who[by or "hero"]
        if what in BLANKS:
            return BLANKS[what](scene)
        if what in ("e", "f", "latin"):
            event = {"e": e, "f": f}.get(what) or read_event(zipf(rng, WORDS["latin"]))
            return done(scene, event, form, doer)
        if what in ("why", "t"):
            return happening(
                scene, e if what == "t" else read_event(zipf(rng, scene.topic["why"])), form
            )
        if what == "passive":
            return passive(scene, e)
        if what.startswith("verb:"):
            return conjugate(e.verb if what == "verb:e" else what[5:], form, doer.person)
        key, _, case = what.partition(".")
        return name(scene, who[key], case) if case else zipf(rng, WORDS[what])

    text = re.sub(r"\[(.*?)\]", blank, template)
    if "~" in text and not (re.match("[కచటతప](?!్)", e.verb) and "." in e.args[-1]):
        return ""
    text = re.sub(r"(\S+)~(\S+)", soften, re.sub(r"(\S+)\+(\S+)", sandhi, text))
    return text and " ".join(text.split()) + "."


# Paragraphs and documents


def somebody(rng: Random, topic: dict, royal: str) -> Who:
    """A hero: a named man or woman, a group, or the writer."""
    chance = rng.random()
    if chance < 0.62:
        gender = "m" if chance < 0.33 else "f"
        called = zipf(rng, WORDS["names"][royal + gender])
        return person(called, "3" + gender, PRONOUN[gender], zipf(rng, topic[gender]))
    if chance < 0.84 or royal:
        return person(zipf(rng, topic["p"]), "3p", rng.choice(["వారు", "వారు", "వాళ్లు"]))
    return FIXED["me" if chance < 0.93 else "we"]


PRONOUN = {"m": "అతను", "f": "ఆమె", "p": "వారు"}


def new_scene(rng: Random, subject: str) -> Scene:
    topic, old = WORDS["topics"][subject], subject == "history"
    first, *rest = rng.choice(topic["scripts"])
    royal = "king_" if old and first[0] != "@" else ""
    if first[0] == "@":  # roles of its own: men, women, groups
        roles = [[word.replace("_", " ") for word in part.split()] for part in first[1:].split("|")]
        topic = topic | dict(zip("mfp", roles, strict=True))
    else:
        rest = [first, *rest]
    tense = "old" if old else rng.choices(["past", "habit", "future", "prog"], [55, 22, 11, 12])[0]
    hero, gender, kin, role = (
        somebody(rng, topic, royal),
        rng.choice("mf"),
        rng.choice("mff"),
        rng.choice("mfp"),
    )
    voice = FIXED["we" if hero.person in ("1p", "3p") else "me"]
    names = [word for word in WORDS["names"][royal + gender] if word != hero.noun.word]
    who = FIXED | {
        "hero": hero,
        "voice": voice,  # how the hero says "I"
        "self": replace(voice, pronoun=hero.pronoun),  # that, in reported speech
        "friend": person(zipf(rng, names), "3" + gender, PRONOUN[gender]),
        "doer": person(zipf(rng, topic[role]), "3" + role, PRONOUN[role]),
        "kin": person(zipf(rng, WORDS["kin_" + kin]), "3" + kin, PRONOUN[kin]),
    }
    return Scene(rng, topic, tense, who, [read_event(text) for text in rest], {})


def countdown(rng: Random, every: tuple[int, int]) -> Iterator[str]:
    """For each sentence "" or the rare kind that is due; all kinds come before any comes again."""
    while True:
        for kind in rng.sample(list(WORDS["rare"]), len(WORDS["rare"])):
            yield from [""] * (rng.randint(*every) - 1)
            yield kind


def rare_sentence(scene: Scene, kind: str) -> str:
    """The kind on some event of the script that suits it, "" if none does."""
    pairs = list(pairwise(event for event in scene.script if not event.subject))
    for e, f in scene.rng.sample(pairs, len(pairs)):
        if text := fill(scene, scene.rng.choice(WORDS["rare"][kind]), e, f):
            return text
    return ""


def pattern(scene: Scene, last: int) -> tuple[int, str]:
    """A common template that suits tense and hero, after the number of events that it uses up.
    Not twice in a row one that uses none: the story would stand still."""
    weights = [row[0] for row in WORDS["common"]]
    while True:
        _, used, template, *only = scene.rng.choices(WORDS["common"], weights)[0]
        if used == last == 0 or ("[why" in template and scene.named < 0):
            continue  # with "why" it must be clear who it is about
        if not only or {scene.tense, scene.who["hero"].person[0]} & set(only[0].split()):
            return used, template


def paragraph(scene: Scene, due: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Sentences of one script in its order, each with its rare kind or "" for a common one."""
    rng, script = scene.rng, scene.script
    at, end, used = rng.randint(0, 2), len(script) - rng.randint(0, 2), 1
    while at < end:
        e, rare = script[at], next(due)
        f = next((event for event in script[at + 1 :] if not event.subject), None)
        if text := rare and rare_sentence(scene, rare):
            yield text, rare
            scene.said += 1
            continue
        if e.subject:
            joined = f and scene.named >= 0 and rng.random() < 0.4
            used, template = (2, "[t upon] [hero] [f now]") if joined else (1, "[when!] [t now]")
        else:
            used, template = pattern(scene, used) if f else (1, WORDS["common"][0][2])
        yield fill(scene, template, e, f), ""
        at = script.index(f) + 1 if used == 2 else at + used
        scene.said += 1


def write(
    characters: int, seed: int, rare_every: tuple[int, int] = RARE_EVERY
) -> tuple[list[Document], list[Rare]]:
    """Documents of that many characters in all (to half a sentence), and the rare constructions."""
    if characters < 1000:
        raise ValueError(f"{characters} characters hold no paragraphs: ask for at least 1,000")
    rng, documents, rares, left = Random(seed), [], [], characters
    due = countdown(rng, rare_every)
    while left > 0:
        topic, lines = rng.choice(list(WORDS["topics"])), []
        for _ in range(rng.randint(3, 12)):
            sentences = []
            for text, kind in paragraph(new_scene(rng, topic), due):
                if len(text) > 2 * left:
                    left = 0
                    break
                left -= len(text) + bool(sentences)
                sentences.append(text)
                if kind:
                    rares.append(Rare(kind, len(documents), len(lines), text))
            if sentences:
                lines.append(" ".join(sentences))
        if lines:
            documents.append(Document(tuple(lines), f"written/{topic}"))
    return documents, rares
