"""The world of Tinybabel: people, cities and what is true of them, from a seed, in no language."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal

from babelscope.tinybabel.grammar import gender, schema

Split = Literal["train", "validation", "test"]

SEED = 2402
_PERSONS = {"train": 60, "validation": 12, "test": 36, "english": 12}
KNOWN = ("lives", "born", "works", "likes", "pet", "speaks", "hobby")
"""What is known of every person of the world."""
_CAPACITY = 10_000  # parts of the hash that decides a split

# Where the cities really are; everything else in the world is made up.
_COUNTRY = {
    "london": "britain",
    "paris": "france",
    "berlin": "germany",
    "munich": "germany",
    "madrid": "spain",
    "rome": "italy",
    "milan": "italy",
    "moscow": "russia",
    "beijing": "china",
    "shanghai": "china",
    "hanoi": "vietnam",
    "bangkok": "thailand",
    "cairo": "egypt",
    "nairobi": "kenya",
    "mombasa": "kenya",
    "tokyo": "japan",
    "delhi": "india",
    "lisbon": "portugal",
    "athens": "greece",
    "vienna": "austria",
    "lima": "peru",
    "bogota": "colombia",
    "dakar": "senegal",
    "oslo": "norway",
}


@dataclass(frozen=True)
class Fact:
    """A relation with a thing or a number in each of its slots."""

    relation: str
    values: tuple[tuple[str, str | int], ...]
    """In the order of the schema; a person of the world is `first_surname`, anybody else a first name."""

    def __getitem__(self, slot: str) -> str | int:
        return dict(self.values)[slot]

    @property
    def subject(self) -> str | int:
        """What fills the first slot: a statement can go on about it without naming it."""
        return self.values[0][1]

    @property
    def split(self) -> Split:
        """The part of the invented facts that this one belongs to, by its content: no fact is in two parts."""
        return split_of(self.relation, *(value for _, value in self.values))


def split_of(*key: str | int) -> Split:
    """80 % train, 5 % validation, 15 % test, by a hash of the content, so that it can't depend on order or language."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    share = int.from_bytes(digest[:4], "big") % _CAPACITY / _CAPACITY
    return "train" if share < 0.8 else "validation" if share < 0.85 else "test"


@dataclass(frozen=True)
class World:
    """What is true in every language."""

    persons: Mapping[str, tuple[Fact, ...]]
    """Facts by person (`first_surname`)."""
    cities: Mapping[str, tuple[Fact, ...]]
    groups: Mapping[str, tuple[str, ...]]
    """Persons by the part they play: whose questions are trained on, validate, test; `english`: known in English texts
    only, and asked about in the test only."""


@cache
def world(seed: int = SEED) -> World:
    """The world of a seed."""
    rng = Random(f"{seed}:world")
    classes = schema()["classes"]
    names = [f"{first}_{surname}" for first, surname in itertools.product(classes["person"], classes["surname"])]
    names = rng.sample(names, sum(_PERSONS.values()))
    groups, start = {}, 0
    for group, count in _PERSONS.items():
        groups[group] = tuple(names[start : start + count])
        start += count
    persons = {name: tuple(fact(relation, rng, person=name) for relation in KNOWN) for name in names}
    cities = {
        city: (Fact("country", (("city", city), ("country", country))), fact("famous", rng, city=city))
        for city, country in _COUNTRY.items()
    }
    return World(persons, cities, groups)


def fact(relation: str, rng: Random, **given: str | int) -> Fact:
    """A fact with things drawn at random in the slots that aren't given, no thing twice."""
    slots = schema()["relations"][relation]["args"]
    values = dict(given)
    for slot, kind in slots.items():
        if slot in values:
            continue
        if kind == "number":
            values[slot] = rng.randint(18, 89) if relation == "age" else rng.randint(3, 40)
            continue
        options = [thing for thing in schema()["classes"][kind] if thing not in values.values()]
        if kind == "kin":
            options = [kin for kin in options if gender(kin) == gender(str(values["person"]).split("_")[0])]
        values[slot] = rng.choice(options)
    if relation == "won":
        low, high = rng.sample(range(3, 30), 2)
        values |= {"n": max(low, high), "m": min(low, high)}
    return Fact(relation, tuple((slot, values[slot]) for slot in slots))
