"""Telugu prose from a seeded grammar: clauses, sentences, paragraphs, documents.

Words and stories are data (telugu_words.yaml), the rules are here. Most paragraphs follow a script:
events in their order, with one hero and one tense, so that what comes next can be guessed. About
one sentence in 60 has a rare construction. The same seed writes the same text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from random import Random
from typing import NamedTuple

from tdbook.corpus import grammar
from tdbook.corpus.grammar import NOUN, NOUNS, VERBS, WORDS, Noun, conjugate, decline, expand, zipf
from tdbook.corpus.text import Document

BLANK = re.compile(r"\[(.*?)\]")
LINKS = "|".join(link for links in WORDS["then"].values() for link in links)
CLASH = re.compile(rf"(?<!\S)({LINKS}) (?=(\S+ ){{0,2}}({'|'.join(WORDS['clock'])}) )")
MANNER = {verb: ways.split(",") for verbs, ways, *_ in WORDS["manner"] for verb in verbs.split()}
NO_MANNER = re.compile("(గా|ూ|నే|సారి|తో|ముందు)( |$)")  # how it is done is said already
WHEN = {"when": 0.35, "when!": 0.65, "then": 1}  # how often a blank for a time is filled


class Who(NamedTuple):
    noun: Noun
    person: str  # of their verbs
    pronoun: str
    role: str = ""  # రైతు, said before the name


class Event(NamedTuple):
    args: list[str]
    verb: str
    mark: str  # > done in order to do the next one, ! not on purpose
    mine: bool  # done by the hero: no argument is a subject


def read_event(text: str) -> Event:
    *args, verb = text.strip("?>! ").split()
    return Event(args, verb, re.search("[>!]?$", text)[0], ".n " not in f"{text} ")


@dataclass
class Scene:
    """The state of a paragraph: topic, tense, people, things, and what was said of them."""

    rng: Random
    topic: dict
    tense: str
    who: dict[str, Who]  # hero, friend, doer …
    nouns: dict[str, Noun]  # class → its one noun here
    script: list[Event] = field(default_factory=list)
    seen: dict[str, tuple[int, str]] = field(default_factory=dict)  # when, and what was done to it
    used: set[str] = field(default_factory=set)  # templates and links so far
    sentence: int = 0  # number of the present one
    clear: bool = False  # the hero did the last thing, and may be left out

    def the(self, kind: str) -> Noun:
        """The one noun of its class in this paragraph; fruit2 is another fruit."""
        if kind not in self.nouns:
            words, taken = NOUNS[kind.rstrip("123")], self.nouns.values()
            self.nouns[kind] = zipf(self.rng, [w for w in words if w not in taken] or words)
        return self.nouns[kind]


def person(noun: str, code: str, pronoun: str, role: str = "") -> Who:
    always_plural = "+" * (code == "3p" and noun.endswith("లు"))
    return Who(grammar.read_noun(noun + always_plural), code, pronoun, role)


FIXED = {key: person(noun, code, noun) for key, (noun, code) in WORDS["fixed"].items()}


def bare(scene: Scene, kind: str, many: str, case: str) -> str:
    """A noun by itself, or a list of two or three: వంకాయలు, టమాటాలు; వంకాయలూ టమాటాలూ."""
    if many != "*":
        return decline(scene.the(kind), case, many)
    kinds = [kind, kind + "2", kind + "3"][: scene.rng.randint(2, 3)]
    words = [decline(scene.the(kind), case, "+") for kind in kinds]
    if all(word.endswith("లు") for word in words) and scene.rng.random() < 0.5:
        return " ".join(word[:-1] + "ూ" for word in words)
    return ", ".join(words)


def phrase(scene: Scene, kind: str, many: str, case: str, possessive: str, verb: str) -> str:
    """A noun: first with an adjective, number or owner, later with ఆ or కొన్న (bought); a pronoun."""
    if many == "*":
        return bare(scene, kind, many, "n" if case == "o" else case)
    rng, noun, chance, before = scene.rng, scene.the(kind), scene.rng.random(), ""
    plural = decline(noun, "n", many) == noun.plural
    people = kind in WORDS["people"]
    thing = not people and kind not in WORDS["plain"]
    latest = next((k for k in reversed(scene.seen) if k in NOUNS), "")
    last, deed = scene.seen.pop(kind, (-9, ""))
    scene.seen[kind] = (scene.sentence, deed)
    done = conjugate(deed, "who_did") if deed not in ("", verb) else ""  # no "sold the sold pot"
    near = last == scene.sentence or (last == scene.sentence - 1 and chance < 0.3)
    if case != "n" and near and kind == latest and (thing or (people and plural)):
        pronoun = "వారు" if people else "అవి" if plural else "అది"
        return decline(grammar.read_noun(pronoun), "a" if case == "o" else case)
    if last < 0:
        if kind in WORDS["adjectives"] and chance < 0.3:
            before = zipf(rng, WORDS["adjectives"][kind])
        elif kind in WORDS["counted"] and plural and not noun.only and case == "o":
            before = grammar.number(rng, "n", 2, 12) if chance < 0.6 else ""
        elif possessive and kind in WORDS["owned"] and case in "oa" and chance < 0.7:
            before = possessive
        elif thing and noun.plural and not plural and case in "on" and chance > 0.8:
            before = "ఒక"
    elif thing and chance < 0.85:
        before = done if done and case in "oad" and chance < 0.6 else "ఆ"
    if case == "o":  # people, animals and what is known take the ending, others often stand bare
        definite = before and before in (possessive, done, "ఆ") and rng.random() < 0.6
        case = "a" if definite or kind in WORDS["animate"] else "n"
    return f"{before} {decline(noun, case, many)}".strip()


def name(scene: Scene, who: Who, case: str) -> str:
    """A person in a case: at first with the role, the hero later sometimes by a pronoun."""
    hero, last = scene.who["hero"], scene.seen.get(who.noun.word, (-1, ""))[0]
    clear = scene.clear or who.person != "3n"  # among animals "it" may be any of them
    now = last == scene.sentence
    again = who is hero and last >= 0 and (now or (clear and scene.rng.random() < 0.6))
    scene.seen[who.noun.word] = (scene.sentence, "")
    if again:
        return decline(grammar.read_noun(who.pronoun), case)
    role = who.role if last < 0 and scene.rng.random() < 0.8 else ""
    if role and who is scene.who["friend"]:  # "own" only where the friend is not the subject
        role = f"{WORDS['pronouns'][hero.pronoun][2 if case == 'n' else 3]} {role}"
    return f"{role} {decline(who.noun, case)}".strip()


def clause(scene: Scene, event: Event, form: str, who: Who) -> str:
    """Arguments and verb. The hero is not named; another subject is, and the verb agrees."""
    words, possessive = [], WORDS["pronouns"][who.pronoun][3] if event.mine else "తమ"
    traits = VERBS[event.verb]["traits"]
    for arg in event.args:
        match = NOUN.fullmatch(arg)
        kind, many, case = match.groups() if match else ("", "", "")
        if kind in scene.who:
            words.append(name(scene, scene.who[kind], case))
            who = scene.who[kind] if case == "n" else who
        elif case == "n":
            word, who = subject(scene, kind, many)
            words.append(word)
        elif match:
            words.append(phrase(scene, kind, many, case, possessive, event.verb))
            if case == "o" and who is scene.who["hero"] and "made" in traits:
                scene.seen[kind] = (scene.sentence, event.verb)
        else:
            words.append(possessive if arg == "తన" else arg)
    manner = form in ("now", "past", "converb") and scene.rng.random() < 0.3
    if manner and not NO_MANNER.search(" ".join(words)):
        words += scene.rng.choices(MANNER.get(event.verb, [""]))
    if form == "now":
        forced = {"-u"} if event.mark == "!" or not event.mine else set()
        rows = suited("finals", frozenset(traits - forced | {scene.tense}))
        words.append(blanks(scene, scene.rng.choices(*rows)[0][1], (event,), who))
    elif form != "arguments":
        words.append(conjugate(event.verb, form, who.person))
    return " ".join(words)


def subject(scene: Scene, kind: str, many: str) -> tuple[str, Who]:
    """What something happens to, "" where this sentence has had it as subject; and its verbs."""
    now, is_class = (scene.sentence, ""), kind in NOUNS
    again = scene.seen.get(kind + ".n") == now
    word = "" if again else phrase(scene, kind, many, "n", "", "") if is_class else kind
    scene.seen[kind + ".n"], gender = now, WORDS["people"].get(kind, ["n"])[0]
    plural = bare(scene, kind, many, "n") == scene.the(kind).plural if is_class else many == "+"
    code = {"n": "3q"}.get(gender, "3p") if plural else "3" + gender
    return word, person("అది", code, "అది")


@lru_cache(maxsize=10_000)
def suited(key: str, holds: frozenset[str]) -> tuple[list[tuple[int, str]], list[int]]:
    """The rows whose needs (a|b: one of them) hold: (number of events, template); their weights."""
    templates, weights = [], []
    for line in WORDS[key][0].splitlines():
        head, _, template = line.partition(": ")
        weight, *needs = head.split() + ["say"] * ("[friend" in template)
        if all(holds & {*need.split("|")} for need in needs):
            told = re.search(r"(?<!\S)[ht]+(?!\S)", head)
            templates.append((len(told[0]) if told else 0, template))
            weights.append(int(weight))
    return templates, weights


def blank(scene: Scene, words: list[str], events: Sequence[Event], me: Who) -> str:
    """What stands for one blank. `me` does the events and the verbs for which nobody is named."""
    what, form, by = (*words, "", "")[:3]
    rng, who = scene.rng, scene.who.get(by, me)
    if what in ("n", "d", "heads"):
        return grammar.number(rng, what, int(form), int(by))
    if what.isdigit():
        return clause(scene, events[int(what) - 1], form, who)
    if what[0] == "V" or what in VERBS:
        verb = events[int(what[1:] or 1) - 1].verb if what[0] == "V" else what
        return conjugate(verb, WORDS["now"][scene.tense][0] if form == "now" else form, who.person)
    if what == "hero":  # left out where that is clear
        again = (scene.sentence, "") == scene.seen.get(me.noun.word)
        other = any(k[-2:] == ".n" and at[0] == scene.sentence for k, at in scene.seen.items())
        scene.clear &= not other
        drop = 0.5 if again and not other else 0.45 if scene.clear else 0
        return "" if rng.random() < drop else name(scene, me, "n")
    if match := NOUN.fullmatch(what):
        who = scene.who.get(match[1])
        return name(scene, who, match[3]) if who else bare(scene, *match.groups())
    if what in WHEN:  # a time that fits the tense, later often a "then" not yet used
        table = WORDS["then" if scene.sentence or what == "then" else "times"][scene.tense]
        words = [word for word in table if word not in scene.used]
        due = words and rng.random() < WHEN[what] + (not scene.sentence)
        scene.used.add(word := zipf(rng, words) if due else "")
    else:  # words of the topic, or of the list: for what was named last, or for the tense
        words = scene.topic.get(what) or WORDS[what]
        if isinstance(words, dict):
            keys = [*reversed(scene.seen), scene.tense, "all"]
            words = words[next(key for key in keys if key in words)]
        word = rng.choice(words) if " " in words[0] else zipf(rng, words)
    text = blanks(scene, expand(rng, word), events, me)
    return clause(scene, read_event(text), form, who) if form else text


def blanks(scene: Scene, text: str, events: Sequence[Event], me: Who) -> str:
    return BLANK.sub(lambda match: blank(scene, match[1].split(), events, me), text)


def fill(scene: Scene, template: str, events: Sequence[Event] = ()) -> str:
    """The sentence of a template, or "" where there is nothing to say."""
    text = blanks(scene, expand(scene.rng, template), events, scene.who["hero"])
    text = CLASH.sub("", grammar.polish(text))
    return text + "." if text and text[-1] not in ".?!," else text


def somebody(rng: Random, topic: dict, names: dict[str, list[str]], column: int) -> Who:
    """A hero: a man, a woman, one of them honoured, a group, two people, the writer, an animal."""
    if "n" in topic:
        return person(zipf(rng, topic["n"]), "3n", "అది")
    heroes = WORDS["heroes"]
    kind = rng.choices(list(heroes), [row[column] for row in heroes.values()])[0]
    *_, gender, code, pronoun = heroes[kind]
    if kind in FIXED:
        return FIXED[kind]
    if gender == "mf":
        return person(f"{zipf(rng, names['m'])}, {zipf(rng, names['f'])}లు", code, pronoun)
    if gender == "p":
        return person(zipf(rng, topic["p"]), code, rng.choice(["వారు", "వారు", "వాళ్లు"]))
    return person(zipf(rng, names[gender]), code, pronoun, zipf(rng, topic[gender]))


def new_scene(rng: Random, subject: str, script: str, names: dict, nouns: dict) -> Scene:
    """The people and the events of a script; for its notation see the word list."""
    roles, *parts = re.split("; *", script)
    once, roles = re.match("@([!~]?)(.*)", roles).groups()
    groups = [[w.replace("_", " ") for w in group.split()] for group in roles.split("|")]
    own = {key: group for key, group in zip("mfpn", groups, strict=False) if group}
    topic = WORDS["topics"][subject] | own | {"why": [part for part in parts if part[0] == "?"]}
    tenses = WORDS["tenses"].get(once or subject, WORDS["tenses"]["all"])
    tense = rng.choices(*zip(*tenses, strict=True))[0]
    hero = somebody(rng, topic, names, WORDS["ages"].get(subject, 0))
    genders = {"3m": "fffm", "3f": "mmmf", "3n": "n"}  # mostly the other one, so that "he" is clear
    gender = rng.choice(genders.get(hero.person, "mf"))
    others = WORDS["topics"][subject]["n"] if gender == "n" else names[gender]
    other = zipf(rng, [word for word in others if word not in hero.noun.word])
    relation = zipf(rng, WORDS["relations"].get(gender, [""]))
    voice = FIXED["we" if hero.noun.only or hero.person == "1p" else "me"]
    role = rng.choice([key for key in "mfpn" if key in topic])
    who = FIXED | {
        "hero": hero,
        "voice": voice,  # how the hero says "I"
        "self": voice._replace(pronoun=hero.pronoun),  # that, in reported speech
        "you": FIXED["you" if voice.person == "1s" and hero.person != "3p" else "you_all"],
        "friend": person(other, "3" + gender, WORDS["pronoun"][gender][0], relation),
        "doer": person(zipf(rng, topic[role]), "3" + role, WORDS["pronoun"][role][0]),
        "man": person(zipf(rng, names["m"]), "3m", "అతను"),
        "woman": person(zipf(rng, names["f"]), "3f", "ఆమె"),
    }
    scene = Scene(rng, topic, tense, who, dict(nouns))
    events = (expand(rng, part) for part in parts if part[0] != "?")
    scene.script = [read_event(blanks(scene, event, (), hero)) for event in events]
    return scene


def rare_kinds(rng: Random) -> Iterator[str]:
    """For each sentence "" or the rare construction that is due: all kinds, then all again."""
    while True:
        for kind in rng.sample(list(WORDS["rare"]), len(WORDS["rare"])):
            yield from [""] * (rng.randint(33, 77) - 1) + [kind]


def rare_sentence(scene: Scene, kind: str) -> str:
    """A rare construction on some events of the script that suit it, "" if none do."""
    meant = [e for e in scene.script if e.mine and e.mark != "!" and "friend" not in str(e.args)]
    pairs = list(pairwise(e for e in meant if "-u" in VERBS[e.verb]["traits"]))
    rng, old = scene.rng, read_event(scene.rng.choice(WORDS["classical"]))
    told = rng.sample(pairs, len(pairs))
    texts = (fill(scene, rng.choice(WORDS["rare"][kind]), (*pair, old)) for pair in told)
    return next(filter(None, texts), "")


def pattern(scene: Scene, ahead: list[Event]) -> tuple[int, str]:
    """A template for what is ahead, after the number of events told; for its needs see "story"."""
    shape, e = "".join("h" if event.mine else "t" for event in ahead), ahead[0]
    holds = {shape[: n + 1] for n in range(len(shape))} | VERBS[e.verb]["traits"]
    told = " ".join(arg for event in ahead for arg in event.args)
    free = not re.search("asides|remarks", " ".join(scene.used))  # yet
    holds |= {scene.tense, scene.who["hero"].person[0], e.mark}
    holds |= {"later", "free" * free} if scene.sentence else {"start"}
    holds |= {"why" * bool(scene.topic["why"]), "say" * ("friend" not in told)}
    holds |= {"thing" * bool({*scene.seen} & {*WORDS["remarks"]})}
    holds |= {"apart" * ("hero" not in " ".join(e.args))}
    holds -= {"-u"} if e.mark == "!" else set()
    first, second = scene.rng.choices(*suited("story", frozenset(holds)), k=2)
    events, template = second if first[1] in scene.used else first  # variety
    scene.used.add(template)
    return events, template


def paragraph(scene: Scene, due: Iterator[str]) -> Iterator[str]:
    """The sentences of one script in its order, with the rare ones that are `due`."""
    script, at, end = scene.script, 0, len(scene.script) - scene.rng.randint(0, 2)
    while at < end:
        kind = next(due)
        text = kind and rare_sentence(scene, kind)
        if not text:
            ahead = script[at : min(at + 4, end)]
            events, template = pattern(scene, ahead)
            text, at = fill(scene, template, ahead), at + events
            scene.clear = events > 0 and script[at - 1].mine
        yield text
        scene.sentence += 1
    if scene.rng.random() < 0.12:
        yield fill(scene, "[closing]")


def paragraphs(rng: Random, subject: str, due: Iterator[str]) -> Iterator[Iterator[str]]:
    """Those of one document: stories, and here and there a description or a report."""
    topic, royal = WORDS["topics"][subject], "king_" * (subject == "history")
    pools = {gender: WORDS["names"][royal + gender] for gender in "mf"}
    names = {g: [*dict.fromkeys(zipf(rng, pool) for _ in range(9))] for g, pool in pools.items()}
    nouns = {kind: zipf(rng, NOUNS[kind]) for kind in ("village", "town")}
    scripts, talks = [], rng.sample(WORDS["talks"][subject], len(WORDS["talks"][subject]))
    for n in range(rng.randint(3, min(10, len(topic["scripts"])))):
        scripts = scripts or rng.sample(topic["scripts"], len(topic["scripts"]))
        scene = new_scene(rng, subject, scripts.pop(), names, nouns)
        if rng.random() < (0.02 if n else 0.1) * len(talks):
            yield (fill(scene, slot) for slot in talks.pop().splitlines())
        else:
            yield paragraph(scene, due)


def write(characters: int, seed: int) -> list[Document]:
    """Documents of that many characters in all, to half a sentence."""
    if characters < 1000:
        raise ValueError(f"{characters} characters hold no paragraphs: ask for at least 1,000")
    rng, documents, left = Random(seed), [], characters
    due = rare_kinds(rng)
    while left > 0:
        subject, lines = rng.choices([*WORDS["weights"]], WORDS["weights"].values())[0], []
        for texts in paragraphs(rng, subject, due):
            sentences = []
            for text in texts:
                if len(text) > 2 * left:
                    left = 0
                    break
                left -= len(text) + bool(sentences)
                sentences += [text] if text else []
            lines += [" ".join(sentences)] if sentences else []
        documents += [Document(tuple(lines), f"written/{subject}")] if lines else []
    return documents
