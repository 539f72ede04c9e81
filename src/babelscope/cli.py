"""The command `babelscope`: from what was typed to a call of the library, to text or JSON. No logic of its own.

Exit codes: 0; 1 for an error that Babelscope explains; 2 for a command that can't be understood; 130 for Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import babelscope
from babelscope.errors import BabelscopeError, ConfigError, RunFolderError
from babelscope.languages import get_language
from babelscope.show.describe import atlas_content, describe, run_state, sets_content
from babelscope.show.draw import draw, draw_demo, draw_detected, draw_plan, draw_read, draw_selected
from babelscope.show.support import draw_support, support, support_markdown
from babelscope.show.terminal import Screen, clean
from babelscope.tinybabel.grammar import LANGUAGES

PRESETS = ("default", "paper", "released")
KERNELS = ("auto", "compiled", "eager", "reference")
"""As in the library, where these can't be had without torch; a test compares."""


@dataclass(frozen=True)
class Answer:
    """What a command found: plain data for --json, and how to draw it."""

    content: Mapping[str, Any]
    draw: Callable[[Screen], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: the words after `babelscope`; None: those of this process.

    Returns:
        The exit code. A command that can't be understood raises SystemExit(2), as argparse does.
    """
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character gets its number, not a crash
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _log_on_stderr(args):
            answer: Answer = args.run(args)
        if args.json:
            print(json.dumps(_plain(answer.content), indent=2))
        else:
            print("\n".join(answer.draw(Screen.of(sys.stdout))))
        sys.stdout.flush()
    except BrokenPipeError:  # babelscope show ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (BabelscopeError, OSError) as error:
        if args.debug or os.environ.get("BABELSCOPE_DEBUG") == "1":
            traceback.print_exc()
        _say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        resumes = args.command == "detect" and not args.dry_run
        _say(f"interrupted; the same command goes on in {args.out}" if resumes else "interrupted; type it again")
        return 130
    return 0


# Commands


def _detect(args: argparse.Namespace) -> Answer:
    corpora = _corpora(args)
    state = run_state(args.out)
    if state is not None and state["state"] == "unfinished":
        done = sum(each == "finished" for each in state["languages"].values())
        _say(f"found an unfinished run in {args.out} ({done} of {len(state['languages'])} languages finished)")
    _quieten_transformers()
    import torch

    from babelscope.detection.atlas import FILE
    from babelscope.detection.detect import detect, plan
    from babelscope.models.load import load_model

    loading = {name: getattr(args, name) for name in ("dtype", "device_map", "revision", "trust_remote_code")}
    model, tokenizer = load_model(args.model, **loading)
    if args.device_map is None and torch.cuda.is_available() and model.device.type == "cpu":
        model.to("cuda")  # device_map="cuda" would need accelerate
    names = ("documents", "max_tokens", "min_tokens", "preset", "slots", "top_shares", "thresholds", "seed", "field")
    options = {name: getattr(args, name) for name in (*names, "shard", "token_budget", "kernel")}
    if args.dry_run:
        planned = {"dry_run": True, **asdict(plan(model, tokenizer, corpora, **options))}
        return Answer(planned, lambda screen: draw_plan(planned, screen))
    started = time.monotonic()
    with _log_above_progress():
        atlas = detect(model, tokenizer, corpora, **options, run_dir=args.out)
    content = {
        "out": str(args.out),
        "file": str(args.out / FILE),
        "state": {"unfinished": "resumed", "finished": "finished before"}[state["state"]] if state else "new",
        "seconds": round(time.monotonic() - started, 3),
        **atlas_content(atlas),
    }
    return Answer(content, lambda screen: draw_detected(content, screen))


def _select(args: argparse.Namespace) -> Answer:
    from babelscope.detection.atlas import Atlas

    atlas = Atlas.load(args.path)
    languages = [get_language(code).code for code in args.language or atlas.languages]
    names = ("rule", "budget", "eps", "top_k", "min_support", "per_slot", "slots", "exclude", "statistic")
    options = {name: getattr(args, name) for name in (*names, "own", "others") if getattr(args, name) is not None}
    sets = {language: atlas.select(language, **options) for language in languages}
    folder = args.out or (args.path if args.path.is_dir() else args.path.parent) / "neurons"
    for language, neurons in sets.items():
        neurons.save(folder / f"{language}.safetensors")
    content = {"folder": str(folder), **sets_content(sets)}
    return Answer(content, lambda screen: draw_selected(content, screen))


def _show(args: argparse.Namespace) -> Answer:
    _quieten_transformers()
    content = describe(args.path, args.top)
    return Answer(content, lambda screen: draw(content, screen))


def _merge(args: argparse.Namespace) -> Answer:
    from babelscope.detection.atlas import FILE, Atlas

    out = args.out if args.out.suffix == ".safetensors" else args.out / FILE
    if out.exists() or (out.parent / "run.json").exists():
        raise RunFolderError(f"{args.out} holds a run or an atlas already. Give a new place first, then the atlases.")
    merged = Atlas.load(args.first)
    for path in args.more:
        merged = merged | Atlas.load(path)
    merged.save(out)
    content = {"file": str(out), **atlas_content(merged)}
    title = f"Merged {1 + len(args.more)} atlases"
    return Answer(content, lambda screen: draw_read(title, str(args.out), content, screen))


def _models(args: argparse.Namespace) -> Answer:
    content = {"families": support()}
    return Answer(content, lambda screen: [support_markdown()] if args.markdown else draw_support(screen))


def _demo(args: argparse.Namespace) -> Answer:
    _quieten_transformers()
    from babelscope.demo import demo

    with _log_above_progress():
        content = demo(args.out, documents=args.documents, report=_say)
    return Answer(content, lambda screen: draw_demo(content, screen))


def _tinybabel(args: argparse.Namespace) -> Answer:
    from babelscope.tinybabel.tasks import export

    written = export(args.out, args.items, args.language)
    content = {"folder": str(args.out), "files": [str(path.relative_to(args.out)) for path in written]}
    told = f"{len(written)} task files in {args.out}: mgsm, xquad, xcsqa, xlsum, and prompts.json"
    return Answer(content, lambda screen: [told])


def _corpora(args: argparse.Namespace) -> dict[str, Any]:
    """Sources by language, opened now, so that a wrong path shows before minutes of loading a model."""
    from babelscope.corpora.sources import open_corpus

    given: dict[str, list[str]] = {}
    for language, source in args.corpus:
        given.setdefault(get_language(language).code, []).append(source)
    if sum(sources.count("-") for sources in given.values()) > 1:
        raise ConfigError("standard input (-) can be read only once. Save the text to files and give their paths.")
    corpora: dict[str, Any] = {}
    for language, sources in given.items():
        opened = [open_corpus(source, field=args.field, seed=args.seed) for source in sources]
        if len(opened) > 1 and any(corpus.kind in ("hub", "stdin") for corpus in opened):
            raise ConfigError(f"{language}: standard input or a Hub dataset must be a language's only source. Save it.")
        corpora[language] = opened[0] if len(opened) == 1 else [Path(source) for source in sources]
    return corpora


# Messages


def _say(text: str) -> None:
    print("babelscope: " + clean(text, keep="\n"), file=sys.stderr)


class _LogLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "warning: " if record.levelno >= logging.WARNING else ""
        return f"babelscope: {level}{clean(record.getMessage(), keep=chr(10))}"


@contextmanager
def _log_on_stderr(args: argparse.Namespace) -> Iterator[None]:
    """The library's warnings; and in a file, where no progress bar is drawn, how detection goes on."""
    logger = logging.getLogger("babelscope")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(_LogLine())
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if args.command != "detect" or sys.stderr.isatty() else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _log_above_progress() -> Iterator[None]:
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([logging.getLogger("babelscope")]):
        yield


def _quieten_transformers() -> None:
    """Keeps its notes and its bar for loading weights off the terminal; downloads, which take long, keep theirs."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if sys.stderr.isatty() and "HF_HUB_DISABLE_PROGRESS_BARS" not in os.environ:
        enable_progress_bars()


def _plain(content: Any) -> Any:
    """What JSON can hold: NaN and infinity become null."""
    if isinstance(content, Mapping):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


# Arguments


def build_parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    parser = argparse.ArgumentParser(
        "babelscope", description="Find the neurons of a language model that carry a language."
    )
    parser.add_argument("--version", action="version", version=f"babelscope {babelscope.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    common.add_argument("--debug", action="store_true", help="show where an error arose (also BABELSCOPE_DEBUG=1)")

    def command(name: str, run: Callable[[argparse.Namespace], Answer], about: str) -> Callable[..., argparse.Action]:
        made = commands.add_parser(name, parents=[common], help=about, description=f"{about.capitalize()}.")
        made.set_defaults(run=run)
        return made.add_argument

    add = command("detect", _detect, "score every neuron on the documents of every language")
    add("model", metavar="MODEL", help="a folder, or a name on the Hugging Face Hub")
    add(
        "--corpus", action="append", required=True, type=_corpus, metavar="LANGUAGE=SOURCE",
        help="text of a language, such as fr=french.txt: txt, jsonl or parquet (also .gz, .zst), a folder, a glob, "
        "- for standard input, or hub:NAME:CONFIG:FIELD; several files of a language each with its own --corpus",
    )  # fmt: skip
    add("--documents", type=int, metavar="N", help="per language, drawn at random (all)")
    add("--max-tokens", type=int, default=256, metavar="N", help="cut documents to this length (%(default)s)")
    add("--min-tokens", type=int, default=8, metavar="N", help="skip shorter documents (%(default)s)")
    add("--preset", choices=PRESETS, default="default", help="how impacts are measured (%(default)s)")
    add("--slots", type=_names, metavar="SLOTS", help="of q,k,v,o,ffn (those of the preset)")
    add(
        "--top-shares",
        type=numbers,
        default=(0.01, 0.05, 0.1, 0.25),
        metavar="X,X",
        help="that --top-k may name later",
    )
    add("--thresholds", type=numbers, default=(), metavar="X,X", help="that --eps with --min-support may name later")
    add("--field", default="text", metavar="NAME", help="of jsonl and parquet that holds the text (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw (%(default)s)")
    add("--shard", type=_shard, default=(0, 1), metavar="I/N", help="every N-th document from the I-th; see merge")
    add("--token-budget", type=int, metavar="N", help="tokens of a batch, padding included (by device)")
    add("--kernel", choices=KERNELS, default="auto", help="that computes attention impacts (%(default)s)")
    add("--dtype", default="auto", metavar="NAME", help="of the loaded weights: float32, bfloat16, ... (as saved)")
    add("--device-map", metavar="MAP", help="auto, cpu, cuda:1, ...; needs accelerate (the first GPU, else the CPU)")
    add("--revision", metavar="R", help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run code that the model brings along")
    add("--out", type=Path, required=True, metavar="DIR", help="the run folder; the same command again resumes it")
    add("--dry-run", action="store_true", help="print what would be done and write nothing")

    add = command("select", _select, "choose the neurons of each language from a run")
    add("path", type=Path, metavar="RUN", help="a run folder or an atlas file")
    add("--language", nargs="+", action="extend", metavar="LANGUAGE", help="only these (all)")
    add("--rule", metavar="RULE", help="contrast, minimum, released or lape (that of the preset)")
    add("--budget", type=number, metavar="X", help="how many: a share of all units below 1, or a number")
    add("--eps", type=float, metavar="X", help="minimum: the impact to reach in the documents")
    add("--top-k", type=number, metavar="X", help="minimum, released: among the top of its layer, a share or a number")
    add("--min-support", type=float, metavar="X", help="share of documents in which --eps or --top-k must hold (1)")
    add("--per-slot", action="store_true", default=None, help="split the budget over the slots by their size")
    add("--slots", type=_names, metavar="SLOTS", help="only these of q,k,v,o,ffn")
    add("--exclude", metavar="WHAT", help="shared, others, or a language, whose neurons are taken away")
    add("--statistic", metavar="NAME", help="contrast: impact or activation")
    add("--own", metavar="NAME", help="contrast: mean or minimum over the language's documents")
    add("--others", metavar="NAME", help="contrast: max or mean over the other languages")
    add("--out", type=Path, metavar="DIR", help="where the neuron files go (RUN/neurons)")

    add = command("show", _show, "look at a run, an atlas, neuron files or a model folder")
    add("path", type=Path, metavar="PATH")
    add("--top", type=int, default=10, metavar="N", help="list the best N of a neuron file (%(default)s)")

    add = command("merge", _merge, "join atlases of shards or of languages into one")
    add("out", type=Path, metavar="OUT", help="new: a folder, or a file that ends in .safetensors")
    add("first", type=Path, metavar="PATH", help="two or more run folders or atlas files")
    add("more", type=Path, nargs="+", metavar="PATH", help=argparse.SUPPRESS)

    add = command("demo", _demo, "run the argument of the paper on the embedded model: detect, select, switch off")
    add("--documents", type=int, default=150, metavar="N", help="per language (%(default)s)")
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="the run folder (%(default)s)")

    add = command("tinybabel", _tinybabel, "write the tasks of the embedded model in the layouts of the benchmarks")
    add("action", choices=("export",), metavar="export", help="the only thing to do so far")
    add("out", type=Path, metavar="DIR", help="new")
    add("--items", type=int, default=200, metavar="N", help="per task, language and split (%(default)s)")
    add("--language", nargs="+", default=LANGUAGES, choices=LANGUAGES, metavar="LANGUAGE", help="only these (all)")

    add = command("models", _models, "list the supported models")
    add("--markdown", action="store_true", help="as a Markdown table")
    return parser


def _corpus(text: str) -> tuple[str, str]:
    language, _, source = text.partition("=")
    if not (language and source):
        raise argparse.ArgumentTypeError(f"wanted LANGUAGE=SOURCE, such as fr=french.txt, found {text!r}")
    return language, source


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def numbers(text: str) -> tuple[float, ...]:
    """Several, with commas between; argparse puts the name of this function into its message."""
    return tuple(float(each) for each in text.split(",") if each)


def number(text: str) -> int | float:
    """A number, or a share."""
    return float(text) if not text.isdecimal() else int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted I/N, such as 0/4 for the first of four, found {text!r}")
    return int(index), int(count)
