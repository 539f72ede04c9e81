"""`python -m babelscope.tinybabel`: `train` makes the shipped model again, `sample` prints sentences for review."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from babelscope.errors import BabelscopeError
from babelscope.languages import get_language
from babelscope.tinybabel.grammar import LANGUAGES, grammar, schema
from babelscope.tinybabel.texts import NEWS, Line, pick, say
from babelscope.tinybabel.world import SEED, fact


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m babelscope.tinybabel", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train the model from its recipe; started again, it goes on")
    train.add_argument("--out", type=Path, default=Path("runs/tinybabel"), help="run folder (default: %(default)s)")
    train.add_argument("--quick", action="store_true", help="a much smaller model, in under a minute")
    train.add_argument("--device", default="cpu", help="where to train (default: %(default)s)")
    sample = commands.add_parser("sample", help="sentences of every language, each with its English, as Markdown")
    sample.add_argument("--count", type=int, default=20, help="per language (default: %(default)s)")
    asked = parser.parse_args(arguments)
    if asked.command == "sample":
        print("\n".join(_samples(asked.count)))
        return 0
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


def _samples(count: int) -> Iterator[str]:
    """Sentences drawn at random, every relation in its turn, told in a language and in English."""
    relations = list(schema()["relations"])
    for code in LANGUAGES[1:]:
        yield f"## {get_language(code).name}\n"
        rng = Random(f"{SEED}:samples:{code}")
        more = rng.choices(relations, k=max(0, count - len(relations)))
        for relation in rng.sample(relations, min(count, len(relations))) + more:
            line = Line(fact(relation, rng), pick(("say", "say", "summary") if relation in NEWS else ("say",), rng))
            yield f"- {say(grammar(code), line, rng).text}  \n  _{say(grammar('en'), line, rng).text}_"
        yield ""


if __name__ == "__main__":
    sys.exit(main())
