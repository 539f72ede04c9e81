"""What is written about the world: sentences, and documents of connected sentences, in any language of Tinybabel.

What a document says is drawn first, in no language; how it is said, after that. So the same document exists in every
language, which is what parallel texts and test items that are the same in all languages need.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from babelscope.tinybabel.grammar import Grammar, Span, Text, gender, grammar, schema
from babelscope.tinybabel.world import KNOWN, SEED, Fact, Split, fact, world

NEWS = ("opened", "festival", "won", "prize")
_TRAITS = (*KNOWN, "age", "kin", "owns")
_EVENTS = ("went", "met", "bought", "gave", "cooked", "saw")
_TRIES = 400
COUNTS: Mapping[Split, int] = {"train": 4000, "validation": 500, "test": 500}
"""Documents of the corpus of a language. Training read more of them than that, of the same kind."""

_T = TypeVar("_T")
Way = Literal["say", "then", "title", "summary"]


@dataclass(frozen=True)
class Line:
    """A fact and the way in which it is to be told."""

    fact: Fact
    way: Way


def tell(language: Grammar, fact: Fact, template: str, *, sentence: bool = True) -> Text:
    """A template about a fact, in a language."""
    return language.render(template, {slot: _word(language, fact, slot) for slot, _ in fact.values}, sentence=sentence)


def say(language: Grammar, line: Line, rng: Random) -> Text:
    """A line in one of its phrasings."""
    return tell(language, line.fact, pick(language.relations[line.fact.relation][line.way], rng))


def write(language: Grammar, lines: Sequence[Line], rng: Random) -> tuple[str, list[tuple[Line, tuple[Span, ...]]]]:
    """Lines as one text, and for each of them where its slots are in that text."""
    text, told = "", []
    for line in lines:
        rendered = say(language, line, rng)
        text += language.join if text else ""
        told.append(
            (line, tuple(Span(span.slot, span.start + len(text), span.end + len(text)) for span in rendered.spans))
        )
        text += rendered.text
    return text, told


def pick(options: Sequence[_T], rng: Random) -> _T:
    """One of them, with one draw however many there are: the languages differ in their number of phrasings."""
    return options[int(rng.random() * len(options))]


def _word(language: Grammar, about: Fact, slot: str) -> object:
    key = about[slot]
    kind = schema()["relations"][about.relation]["args"][slot]
    return word(language, kind, key)


def word(language: Grammar, kind: str, key: str | int) -> object:
    """What fills a slot: a word of the language, a full name, a number or an equation."""
    if isinstance(key, int) or kind == "equation":
        return key
    if kind == "person" and "_" in key:
        return language.full_name(*key.split("_"))
    return language.words[kind][key]


# What a document says


def biography(rng: Random, persons: Sequence[str]) -> list[Line]:
    """What is known of a person of the world."""
    facts = rng.sample(world().persons[rng.choice(persons)], rng.randint(3, len(KNOWN)))
    return connected(facts, rng)


def city_page(rng: Random, persons: Sequence[str]) -> list[Line]:
    """What is known of a city, and of somebody who lives there or was born there."""
    city = rng.choice(sorted(world().cities))
    lines = connected(rng.sample(world().cities[city], 2), rng)
    there = [
        f for name in persons for f in world().persons[name] if f.relation in ("lives", "born") and f["city"] == city
    ]
    for neighbour in rng.sample(there, min(len(there), rng.randint(0, 2))):
        others = [f for f in world().persons[str(neighbour.subject)] if f != neighbour]
        lines += connected([neighbour, *rng.sample(others, rng.randint(0, 2))], rng)
    return lines


def story(rng: Random, split: Split, sentences: int | None = None) -> list[Line]:
    """Invented people (first names only) and what they are and do; every fact belongs to the split."""
    people = rng.sample(schema()["classes"]["person"], rng.randint(1, 3))
    total = sentences or rng.randint(4, 8)
    lines: list[Line] = []
    if rng.random() < 0.2:
        lines += connected(drawn(["weather"], rng, split), rng)
    for index, person in enumerate(people):
        count = (total - len(lines)) // (len(people) - index)
        traits = rng.sample(_TRAITS, min(len(_TRAITS), (count + 1) // 2 + rng.randint(-1, 1)) if count > 1 else count)
        events = rng.sample(_EVENTS, min(len(_EVENTS), max(0, count - len(traits))))
        lines += connected(drawn((*traits, *events), rng, split, person=person), rng)
    return lines


def article(rng: Random, split: Split) -> list[Line]:
    """News: the lines of the article; the one that the headline and the summary are about is `lead(lines)`."""
    main = drawn([rng.choice(NEWS)], rng, split)[0]
    lines = [Line(main, "say")]
    person = dict(main.values).get("person")
    if person:
        relations = rng.sample([trait for trait in _TRAITS if trait != "works"], rng.randint(1, 3))
        lines += connected(drawn(relations, rng, split, person=person), rng, named=True)
    else:
        for guest in drawn(["went"], rng, split, city=main["city"]):
            traits = drawn(rng.sample(_TRAITS, rng.randint(0, 2)), rng, split, person=guest.subject)
            lines += connected([guest, *traits], rng)
    day = {"day": main["day"]} if "day" in dict(main.values) else {}
    if rng.random() < 0.4:
        forecast = connected(drawn(["weather"], rng, split, city=main["city"], **day), rng)
        lines = [*forecast, *lines] if rng.random() < 0.5 else [*lines, *forecast]
    return lines


def lead(lines: Sequence[Line]) -> Fact:
    """The fact that an article is about."""
    return next(line.fact for line in lines if line.fact.relation in NEWS)


def drawn(relations: Sequence[str], rng: Random, split: Split, **given: str | int) -> list[Fact]:
    """Invented facts of a split, one of each relation.

    A relation of which the split has none, with what is given, is left out: of six weathers in a city on a day, all may
    belong to another split.
    """
    facts: list[Fact] = []
    for relation in relations:
        candidates = (fact(relation, rng, **given) for _ in range(_TRIES))
        facts += itertools.islice((candidate for candidate in candidates if candidate.split == split), 1)
    return facts


def connected(facts: Sequence[Fact], rng: Random, *, named: bool = False) -> list[Line]:
    """Facts about one subject in a row, now by name and now by pronoun, but never by an unclear one."""
    lines: list[Line] = []
    unclear = not named
    for about in facts:
        can = "then" in schema()["relations"][about.relation]
        lines.append(Line(about, "then" if can and not unclear and rng.random() < 0.6 else "say"))
        other = dict(about.values).get("person2")
        unclear = other is not None and _gender(other) == _gender(about.subject)
    return lines


def _gender(person: str | int) -> str:
    return gender(str(person).split("_")[0])


# Documents


def plan(rng: Random, code: str, split: Split) -> list[Line]:
    """What a document says: a biography, a page on a city, a story or news."""
    known = [name for group, names in world().groups.items() for name in names if group != "english" or code == "en"]
    kind = rng.random()
    if kind < 0.4:
        return biography(rng, known)
    if kind < 0.5:
        return city_page(rng, known)
    return story(rng, split) if kind < 0.85 else article(rng, split)


def document(code: str, split: Split, index: int, seed: int = SEED) -> str:
    """Document `index` of a language: connected sentences; news with its headline in a line of its own."""
    rng = Random(f"{seed}:document:{code}:{split}:{index}")
    return _written(grammar(code), plan(rng, code, split), rng)


def parallel_document(codes: tuple[str, str], split: Split, index: int, seed: int = SEED) -> str:
    """The same content in two languages, a paragraph each."""
    rng = Random(f"{seed}:parallel:{'-'.join(codes)}:{split}:{index}")
    lines = plan(rng, "", split)
    return "\n".join(_written(grammar(code), lines, rng) for code in codes)


def _written(language: Grammar, lines: Sequence[Line], rng: Random) -> str:
    text, _ = write(language, lines, rng)
    if any(line.fact.relation in NEWS for line in lines):
        return say(language, Line(lead(lines), "title"), rng).text + "\n" + text
    return text


def documents(code: str, split: Split = "train", seed: int = SEED) -> Iterator[str]:
    """The corpus of a language: `COUNTS[split]` documents, the same ones at every reading.

    Raises:
        DataError: Tinybabel doesn't speak the language.
    """
    return (document(code, split, index, seed) for index in range(COUNTS[split]))


def fingerprint(code: str, split: Split, seed: int = SEED) -> str:
    """What tells a corpus from a changed one, without writing it: its first documents.

    Raises:
        DataError: Tinybabel doesn't speak the language.
    """
    first = [document(code, split, index, seed) for index in range(20)]
    return f"sha256:{hashlib.sha256(json.dumps([COUNTS[split], *first]).encode()).hexdigest()}"
