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
from babelscope.show.edited import before_and_after, draw_before_and_after, draw_exported
from babelscope.show.evaluated import draw_evaluated, draw_grid
from babelscope.show.lensed import draw_lens, lens_content
from babelscope.show.studied import draw_studied, draw_study_plan, draw_template
from babelscope.show.support import draw_support, support, support_markdown
from babelscope.show.terminal import Screen, clean
from babelscope.show.tuned import draw_experiment, draw_planned, draw_tuned, write_figures
from babelscope.tinybabel.grammar import LANGUAGES

PRESETS = ("default", "paper", "released")
KERNELS = ("auto", "triton", "compiled", "eager", "reference")
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
        if os.environ.get("RANK", "0") != "0":  # of torchrun or accelerate launch: the first process speaks for all
            return 0
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
        kept = args.command in ("detect", "tune", "grid", "study", "demo")
        kept = kept or (args.command == "evaluate" and args.out is not None)
        resumes = kept and not getattr(args, "dry_run", False)
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
    from babelscope.detection.atlas import FILE
    from babelscope.detection.detect import detect, plan

    model, tokenizer = _load(args)
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


def _tune(args: argparse.Namespace) -> Answer:
    if args.experiment is not None:
        return _experiment(args)
    if args.dry_run or args.model is None or args.neurons is None or not args.corpus:
        raise ConfigError("wanted MODEL, --neurons and --corpus, or --experiment (also with --dry-run). Add them.")
    corpora = _corpora(args)
    held_out = _corpora(argparse.Namespace(**{**vars(args), "corpus": args.held_out}))
    several = [language for language, source in {**held_out, **corpora}.items() if isinstance(source, list)]
    if len(corpora) != 1 or several:
        raise ConfigError(
            f"wanted one --corpus and one source per language, found --corpus of {', '.join(corpora)}"
            f"{' and several sources of ' + ', '.join(several) if several else ''}. A folder or a glob is one source."
        )
    _quieten_transformers()
    from babelscope.models.load import load_model
    from babelscope.neurons.neuronset import NeuronSet
    from babelscope.tuning.proof import write_merged
    from babelscope.tuning.train import ADAPTER, HISTORY, MERGED, tune

    neurons = NeuronSet.load(args.neurons)
    loading = {name: getattr(args, name) for name in ("dtype", "device_map", "revision", "trust_remote_code")}
    model, tokenizer = load_model(args.model, **loading)
    (language, corpus), names = *corpora.items(), ("documents", "max_tokens", "batch_size", "epochs", "learning_rate")
    with _log_above_progress():
        result = tune(
            model, tokenizer, neurons, corpus, language=language, held_out=held_out, run_dir=args.out,
            force=args.force, seed=args.seed, **{name: getattr(args, name) for name in names},
        )  # fmt: skip
    content = {
        "out": str(args.out), "adapter": str(args.out / ADAPTER), "history": str(args.out / HISTORY),
        "language": language, "neurons": len(neurons), "parameters": result.parameters,
        "best_step": result.best_step, "steps": len(result.history["steps"]),
        "before": result.before, "after": result.after,
    }  # fmt: skip
    if args.merge:
        base, _ = load_model(args.model, **loading)
        content["merged"] = write_merged(result.merge(), tokenizer, base, neurons, args.out / MERGED)
    return Answer(content, lambda screen: draw_tuned(content, screen))


def _experiment(args: argparse.Namespace) -> Answer:
    if args.model is not None or args.neurons is not None or args.corpus or args.held_out or args.merge:
        raise ConfigError("an --experiment says all of it in its file. Leave out MODEL and the other flags but --out.")
    _quieten_transformers()
    from babelscope.tuning.bench import plan_experiment, run_experiment
    from babelscope.tuning.experiment import Experiment

    experiment = Experiment.load(args.experiment)
    if args.dry_run:
        planned = plan_experiment(experiment)
        return Answer(planned, lambda screen: draw_planned(planned, screen))
    with _log_above_progress():
        found = run_experiment(experiment, args.out, _say)
    content = {"out": str(args.out), **found.as_json()}
    content["files"] = write_figures(args.out, content["rows"])
    return Answer(content, lambda screen: draw_experiment(content, screen))


def _lens(args: argparse.Namespace) -> Answer:
    corpora = _corpora(args)
    several = [language for language, source in corpora.items() if isinstance(source, list)]
    if several:
        raise ConfigError(f"wanted one source per language, found several of {', '.join(several)}. Give a folder.")
    from babelscope.lens.run import open_prompts, peak_memory, run_lens

    prompts = open_prompts(args.prompts, corpora, args.field, args.seed)
    words = _corpora(argparse.Namespace(**{**vars(args), "corpus": args.words}))
    model, tokenizer = _load(args)
    names = ("profile_documents", "documents", "max_tokens", "new_tokens", "final_norm", "identifier", "top_k", "grids")
    options = {name: getattr(args, name) for name in (*names, "tuned_documents", "seed")}
    with _log_above_progress():
        curve = run_lens(model, tokenizer, corpora, prompts, args.out, words=words, **options)
    content = lens_content(curve, args.out, peak_memory())
    return Answer(content, lambda screen: draw_lens(content, screen))


def _ablate(args: argparse.Namespace) -> Answer:
    from babelscope.editing.edits import ablate

    model, tokenizer, neurons, options = _edit(args)
    return _continuations(args, f"{args.op} of {neurons!r}", model, tokenizer, ablate(model, neurons, **options))


def _steer(args: argparse.Namespace) -> Answer:
    from babelscope.corpora.sources import open_corpus
    from babelscope.editing.steering import residual_means, steer, steer_by_means
    from babelscope.neurons.neuronset import NeuronSet

    to, away = args.to, args.away
    if args.by == "neurons":
        if args.layers is not None:
            raise ConfigError("--layers goes with --by means: neurons have their own layers. Leave it out.")
        target, source = NeuronSet.load(to), NeuronSet.load(away)
        model, tokenizer = _load(args)
        factor = 2.0 if args.factor is None else args.factor
        edited: Any = steer(model, target, source, factor=factor, force=args.force)
        return _continuations(args, f"{factor:g} x {Path(to).stem}, zero {Path(away).stem}", model, tokenizer, edited)
    corpora = {"to": open_corpus(to), "away": open_corpus(away)}
    model, tokenizer = _load(args)
    alpha = 1.0 if args.factor is None else args.factor
    means = residual_means(model, tokenizer, corpora, documents=args.documents)
    edited = steer_by_means(model, means, "to", "away", layers=args.layers, alpha=alpha)
    return _continuations(args, f"{alpha:g} x (mean of {to} - mean of {away})", model, tokenizer, edited)


def _continuations(args: argparse.Namespace, edit: str, model: Any, tokenizer: Any, edited: Any) -> Answer:
    shown = before_and_after(model, tokenizer, args.prompt, edited, args.max_new_tokens)
    content = {"model": args.model, "edit": edit, "max_new_tokens": args.max_new_tokens, "continuations": shown}
    return Answer(content, lambda screen: draw_before_and_after(content, screen))


def _export(args: argparse.Namespace) -> Answer:
    from babelscope.editing.export import export

    model, tokenizer, neurons, options = _edit(args)
    content = {**asdict(export(model, tokenizer, neurons, args.out, **options)), "folder": str(args.out)}
    return Answer(content, lambda screen: draw_exported(content, screen))


def _edit(args: argparse.Namespace) -> tuple[Any, Any, Any, dict[str, Any]]:
    """The model, its tokenizer, the chosen part of the set, and what `ablate` and `export` take beside them."""
    from babelscope.corpora.sources import open_corpus
    from babelscope.detection.atlas import Atlas
    from babelscope.editing.recorded import record_activations
    from babelscope.editing.stages import Stages
    from babelscope.neurons.neuronset import NeuronSet

    neurons = NeuronSet.load(args.neurons)
    if args.stage or args.structure:
        stages = Stages.usual(neurons.n_layers) if args.stages is None else Stages(*args.stages)
        neurons = stages.of(neurons, args.stage, args.structure)
    options = {name: getattr(args, name) for name in ("op", "factor", "value", "force")}
    if args.reference is None or args.op not in ("median", "resample"):
        options["reference"] = None if args.reference is None else Atlas.load(Path(args.reference))
        return *_load(args), neurons, options
    corpus = open_corpus(args.reference)
    model, tokenizer = _load(args)
    options["reference"] = record_activations(
        model, tokenizer, corpus, neurons, documents=args.documents, force=args.force
    )
    return model, tokenizer, neurons, options


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    _quieten_transformers()
    import torch

    from babelscope.models.load import load_model

    loading = {name: getattr(args, name) for name in ("dtype", "device_map", "revision", "trust_remote_code")}
    model, tokenizer = load_model(args.model, **loading)
    if args.device_map is None and torch.cuda.is_available() and model.device.type == "cpu":
        # device_map="cuda" would need accelerate; one GPU per process of torchrun or accelerate launch
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return model, tokenizer


def _evaluate(args: argparse.Namespace) -> Answer:
    _quieten_transformers()
    from babelscope.evaluation.evaluate import evaluate
    from babelscope.neurons.neuronset import NeuronSet

    neurons = None if args.neurons is None else NeuronSet.load(args.neurons)
    model, tokenizer = _load(args)
    names = ("limit", "op", "factor", "value", "force", "data", "batch_size", "chat_template")
    options = {name: getattr(args, name) for name in names}
    with _log_above_progress():
        found = evaluate(model, tokenizer, args.tasks, args.languages, neurons, run_dir=args.out, **options)
    content = {
        "model": args.model,
        "edit": "as it is" if neurons is None else f"{args.op} of {neurons!r}",
        "out": None if args.out is None else str(args.out),
        "scores": [score.as_json() for score in found.scores],
    }
    return Answer(content, lambda screen: draw_evaluated(content, screen))


def _grid(args: argparse.Namespace) -> Answer:
    _quieten_transformers()
    from babelscope.editing.stages import Stages
    from babelscope.evaluation.run import load_sets, run_grid

    sets = load_sets(args.neurons)
    model, tokenizer = _load(args)
    names = ("languages", "english", "texts", "quick", "dry_run", "parts", "ops", "limit", "seed", "force", "data")
    options = {name: getattr(args, name) for name in (*names, "batch_size", "chat_template")}
    stages = None if args.stages is None else Stages(*args.stages)
    draws = {"draws": args.task_controls, "text_draws": args.controls}
    with _log_above_progress():
        content = run_grid(
            model, tokenizer, sets, args.tasks, args.out, name=args.model, stages=stages, **draws, **options
        )  # fmt: skip
    return Answer(content, lambda screen: draw_grid(content, screen))


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
        content = demo(args.out, documents=args.documents)
    return Answer(content, lambda screen: [*draw_demo(content, screen), "", *draw_studied(content["study"], screen)])


def _report(args: argparse.Namespace) -> Answer:
    from babelscope.report.page import write_comparison, write_report

    if args.other is None:
        page = write_report(args.path, args.out)
    else:
        page = write_comparison(args.path, args.other, args.out)
    return Answer({"report": str(page)}, lambda screen: [f"The report: {page}"])


def _study(args: argparse.Namespace) -> Answer:
    from babelscope.study.config import load_study, write_template

    if args.init:
        written = str(write_template(Path(args.study or "study.yaml")))
        return Answer({"file": written}, lambda screen: draw_template(written, screen))
    if args.study is None or (args.out is None and not args.dry_run):
        raise ConfigError("wanted a study file or a preset, and --out DIR (or --dry-run, or --init to write a file).")
    study = load_study(args.study)
    from babelscope.study.plan import dry_run, run_study

    if args.dry_run:
        planned = dry_run(study, args.only, args.start)
        return Answer(planned, lambda screen: draw_study_plan(planned, screen))
    _quieten_transformers()
    content = run_study(study, args.study, args.out, only=args.only, start=args.start)
    return Answer(content, lambda screen: draw_studied(content, screen))


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
    """The library's warnings; and in a file, where no progress bar is drawn, how detection or tuning goes on."""
    logger = logging.getLogger("babelscope")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    handler.setFormatter(_LogLine())
    logger.addHandler(handler)
    long = args.command in ("detect", "tune", "lens", "grid")
    logger.setLevel(logging.INFO if long and not sys.stderr.isatty() else logging.WARNING)
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
    add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add(
        "--corpus", action="append", required=True, type=_corpus, metavar="LANGUAGE=SOURCE",
        help="text of a language, such as fr=french.txt: txt, jsonl or parquet (also .gz, .zst), a folder, a glob, "
        "- for standard input, hub:NAME:CONFIG:FIELD, or tinybabel:fr; several files of a language each with its own "
        "--corpus",
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

    add = command("tune", _tune, "train only the chosen neurons on a few hundred documents of a language")
    add("model", nargs="?", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add("--neurons", type=Path, metavar="FILE", help="what babelscope select wrote")
    add(
        "--corpus", action="append", default=[], type=_corpus, metavar="LANGUAGE=SOURCE",
        help="documents to train on, such as sw=swahili.txt; sources as of detect",
    )  # fmt: skip
    add(
        "--held-out", action="append", default=[], type=_corpus, metavar="LANGUAGE=SOURCE",
        help="texts to measure bits per byte on, also of other languages (the last tenth of the corpus)",
    )  # fmt: skip
    add("--documents", type=int, default=400, metavar="N", help="drawn at random (%(default)s)")
    add("--max-tokens", type=int, default=256, metavar="N", help="length of a packed block (%(default)s)")
    add("--batch-size", type=int, default=8, metavar="N", help="blocks per step, over all processes (%(default)s)")
    add("--epochs", type=float, default=3.0, metavar="X", help="stops earlier when nothing gets better (%(default)s)")
    add("--learning-rate", type=float, metavar="X", help="at its top, after warm-up and before the cosine (1e-3)")
    add("--field", default="text", metavar="NAME", help="of jsonl and parquet that holds the text (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw and of the order (%(default)s)")
    add("--merge", action="store_true", help="also write the merged model, and prove that nothing else has changed")
    add("--force", action="store_true", help="accept neurons that were found in another model of the same shape")
    add("--dtype", default="auto", metavar="NAME", help="of the loaded weights: float32, bfloat16, ... (as saved)")
    add("--device-map", metavar="MAP", help="auto, cpu, cuda:1, ... (the first GPU, else the CPU)")
    add("--revision", metavar="R", help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run code that the model brings along")
    add("--experiment", type=Path, metavar="FILE", help="instead of all else: arms to compare, in JSON")
    add("--dry-run", action="store_true", help="print an experiment's cells and cost, and write nothing")
    add("--out", type=Path, required=True, metavar="DIR", help="the run folder; the same command again resumes it")

    add = command("lens", _lens, "show which language each layer speaks")
    add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add(
        "--corpus", action="append", required=True, type=_corpus, metavar="LANGUAGE=SOURCE",
        help="text that shows which tokens a language has; sources as of detect, two languages or more",
    )  # fmt: skip
    add(
        "--prompts", action="append", required=True, metavar="PROMPTS",
        help="what the model reads: LANGUAGE=SOURCE, a jsonl file with the fields language and text, or the word "
        "corpus for documents of the corpora",
    )  # fmt: skip
    add("--profile-documents", type=int, metavar="N", help="of each corpus, from its start (all)")
    add("--documents", type=int, default=100, metavar="N", help="prompts per language, drawn at random (%(default)s)")
    add("--max-tokens", type=int, default=128, metavar="N", help="cut prompts to this length (%(default)s)")
    add("--new-tokens", type=int, default=0, metavar="N", help="read the positions that choose so many new tokens")
    add("--identifier", metavar="NAME", help="the paper's way: lingua or cld3 names the likeliest token of a position")
    add("--no-final-norm", dest="final_norm", action="store_false", help="decode inner layers without the final norm")
    add("--tuned-documents", type=int, metavar="N", help="train a tuned lens on so many of each corpus and use it")
    add(
        "--words", action="append", default=[], type=_corpus, metavar="LANGUAGE=SOURCE",
        help="a word per line, the same in every language: is a word translated from the first on its way in English?",
    )  # fmt: skip
    add("--top-k", type=int, default=5, metavar="N", help="likeliest tokens kept for display (%(default)s)")
    add("--grids", type=int, default=1, metavar="N", help="prompts per language kept for display (%(default)s)")
    add("--field", default="text", metavar="NAME", help="of jsonl and parquet that holds the text (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw and of the shuffled control (%(default)s)")
    add("--dtype", default="auto", metavar="NAME", help="of the loaded weights: float32, bfloat16, ... (as saved)")
    add("--device-map", metavar="MAP", help="auto, cpu, cuda:1, ... (the first GPU, else the CPU)")
    add("--revision", metavar="R", help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run code that the model brings along")
    add("--out", type=Path, required=True, metavar="DIR", help="the run folder; a finished one is shown again")

    def edit_flags(add: Callable[..., argparse.Action]) -> None:
        add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
        add("--neurons", type=Path, required=True, metavar="FILE", help="what babelscope select wrote")
        add("--op", default="zero", metavar="OP", help="zero, scale, clamp, mean, median or resample (%(default)s)")
        add("--factor", type=float, metavar="X", help="scale: multiply by this; above 1 amplifies")
        add("--value", type=float, metavar="X", help="clamp: to this activation")
        add(
            "--reference", metavar="SOURCE",
            help="mean: over the tokens of this run or atlas; median, resample: of this text, such as french.txt",
        )  # fmt: skip
        add("--documents", type=int, default=100, metavar="N", help="of the text, drawn at random (%(default)s)")
        usual = "for --stage: first and last layers (a quarter and a sixteenth: 8,2 of 32)"
        add("--stages", type=_stages, metavar="N,N", help=usual)
        add("--stage", type=_names, metavar="NAMES", help="only layers that understand, solve or generate (all)")
        add("--structure", type=_names, metavar="NAMES", help="only attention or ffn (both)")

    def loading_flags(add: Callable[..., argparse.Action]) -> None:
        add("--force", action="store_true", help="accept neurons that were found in another model of the same shape")
        add("--dtype", default="auto", metavar="NAME", help="of the loaded weights: float32, bfloat16, ... (as saved)")
        add("--device-map", metavar="MAP", help="auto, cpu, cuda:1, ... (the first GPU, else the CPU)")
        add("--revision", metavar="R", help="branch, tag or commit on the Hub")
        add("--trust-remote-code", action="store_true", help="run code that the model brings along")

    def prompt_flags(add: Callable[..., argparse.Action]) -> None:
        add("--prompt", action="append", required=True, metavar="TEXT", help="to continue, as it is; may be repeated")
        add("--max-new-tokens", type=int, default=40, metavar="N", help="of a continuation (%(default)s)")
        loading_flags(add)

    add = command("ablate", _ablate, "continue prompts with neurons switched off, beside the intact model")
    edit_flags(add)
    prompt_flags(add)

    add = command("steer", _steer, "continue prompts with one language amplified and another silenced")
    add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add(
        "--by", choices=("neurons", "means"), default="neurons",
        help="amplify neurons and silence others, or add the difference of two languages' mean states (%(default)s)",
    )  # fmt: skip
    add("--to", required=True, metavar="SOURCE", help="neurons to amplify, except those of --away; means: a text")
    add("--away", required=True, metavar="SOURCE", help="neurons to silence, except those of --to; means: a text")
    add("--factor", type=float, metavar="X", help="of the amplified neurons (2), or of the difference (1)")
    add("--layers", type=layers, metavar="N,N", help="means: behind which the difference is added (the middle half)")
    add("--documents", type=int, default=100, metavar="N", help="means: of each text, drawn at random (%(default)s)")
    prompt_flags(add)

    add = command("export", _export, "write an edited model as a Hugging Face checkpoint and check it")
    edit_flags(add)
    loading_flags(add)
    add("--out", type=Path, required=True, metavar="DIR", help="a new folder")

    add = command("evaluate", _evaluate, "score a model on benchmarks, as it is or with neurons switched off")
    add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add(
        "--tasks", type=_names, required=True, metavar="TASKS",
        help="mgsm, xquad, xcsqa, xlsum or variants of them, tinybabel, or any of lm-evaluation-harness",
    )  # fmt: skip
    add("--languages", type=_names, metavar="LANGUAGES", help="such as en,fr (all that the task has)")
    add("--neurons", type=Path, metavar="FILE", help="what babelscope select wrote, to be switched off (none)")
    add("--op", default="zero", metavar="OP", help="zero, scale or clamp (%(default)s)")
    add("--factor", type=float, metavar="X", help="scale: multiply by this; above 1 amplifies")
    add("--value", type=float, metavar="X", help="clamp: to this activation")
    add("--limit", type=int, metavar="N", help="the first N items of each task and language (all)")
    add("--data", type=Path, metavar="DIR", help="the benchmarks' files: mgsm/, xquad/, xcsqa/, xlsum/ (the Hub)")
    add("--batch-size", type=int, default=8, metavar="N", help="prompts at once (%(default)s)")
    add("--chat-template", action="store_true", help="ask a chat model in its template; a base model has none")
    loading_flags(add)
    add("--out", type=Path, metavar="DIR", help="the run folder; the same command again resumes it (nothing is kept)")

    add = command("grid", _grid, "switch off parts of every language's neurons beside random ones; judge the claims")
    add("model", metavar="MODEL", help="a folder, a name on the Hugging Face Hub, or tinybabel")
    add(
        "--neurons", type=Path, nargs="+", required=True, metavar="PATH",
        help="what babelscope select wrote: its folder, or files named after their language",
    )  # fmt: skip
    add("--tasks", type=_names, required=True, metavar="TASKS", help="as of evaluate, such as xquad,mgsm or tinybabel")
    add("--languages", type=_names, metavar="LANGUAGES", help="whose neurons (all of --neurons but English)")
    add("--english", default="en", metavar="LANGUAGE", help="that should be spared (%(default)s)")
    add("--stages", type=_stages, metavar="N,N", help="first and last layers (a quarter and a sixteenth: 8,2 of 32)")
    add("--parts", type=_names, metavar="PARTS", help="such as all,solve-ffn (all that there are)")
    add("--ops", type=_names, default=("zero",), metavar="OPS", help="zero, scale=X or clamp=X, several (zero)")
    add("--texts", metavar="SOURCE", help="held-out texts for bits per byte, {} for the language: tinybabel:{}:test")
    add("--controls", type=int, default=20, metavar="N", help="random sets per part, on texts (%(default)s)")
    add("--task-controls", type=int, default=5, metavar="N", help="random sets per part, on tasks (%(default)s)")
    add("--limit", type=int, metavar="N", help="the first N items of each task and language (all)")
    add("--data", type=Path, metavar="DIR", help="the benchmarks' files: mgsm/, xquad/, xcsqa/, xlsum/ (the Hub)")
    add("--batch-size", type=int, default=64, metavar="N", help="prompts at once (%(default)s)")
    add("--chat-template", action="store_true", help="ask a chat model in its template; a base model has none")
    add("--seed", type=int, default=0, metavar="N", help="of the random sets (%(default)s)")
    add("--quick", action="store_true", help="a look in minutes: three languages, ten items, few controls")
    loading_flags(add)
    add("--out", type=Path, default=Path("runs/grid"), metavar="DIR", help="the same command resumes it (%(default)s)")
    add("--dry-run", action="store_true", help="count what would be measured and write nothing")

    add = command("show", _show, "look at a run, an atlas, neuron files or a model folder")
    add("path", type=Path, metavar="PATH")
    add("--top", type=int, default=10, metavar="N", help="list the best N of a neuron file (%(default)s)")

    add = command("merge", _merge, "join atlases of shards or of languages into one")
    add("out", type=Path, metavar="OUT", help="new: a folder, or a file that ends in .safetensors")
    add("first", type=Path, metavar="PATH", help="two or more run folders or atlas files")
    add("more", type=Path, nargs="+", metavar="PATH", help=argparse.SUPPRESS)

    add = command("demo", _demo, "run the argument of the paper on the embedded model: a quick study with its report")
    add("--documents", type=int, metavar="N", help="per language (those of the study tinybabel-quick)")
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="the run folder (%(default)s)")

    add = command("report", _report, "make the report of a study again, or compare two studies")
    add("path", type=Path, metavar="RUN", help="of a study, finished or not; figures and tables go to RUN/report")
    add("other", type=Path, nargs="?", metavar="RUN_B", help="another, to be set beside it (none)")
    add("--out", type=Path, metavar="FILE", help="the page (RUN/report.html, or RUN/report-and-B.html)")

    add = command("study", _study, "run a whole study from one file: resumable stages, ending in one report")
    add("study", nargs="?", metavar="FILE", help="a study file, or one of tinybabel, tinybabel-quick, paper-vicuna-7b, "
        "paper-mistral-7b, paper-bloomz-7b, paper-chinese-llama, paper-enhance-mistral")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="the run folder; the same command again goes on where it stopped")
    add("--dry-run", action="store_true", help="print stages, cells, time and memory; needs no model and no network")
    add("--only", metavar="STAGE", help="this stage, and before it what it reads if that is missing")
    add("--from", dest="start", metavar="STAGE", help="this stage and all later ones anew")
    add("--init", action="store_true", help="write a commented study file (study.yaml, or FILE)")

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


def _stages(text: str) -> tuple[int, int]:
    first, _, last = text.partition(",")
    if not (first.isdecimal() and last.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted N,N, such as 8,2 (the first 8 layers and the last 2), found {text!r}")
    return int(first), int(last)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def numbers(text: str) -> tuple[float, ...]:
    """Several, with commas between; argparse puts the name of this function into its message."""
    return tuple(float(each) for each in text.split(",") if each)


def layers(text: str) -> tuple[int, ...]:
    """Numbers of layers, with commas between; argparse puts the name of this function into its message."""
    return tuple(int(each) for each in text.split(",") if each)


def number(text: str) -> int | float:
    """A number, or a share."""
    return float(text) if not text.isdecimal() else int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"wanted I/N, such as 0/4 for the first of four, found {text!r}")
    return int(index), int(count)
