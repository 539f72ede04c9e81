"""Flags made from settings: one flag a field, with its type, its default and its help."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from babelscope.options import Language, Options, Refused, defaults_of, fields_of, help_of, metavar, read, written

SEVERAL_SOURCES = "one source with {} for the language, or LANGUAGE=SOURCE once per language"


def add_options(parser: argparse.ArgumentParser, kind: type[Options], leave_out: Iterable[str] = ()) -> None:
    """Adds a flag for every field of a model of settings.

    Args:
        parser: the command's.
        kind: the settings.
        leave_out: fields that are no flags.
    """
    about, defaults = help_of(kind), defaults_of(kind)
    for name, annotation in fields_of(kind).items():
        if name not in leave_out:
            add_setting(parser, name, annotation, about[name], defaults[name])


def add_setting(
    parser: argparse.ArgumentParser,
    name: str,
    annotation: Any,
    about: str,
    default: Any = dataclasses.MISSING,
    flag: str = "",
) -> None:
    """Adds the flag of one setting. A flag that is not typed leaves no value, so that the default is the library's.

    Args:
        parser: the command's.
        name: the setting; the flag is the same with `-` for `_`.
        annotation: the type, as `babelscope.options.read` knows it.
        about: the help, as a sentence.
        default: the value without the flag, for the help; missing: the help names none.
        flag: another flag than that of the name.
    """
    shown = "" if default is dataclasses.MISSING or default is None else f" (default: {written(default)})"
    text = f"{about.rstrip('.')}{shown}".replace("%", "%%")
    flag = flag or f"--{name.replace('_', '-')}"
    if dict[Language, str] in get_args(_plain(annotation)):
        text = f"{text}; {SEVERAL_SOURCES}"
        parser.add_argument(flag, dest=name, action=_AddSource, default=argparse.SUPPRESS, metavar="SOURCE", help=text)
    elif _plain(annotation) is bool:
        parser.add_argument(
            flag, dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
        )
    else:
        parser.add_argument(
            flag,
            dest=name,
            type=_reader(annotation),
            default=argparse.SUPPRESS,
            metavar=metavar(annotation),
            help=text,
        )


class _AddSource(argparse.Action):
    """LANGUAGE=SOURCE, once per language, or one source for all."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest, None)
        language, sign, source = str(values).partition("=")
        named = bool(sign and language.replace("-", "").isalnum())
        if before is not None and not (named and isinstance(before, dict)):
            raise argparse.ArgumentError(self, "wanted LANGUAGE=SOURCE once per language, or one source for all")
        if not named:
            setattr(namespace, self.dest, values)
            return
        try:
            code = read(Language, language)
        except Refused as error:
            raise argparse.ArgumentError(self, f"wanted {error.wanted}, found {error.found}. {error.remedy}") from None
        if code in (before or {}):
            raise argparse.ArgumentError(self, f"wanted one source of {code}, found two. A folder or a glob is one.")
        setattr(namespace, self.dest, {**(before or {}), code: source})


def given(args: argparse.Namespace, names: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were typed."""
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def _reader(annotation: Any) -> Callable[[str], Any]:
    def value_of(text: str) -> Any:
        try:
            return read(annotation, text, text=True)
        except Refused as error:
            raise argparse.ArgumentTypeError(f"wanted {error.wanted}, found {error.found}. {error.remedy}") from None

    return value_of


def _plain(annotation: Any) -> Any:
    """The type without conditions and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else annotation
    return annotation
