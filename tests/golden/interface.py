"""The interface as data: the public names, every command with its flags, every key of a study file.

python tests/golden/interface.py      write interface.json anew: only where the interface was to change
"""

from __future__ import annotations

import argparse
import inspect
import json
import tempfile
from pathlib import Path
from typing import Any

import babelscope
from babelscope import cli
from babelscope.study.config import load_study

FILE = Path(__file__).resolve().parent / "interface.json"
STUDY = """\
models: [some-model]
languages: [en, fr]
stages: [detect]
corpora: {detect: "a-{}.txt", held_out: "b-{}.txt", validation: "c-{}.txt"}
"""
"""A study that says only what has to be said: everything else is a default."""


def interface() -> dict[str, Any]:
    return {"names": names(), "commands": commands(), "study": study()}


def names() -> dict[str, Any]:
    """Public name -> its parameters with their defaults; of a class also its public members."""
    content: dict[str, Any] = {}
    for name in babelscope.__all__:
        value = getattr(babelscope, name)
        if inspect.isclass(value):
            content[name] = {"()": _parameters(value)} | {
                member: _parameters(getattr(value, member)) if callable(getattr(value, member)) else None
                for member in _members(value)
            }
        else:
            content[name] = _parameters(value) if callable(value) else None
    return content


def _members(value: type) -> list[str]:
    """Public members that classes of Babelscope define: those inherited from a library change with its version."""
    ours = [parent for parent in value.__mro__ if parent.__module__.startswith("babelscope")]
    return sorted({name for parent in ours for name in vars(parent) if not name.startswith("_")})


def _parameters(function: Any) -> list[str]:
    """Names in order, each with its kind where it is not positional, and its default."""
    marks = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**", "KEYWORD_ONLY": "--"}
    return [
        marks.get(parameter.kind.name, "")
        + parameter.name
        + ("" if parameter.default is parameter.empty else f"={parameter.default!r}")
        for parameter in inspect.signature(function).parameters.values()
    ]


def commands() -> dict[str, Any]:
    """Command -> flag -> whether it is required, its default, choices and number of values."""
    (subparsers,) = (action for action in cli.build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return {name: _flags(parser) for name, parser in subparsers.choices.items()}


def _flags(parser: argparse.ArgumentParser) -> dict[str, Any]:
    return {
        " ".join(action.option_strings) or str(action.metavar): {
            "required": action.required,
            "default": _plain(action.default),
            "choices": None if action.choices is None else [str(choice) for choice in action.choices],
            "values": action.nargs,
        }
        for action in parser._actions
        if not isinstance(action, argparse._HelpAction)
    }


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return [str(item) for item in value] if isinstance(value, list | tuple) else str(value)


def study() -> dict[str, Any]:
    """Every key of a study file with its default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study.yaml"
        path.write_text(STUDY, encoding="utf-8")
        return load_study(path).as_json()


if __name__ == "__main__":
    FILE.write_text(json.dumps(interface(), indent=1) + "\n", encoding="utf-8")
