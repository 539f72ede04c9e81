"""`python -m babelscope.tinybabel train`: makes the shipped model again."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from babelscope.errors import BabelscopeError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m babelscope.tinybabel", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the model from its recipe; started again, it goes on")
    train.add_argument("--out", type=Path, default=Path("runs/tinybabel"), help="run folder (default: %(default)s)")
    train.add_argument("--quick", action="store_true", help="a much smaller model, in under a minute")
    train.add_argument("--device", default="cpu", help="where to train (default: %(default)s)")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from babelscope.tinybabel.recipe import FULL, QUICK
    from babelscope.tinybabel.recipe import train as run

    try:
        made = run(asked.out, QUICK if asked.quick else FULL, asked.device, report=lambda line: print(line, flush=True))
    except BabelscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"the model is in {made}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
