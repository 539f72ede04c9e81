"""Settings as frozen, checked models: a Python call, a command's flags and a section of a study file share them.

A model is a class with annotated fields. Each field has its type, its default, and below it a docstring that is its
help everywhere. `read` turns what stands in a file or behind a flag into the value of a type, or says what was wanted,
what was found and what to do. It needs the standard library only, so that the library runs where nothing else can be
installed and the help of a command appears at once (docs/decisions/0022).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    Self,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from babelscope.errors import ConfigError, did_you_mean
from babelscope.languages import get_language

TOO_LONG = ", of at most nine digits"
NONE_WORDS = ("null", "none")
"""Words for no value, in a file and behind a flag."""


class Refused(ConfigError):
    """A value that a setting can't have.

    Attributes:
        key: the setting, dotted: `grid.limit`.
        wanted: the values that it can have.
        found: the value that was given, as text.
        remedy: a sentence that says what to do.
    """

    def __init__(self, key: str, wanted: str, found: str, remedy: str = "Correct it.") -> None:
        super().__init__(f"{f'{key}: ' if key else ''}wanted {wanted}, found {found}. {remedy}")
        self.key, self.wanted, self.found, self.remedy = key, wanted, found, remedy


@dataclass(frozen=True)
class Rule:
    """A condition on a value beside its type; stands in `Annotated`."""

    wanted: str
    """The values that fulfil it, as a noun phrase: `a whole number of 1 or more`."""
    holds: Callable[[Any], bool] = lambda value: True
    """Whether a value of the type fulfils it."""
    metavar: str = ""
    """The placeholder behind a flag."""
    convert: Callable[[Any], Any] = lambda value: value
    """Brings a value into its usual form; ConfigError refuses it, and its message is the remedy."""


@dataclass(frozen=True)
class Choice:
    """One of the names that a function gives; stands in `Annotated`, where the names are known only at run time."""

    names: Callable[[], Iterable[str]]
    metavar: str = "NAME"


def at_least(least: int) -> Rule:
    """Whole numbers from `least`."""
    return Rule(f"a whole number of {least} or more", lambda value: value >= least, "N")


Count = Annotated[int, at_least(1)]
Several = Annotated[int, at_least(2)]
NonNegative = Annotated[int, at_least(0)]
Controls = Annotated[int, Rule("0 or at least 2: one draw is no control", lambda value: value == 0 or value >= 2, "N")]
Positive = Annotated[float, Rule("a number above 0", lambda value: value > 0, "X")]
Share = Annotated[float, Rule("a share above 0 and at most 1", lambda value: 0 < value <= 1, "X")]
Budget = Annotated[
    int | float,
    Rule(
        "a share of all units between 0 and 1 (0.01), or a whole number of units (500)",
        lambda value: value >= 1 if isinstance(value, int) else 0 < value < 1,
        "X",
    ),
]
Language = Annotated[
    str, Rule("a language's code, such as fr", metavar="LANGUAGE", convert=lambda text: get_language(text).code)
]


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,))
class Options:
    """Base of every model of settings. A subclass is a frozen data class whose values are checked when it is made.

    Raises:
        Refused: a value that a field can't have, or values that contradict each other.
    """

    about: ClassVar[Mapping[str, str]] = {}
    """Help of fields that were added by `extended`, which have no docstring below them."""

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        """Checks every value and brings it into its usual form."""
        for name, annotation in fields_of(type(self)).items():
            object.__setattr__(self, name, read(annotation, getattr(self, name), name))
        self.check()

    def check(self) -> None:
        """Refuses values that contradict each other; a subclass says which."""

    @classmethod
    def of(cls, given: Mapping[str, Any], key: str = "", *, text: bool = False) -> Self:
        """Settings from a mapping.

        Args:
            given: field -> value; fields that are left out have their defaults.
            key: the dotted name of the section, for messages.
            text: numbers and the like may be given as text, as in a file or behind a flag.

        Raises:
            Refused: an unknown or missing field, or a value that it can't have.
        """
        annotations, prefix = fields_of(cls), f"{key}." if key else ""
        for name in given:
            if name not in annotations:
                remedy = did_you_mean(str(name), annotations)
                raise Refused(f"{prefix}{name}", f"a key of {key or cls.__name__}", repr(name), remedy)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.name not in given and is_required(field):
                wanted = f"the key {field.name} ({help_of(cls)[field.name]})"
                raise Refused(key, wanted, "none", f"Add a line {field.name}: ...")
        values = {name: read(annotations[name], value, f"{prefix}{name}", text=text) for name, value in given.items()}
        try:
            return cls(**values)
        except Refused as error:
            raise Refused(f"{prefix}{error.key}", error.wanted, error.found, error.remedy) from None

    def changed(self, **changes: Any) -> Self:
        """The same settings with some of them changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def as_json(self) -> dict[str, Any]:
        """All settings as plain data, defaults included."""
        return dict(_plain(dataclasses.asdict(self)))  # type: ignore[call-overload]

    def refuse(self, name: str, wanted: str, remedy: str = "Correct it.") -> NoReturn:
        """Raises `Refused` for the value that a field has."""
        raise Refused(name, wanted, shown(getattr(self, name)), remedy)


def extended(kind: type[Options], name: str, settings: Mapping[str, tuple[Any, str]]) -> type[Options]:
    """A model of settings with more fields, each of them None where it is not given.

    Args:
        kind: the model to extend.
        name: the name of the new class.
        settings: field -> its type and its help.
    """
    content: dict[str, Any] = {field: None for field in settings}
    content["__annotations__"] = {field: annotation | None for field, (annotation, _) in settings.items()}
    content["about"] = {**kind.about, **{field: about for field, (_, about) in settings.items()}}
    content |= {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(name, (kind,), content)


def without(kind: type[Options], name: str, leave_out: Iterable[str]) -> type[Options]:
    """A model of settings with the fields of another one but some.

    Args:
        kind: the model that the fields are taken from.
        name: the name of the new class.
        leave_out: fields that it does not have.
    """
    about, left = help_of(kind), set(leave_out)
    content: dict[str, Any] = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
        if field.name not in left
    }
    annotations = {field: annotation for field, annotation in fields_of(kind).items() if field not in left}
    content = {field: default for field, default in content.items() if default is not dataclasses.MISSING}
    content["__annotations__"] = annotations
    content["about"] = {field: about[field] for field in annotations}
    content |= {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return type(name, (Options,), content)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def defaults_of(kind: type[Options]) -> dict[str, Any]:
    """Field -> default; `dataclasses.MISSING` where there is none."""
    return {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)  # type: ignore[arg-type]
    }


def fields_of(kind: type[Any]) -> dict[str, Any]:
    """Field -> its type, with what stands in `Annotated`."""
    if kind not in _FIELDS:
        hints = get_type_hints(kind, include_extras=True)
        _FIELDS[kind] = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return _FIELDS[kind]


_FIELDS: dict[type[Any], dict[str, Any]] = {}
"""The answers of `fields_of`, which take a while."""


def help_of(kind: type[Any]) -> dict[str, str]:
    """Field -> the docstring below it, of the class and of those that it inherits from."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not (issubclass(base, Options) and base is not Options):
            continue
        if "about" in vars(base):
            found |= base.about
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            docstring = below.value.value if _is_text(below) else None
            if docstring and isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                found[field.target.id] = " ".join(docstring.split())
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Reading a value


def read(annotation: Any, value: Any, key: str = "", *, text: bool = False) -> Any:
    """The value of a type.

    Args:
        annotation: a type: int, float, bool, str, Path, Literal, a tuple, a mapping, a union, a model of settings, each
            alone or in `Annotated` with `Rule` or `Choice`.
        value: what was given.
        key: the dotted name of the setting, for messages.
        text: numbers and the like may be given as text; one value may stand for a list of one.

    Raises:
        Refused: the value can't be one of the type.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _read_annotated(inner[0], inner[1:], value, key, text)
    if origin in (Union, types.UnionType):
        return _read_union(inner, value, key, text)
    if annotation is Any:
        return value
    if origin is Literal:
        if value not in inner:
            remedy = did_you_mean(str(value), map(str, inner), "Correct it.")
            raise Refused(key, describe(annotation), shown(value), remedy)
        return value
    if origin is tuple:
        return _read_tuple(inner, value, key, text)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise Refused(key, describe(annotation), shown(value))
        return {
            read(inner[0], name, key, text=text): read(inner[1], item, f"{key}.{name}", text=text)
            for name, item in value.items()
        }
    if isinstance(annotation, type) and issubclass(annotation, Options):
        if isinstance(value, annotation):
            return value
        if not isinstance(value, Mapping):
            raise Refused(key, describe(annotation), shown(value))
        return annotation.of(value, key, text=text)
    return _read_scalar(annotation, value, key, text)


def _read_annotated(base: Any, rules: Sequence[Any], value: Any, key: str, text: bool) -> Any:
    wanted, given = describe(Annotated[base, *rules]), value
    try:
        value = read(base, value, key, text=text)
    except Refused as error:
        too_long = TOO_LONG if error.wanted.endswith(TOO_LONG) else ""
        raise Refused(error.key, f"{wanted}{too_long}", error.found, error.remedy) from None
    for rule in rules:
        if isinstance(rule, Choice):
            names = list(rule.names())
            if value not in names:
                raise Refused(key, wanted, shown(given), did_you_mean(str(value), names, "Correct it."))
        elif isinstance(rule, Rule):
            if not rule.holds(value):
                raise Refused(key, wanted, shown(given))
            try:
                value = rule.convert(value)
            except Refused:
                raise
            except ConfigError as error:
                remedy = str(error)[:1].upper() + str(error)[1:]
                raise Refused(key, wanted, shown(given), remedy if remedy.endswith(".") else f"{remedy}.") from None
    return value


def _read_union(kinds: Sequence[Any], value: Any, key: str, text: bool) -> Any:
    if type(None) in kinds and (value is None or (text and isinstance(value, str) and value.lower() in NONE_WORDS)):
        return None
    refusals = []
    for kind in kinds:
        if kind is type(None) or _is_structured(kind) != isinstance(value, Mapping | Options):
            continue
        try:
            return read(kind, value, key, text=text)
        except Refused as error:
            refusals.append(error)
    if len(refusals) == 1 and not isinstance(value, list | tuple):
        raise refusals[0]
    raise Refused(key, describe(Union[tuple(kinds)]), shown(value))  # noqa: UP007


def _is_structured(kind: Any) -> bool:
    """Whether values of a type are written as keys and values."""
    return get_origin(kind) in (dict, Mapping) or (isinstance(kind, type) and issubclass(kind, Options))


def _read_tuple(kinds: Sequence[Any], value: Any, key: str, text: bool) -> tuple[Any, ...]:
    if text and isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    elif text and value is None:
        value = []
    elif isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise Refused(key, describe(tuple[tuple(kinds)]), shown(value), "Write it as a list: [a, b].")  # type: ignore[misc]
    items = list(value)
    if kinds[-1] is not Ellipsis:
        if len(items) != len(kinds):
            raise Refused(key, describe(tuple[tuple(kinds)]), shown(value))  # type: ignore[misc]
        return tuple(read(kind, item, key, text=text) for kind, item in zip(kinds, items, strict=True))
    found = tuple(read(kinds[0], item, f"{key}[{at}]", text=text) for at, item in enumerate(items))
    for at, item in enumerate(found):
        if item in found[:at]:
            raise Refused(f"{key}[{at}]", "each once", f"{shown(item)} again", "Drop one.")
    return found


def _read_scalar(kind: Any, value: Any, key: str, text: bool) -> Any:
    if kind is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if kind is str and isinstance(value, str) and value.strip():
        return value.strip() if text else value
    given = value
    if text and isinstance(value, str):
        value = _from_text(kind, value.strip())
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**9:
            raise Refused(key, f"{describe(kind)}{TOO_LONG}", shown(given))
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise Refused(key, describe(kind), shown(given))


def _from_text(kind: Any, text: str) -> Any:
    """The number or truth value that a text says; the text itself where it says none."""
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    digits = text.replace("_", "").removeprefix("-")
    if kind is int and digits.isdecimal():
        return int(text.replace("_", "")) if len(digits) < 20 else 10**9  # too long a number in any case
    try:
        return float(text) if kind is float else text
    except ValueError:
        return text


# Describing types and values


def describe(annotation: Any) -> str:
    """The values of a type, as a noun phrase for messages."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for rule in inner[1:]:
            if isinstance(rule, Rule):
                return rule.wanted
            if isinstance(rule, Choice):
                return f"one of {', '.join(rule.names())}"
        return describe(inner[0])
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys("null" if kind is type(None) else describe(kind) for kind in inner))
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}" if len(inner) > 1 else str(inner[0])
    if origin is tuple:
        if inner[-1] is not Ellipsis:
            return f"{len(inner)} values, each {describe(inner[0])}"
        return f"a list, each {describe(inner[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Options) and len(fields_of(annotation)) <= 3:
        return " and ".join(f"{name}: {metavar(kind)}" for name, kind in fields_of(annotation).items())
    if _is_structured(annotation):
        return "keys and values"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(annotation, "a path" if annotation is Path else "a value")


def metavar(annotation: Any) -> str:
    """The placeholder of a type's values behind a flag."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = [rule.metavar for rule in inner[1:] if isinstance(rule, Rule | Choice) and rule.metavar]
        return named[0] if named else metavar(inner[0])
    if origin in (Union, types.UnionType):
        return next(metavar(kind) for kind in inner if kind is not type(None))
    if origin is Literal:
        return "{" + ",".join(map(str, inner)) + "}"
    if origin is tuple:
        return f"{metavar(inner[0])},..." if inner[-1] is Ellipsis else ",".join(map(metavar, inner))
    return {int: "N", float: "X", Path: "PATH", str: "TEXT"}.get(annotation, "VALUE")


def shown(value: Any) -> str:
    """A value for a message or a help line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)} key{'' if len(value) == 1 else 's'}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:80]}..."


def written(value: Any) -> str:
    """A value as a study file and a flag say it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {written(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def _plain(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return str(content) if isinstance(content, Path) else content
