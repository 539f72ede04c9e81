"""From what was typed to a command with its values, or to what is wrong with it."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import NoReturn

import babelscope
from babelscope.cli.flags import COMMANDS
from babelscope.cli.stages import stage_flags
from babelscope.errors import did_you_mean
from babelscope.stages.contract import STAGES


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command and its flags.

    Args:
        argv: the words after `babelscope`.

    Returns:
        The values by name; `command` is the command.

    Raises:
        SystemExit: 2 for what can't be understood, 0 after --help or --version; what there is to say has been said.
    """
    parser = build_parser(next((word for word in argv if not word.startswith("-")), ""))
    _refuse_slips(parser, argv)
    args = parser.parse_args(argv)
    args.typed = list(argv)
    return args


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The commands and their flags.

    Args:
        command: only this one gets its flags, which take a moment to read from the stages; None: all.
    """
    parser = _Parser(
        "babelscope",
        description="Find the neurons of a language model that carry a language.",
        epilog="Begin with babelscope demo: the whole argument on the embedded model, offline, in minutes. "
        "babelscope COMMAND --help explains a command.",
        allow_abbrev=False,
    )
    parser.add_argument("-V", "--version", action="version", version=f"babelscope {babelscope.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--debug", action="store_true", help="show where an error arose (also BABELSCOPE_DEBUG=1)")
    own = {name for name, *_ in COMMANDS}
    others = [
        (name, f"run the stage {name}, which another package brings", stage_flags(name), "MODEL --out DIR")
        for name in STAGES.names()
        if name not in own
    ]
    for name, about, flags, example in (*COMMANDS, *others):
        made = commands.add_parser(
            name,
            parents=[common],
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            epilog=f"example:\n  babelscope {name} {example}".rstrip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example is to be copied: it is not wrapped
            allow_abbrev=False,
        )
        if command in (None, name):
            flags(made)
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says what is wrong, without the usage, which can fill a screen."""
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists what there is.\n")


def _refuse_slips(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Names an unknown command or flag, of which argparse would say that another one is missing."""
    (commands,) = (each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    words = list(argv)
    if words and not words[0].startswith("-"):
        command = words.pop(0)
        if command not in commands:
            parser.error(f"unknown command {command!r}. {did_you_mean(command, commands)}")
        parser = commands[command]
    known = parser._option_string_actions
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag = word.partition("=")[0]
        number = not word[1:2].strip(".0123456789")
        if word.startswith("-") and not number and " " not in word and flag not in known:
            parser.error(f"unknown flag {flag}. {did_you_mean(flag, known)}")
