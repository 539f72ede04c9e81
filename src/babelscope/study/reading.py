"""A YAML file as places: every value with its key and line, so that a refusal can name them. Nothing is constructed."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import yaml

from babelscope.errors import ConfigError, did_you_mean
from babelscope.languages import get_language

_STANDARD = "tag:yaml.org,2002:"
_NULL = _STANDARD + "null"
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Place:
    """A value in a file."""

    node: Any = field(repr=False)
    """Of PyYAML's composer."""
    key: str
    """Dotted: `grid.limit`; empty for the whole file."""
    known: dict[str, Place] = field(repr=False)
    """Every place read so far, by key; shared by all places of a file."""

    def __post_init__(self) -> None:
        self.known[self.key] = self
        if self.node.tag.removeprefix(_STANDARD) not in _TAGS:
            self.refuse("plain YAML", f"the tag {self.node.tag!r}", "Drop the tag.")

    def refuse(self, wanted: str, found: str | None = None, remedy: str = "Correct it.") -> NoReturn:
        """Raises ConfigError with the file, the line, the key, what was wanted, what was found and what to do."""
        mark = self.node.start_mark
        shown = self.shown if found is None else found
        where = f"{mark.name}, line {mark.line + 1}: " + (f"{self.key}: " if self.key else "")
        raise ConfigError(f"{where}wanted {wanted}, found {shown}. {remedy}")

    @property
    def shown(self) -> str:
        """The value, for a message."""
        if isinstance(self.node, yaml.ScalarNode):
            return "nothing" if self.empty else repr(self.node.value)
        count = len(self.node.value)
        if isinstance(self.node, yaml.SequenceNode):
            return f"a list of {count}"
        return f"a mapping of {count} key{'' if count == 1 else 's'}"

    @property
    def empty(self) -> bool:
        """Whether nothing, or null, stands there."""
        return isinstance(self.node, yaml.ScalarNode) and self.node.tag == _NULL

    def text(self, wanted: str) -> str:
        """A scalar as it is written: `no` is Norwegian, not false."""
        if not isinstance(self.node, yaml.ScalarNode) or self.empty or not self.node.value.strip():
            self.refuse(wanted)
        return str(self.node.value).strip()

    def items(self, wanted: str) -> list[Place]:
        """The places of a list."""
        if not isinstance(self.node, yaml.SequenceNode):
            self.refuse(wanted, remedy="Write it as a list: [a, b].")
        return [Place(node, f"{self.key}[{at}]", self.known) for at, node in enumerate(self.node.value)]

    def entries(self, wanted: str) -> dict[str, Place]:
        """The places of a mapping by key; a key given twice is refused."""
        if not isinstance(self.node, yaml.MappingNode):
            self.refuse(wanted, remedy="Write it as keys and values, indented by two spaces.")
        found: dict[str, Place] = {}
        for name, node in self.node.value:
            inner = f"{self.key}.{name.value}" if self.key else str(name.value)
            if not isinstance(name, yaml.ScalarNode):
                Place(name, self.key, self.known).refuse("a word as a key")
            if name.value in found:
                first = found[name.value].node.start_mark.line + 1
                Place(name, inner, self.known).refuse("each key once", f"it again (first on line {first})", "Drop one.")
            found[name.value] = Place(node, inner, self.known)
        return found


Take = Callable[[Place], Any]
"""Reads a place, or refuses it."""


def compose(text: str, name: str) -> Place:
    """The root of a YAML file; ConfigError for what is no YAML or no mapping. Tags that would make objects are refused.

    Args:
        text: of the file.
        name: of the file, for messages.
    """
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}{_no_yaml(error)}") from None
    except yaml.reader.ReaderError as error:
        line, character = text.count("\n", 0, error.position) + 1, text[error.position]
        raise ConfigError(f"{name}, line {line}: wanted text, found the character {character!r}. Drop it.") from None
    except RecursionError:
        raise ConfigError(f"{name}: wanted a study, found brackets within brackets without end. Correct it.") from None
    if node is None:
        raise ConfigError(f"{name}, line 1: wanted a study, found an empty file. babelscope study --init writes one.")
    root = Place(node, "", {})
    if not isinstance(node, yaml.MappingNode):
        root.refuse("keys and values, such as languages: [en, fr]")
    return root


_SLIPS = {
    r"'\t'": "Indent with spaces, not with tabs.",
    "end of stream": "Close the quote or the bracket.",
    "another document": "Keep one study, and drop the line ---.",
    "expected ':'": "Write key: value.",
    "<block end>": "Give the keys of a section the same indentation.",
    "alias": "Write the value itself.",
}
"""What PyYAML says -> the remedy."""


def _no_yaml(error: yaml.MarkedYAMLError) -> str:
    """What follows the file's name: where it is no YAML and why."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    found = str(error.problem).removeprefix("but ").removeprefix("found ")
    begins = f" (in what begins on line {context.line + 1})" if context and mark and context.line != mark.line else ""
    remedy = next((remedy for said, remedy in _SLIPS.items() if said in found), "Correct it.")
    line = f", line {mark.line + 1}" if mark else ""
    return f"{line}: wanted YAML, found something else: {found}{begins}. {remedy}"


def merged(child: Place, parent: Place) -> Place:
    """A file over the one it extends: sections key by key, every other value as a whole."""

    def over(mine: Any, theirs: Any, depth: int) -> Any:
        if depth == 2 or not (isinstance(mine, yaml.MappingNode) and isinstance(theirs, yaml.MappingNode)):
            return mine
        own = {name.value: value for name, value in mine.value}
        below = {name.value: value for name, value in theirs.value}
        pairs = [(k, over(own[k.value], v, depth + 1) if k.value in own else v) for k, v in theirs.value]
        pairs += [(k, v) for k, v in mine.value if k.value not in below]
        return yaml.MappingNode(mine.tag, pairs, mine.start_mark, mine.end_mark)

    child.entries("a study")  # refuses a key given twice, which merging would hide
    return Place(over(child.node, parent.node, 0), "", {})


# What a value may be


def section(kind: type[_T]) -> Callable[[Place], _T]:
    """A mapping with the keys of a dataclass whose fields were made by `key`."""

    def take(place: Place) -> _T:
        fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
        given = {} if place.empty else place.entries("keys and values")
        for name, value in given.items():
            if name not in fields:
                value.refuse(f"a key of {place.key or 'a study'}", repr(name), did_you_mean(name, fields))
        missing = [
            name
            for name, each in fields.items()
            if name not in given and each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        ]
        if missing:
            about = fields[missing[0]].metadata["about"]
            place.refuse(f"the key {missing[0]} ({about})", "none", f"Add a line {missing[0]}: ...")
        return kind(**{name: fields[name].metadata["take"](value) for name, value in given.items()})

    return take


def key(take: Take, about: str, default: Any = dataclasses.MISSING) -> Any:
    """A field of a section: how it is read, what it means, and what it is if it is left out."""
    metadata = {"take": take, "about": about}
    if isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def whole(low: int = 0) -> Take:
    """A whole number, of at most nine digits."""

    def take(place: Place) -> int:
        wanted = f"a whole number of {low} or more"
        text = place.text(wanted).replace("_", "")
        if len(text) > 9 and text.isdecimal():
            place.refuse(f"{wanted}, of at most nine digits")
        if not text.isdecimal() or int(text) < low:
            place.refuse(wanted)
        return int(text)

    return take


def number(low: float = 0.0) -> Take:
    """A number above `low`; 1e-3 is one here, which YAML takes for text."""

    def take(place: Place) -> float:
        wanted = f"a number above {low:g}"
        try:
            value = float(place.text(wanted))
        except ValueError:
            place.refuse(wanted)
        if not (math.isfinite(value) and value > low):
            place.refuse(wanted)
        return value

    return take


def share_or_count(place: Place) -> int | float:
    """A share below 1, or a whole number."""
    wanted = "a share of all units between 0 and 1 (0.01), or a whole number of units (500)"
    text = place.text(wanted)
    try:
        value: int | float = int(text) if text.isdecimal() and len(text) <= 9 else float(text)
    except ValueError:
        place.refuse(wanted)
    if not (value >= 1 if isinstance(value, int) else 0 < value < 1):
        place.refuse(wanted)
    return value


def flag(place: Place) -> bool:
    """True or false."""
    text = place.text("true or false").lower()
    if text not in ("true", "false"):
        place.refuse("true or false")
    return text == "true"


def text(wanted: str) -> Take:
    """Any text; `wanted` says which."""
    return lambda place: place.text(wanted)


def one_of(names: Iterable[str]) -> Take:
    """One of some words."""
    known = list(names)

    def take(place: Place) -> str:
        wanted = f"one of {', '.join(known)}"
        found = place.text(wanted)
        if found not in known:
            place.refuse(wanted, remedy=did_you_mean(found, known, "Correct it."))
        return found

    return take


def language(place: Place) -> str:
    """A language's code."""
    found = place.text("a language's code, such as fr")
    try:
        return get_language(found).code
    except ConfigError as error:
        place.refuse("a language's code, such as fr", remedy=str(error)[:1].upper() + str(error)[1:] + ".")


def maybe(take: Take) -> Take:
    """That, or null."""
    return lambda place: None if place.empty else take(place)


def many(take: Take, least: int = 1) -> Take:
    """A list without repetitions; a single value is a list of one."""

    def took(place: Place) -> tuple[Any, ...]:
        several = not isinstance(place.node, yaml.ScalarNode)
        places = place.items("a list") if several else [] if place.empty else [place]
        values = tuple(take(each) for each in places)
        for at, value in enumerate(values):
            if value in values[:at]:
                places[at].refuse("each once", f"{value!r} again", "Drop one.")
        if len(values) < least:
            place.refuse(f"a list of {least} or more", f"{len(values)}", "Add more.")
        return values

    return took


def by_key(take_key: Take, take: Take) -> Take:
    """A mapping from anything that one reads to anything that the other reads, in the order of the file."""

    def took(place: Place) -> dict[Any, Any]:
        if not isinstance(place.node, yaml.MappingNode):
            place.refuse("keys and values")
        place.entries("keys and values")
        return {
            take_key(Place(name, place.key, {})): take(Place(node, f"{place.key}.{name.value}", place.known))
            for name, node in place.node.value
        }

    return took


def either(scalar: Take, mapping: Take) -> Take:
    """One reading for a scalar, another for a mapping."""
    return lambda place: (mapping if isinstance(place.node, yaml.MappingNode) else scalar)(place)
