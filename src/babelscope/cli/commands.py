"""The work of each command: from its flags to calls of the library, to plain data and a way to draw them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from babelscope.cli.inputs import given, load, load_edit, load_for_training, load_neurons, open_corpora, refuse_file
from babelscope.cli.messages import quieten_transformers, say
from babelscope.cli.settings import given as typed
from babelscope.cli.stages import run_stage
from babelscope.errors import ConfigError, DataError, RunFolderError
from babelscope.languages import get_language
from babelscope.options import fields_of
from babelscope.show.describe import atlas_content, describe, made_by, run_state, sets_content
from babelscope.show.draw import draw, draw_demo, draw_detected, draw_plan, draw_read, draw_selected
from babelscope.show.edited import before_and_after, draw_before_and_after, draw_exported
from babelscope.show.evaluated import draw_evaluated
from babelscope.show.studied import draw_stage, draw_studied, draw_study_plan, draw_template
from babelscope.show.support import draw_support, support, support_markdown
from babelscope.show.terminal import Screen
from babelscope.show.tuned import draw_training_plan, draw_tuned
from babelscope.stages.contract import STAGES

_RUNS = {"detect": "detect", "tune": "tune", "evaluate": "evaluate"}
"""Commands whose run folder is of a kind of its own -> the command that run.json names; all others write studies."""


@dataclass(frozen=True)
class Answer:
    """What a command found."""

    content: Mapping[str, Any]
    """Plain data, for --json."""
    draw: Callable[[Screen], list[str]]
    """The same for people."""


def run(args: argparse.Namespace) -> Answer:
    """Does what a parsed command asks for.

    Raises:
        BabelscopeError: as the library.
        RunFolderError: --out is a file or the folder of another command; before minutes of loading a model.
    """
    if (args.command in (*_RUNS, "study", "demo") or args.command in STAGES) and args.out is not None:
        refuse_file(args.out)
        before = made_by(args.out)
        if args.command != "select" and before not in (None, _RUNS.get(args.command, "study")):
            raise RunFolderError(f"{args.out} holds a run of babelscope {before}. Give another folder with --out.")
    return _COMMANDS[args.command](args) if args.command in _COMMANDS else _stage(args)


def _detect(args: argparse.Namespace) -> Answer:
    corpora = open_corpora(args, args.corpus)
    state = run_state(args.out)
    if state is not None and state["state"] == "unfinished":
        done = sum(each == "finished" for each in state["languages"].values())
        say(f"found an unfinished run in {args.out} ({done} of {len(state['languages'])} languages finished)")
    from babelscope.detection.atlas import FILE
    from babelscope.detection.detect import detect, plan
    from babelscope.detection.options import DetectOptions

    model, tokenizer = load(args, tensor_parallel=args.tensor_parallel)
    options = typed(args, fields_of(DetectOptions))
    if args.dry_run:
        planned = {"dry_run": True, **asdict(plan(model, tokenizer, corpora, **options))}
        return Answer(planned, lambda screen: draw_plan(planned, screen))
    started = time.monotonic()
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
    from babelscope.rules.contract import all_settings

    atlas = Atlas.load(args.path)
    languages = [get_language(code).code for code in args.language or atlas.languages]
    options = typed(args, ["rule", *all_settings()])
    sets = {language: atlas.select(language, **options) for language in languages}
    folder = args.out or (args.path if args.path.is_dir() else args.path.parent) / "neurons"
    refuse_file(folder)
    for language, neurons in sets.items():
        neurons.save(folder / f"{language}.safetensors")
    content = {"folder": str(folder), **sets_content(sets)}
    return Answer(content, lambda screen: draw_selected(content, screen))


def _tune(args: argparse.Namespace) -> Answer:
    wanted = {"MODEL": args.model, "--neurons": args.neurons, "--corpus": args.corpus}
    missing = [name for name, value in wanted.items() if not value]
    if missing:
        raise ConfigError(f"wanted MODEL, --neurons and --corpus, found no {', no '.join(missing)}. Add it.")
    corpora, held_out, keep = (open_corpora(args, each) for each in (args.corpus, args.held_out, args.keep))
    sources = [*corpora.items(), *held_out.items(), *keep.items()]
    several = [language for language, source in sources if isinstance(source, list)]
    if len(corpora) != 1 or several:
        raise ConfigError(
            f"wanted one --corpus and one source per language, found --corpus of {', '.join(corpora)}"
            f"{' and several sources of ' + ', '.join(several) if several else ''}. A folder or a glob is one source."
        )
    quieten_transformers()
    from babelscope.tuning.plan import plan_training
    from babelscope.tuning.proof import write_merged
    from babelscope.tuning.train import ADAPTER, HISTORY, MERGED, tune

    neurons = load_neurons(args.neurons)
    model, tokenizer = load_for_training(args)
    ((language, corpus),) = corpora.items()
    options = given(args, "documents max_tokens batch_size epochs learning_rate keep_share others_at_most seed")
    if args.dry_run:
        planned = {"dry_run": True, **plan_training(model, tokenizer, neurons, corpus, language=language,
                                                    held_out=held_out, **options)}  # fmt: skip
        return Answer(planned, lambda screen: draw_training_plan(planned, screen))
    options["force"] = args.force
    result = tune(
        model, tokenizer, neurons, corpus, language=language, held_out=held_out, keep=keep, run_dir=args.out,
        **options,
    )  # fmt: skip
    content = {
        "out": str(args.out), "adapter": str(args.out / ADAPTER), "history": str(args.out / HISTORY),
        "language": language, "neurons": len(neurons), "parameters": result.parameters,
        "best_step": result.best_step, "steps": len(result.history["steps"]),
        "share": result.share,
        "before": result.before, "after": result.after,
    }  # fmt: skip
    if args.merge and os.environ.get("RANK", "0") == "0":  # of several processes the first
        base, _ = load_for_training(args)
        content["merged"] = write_merged(result.merge(), tokenizer, base, neurons, args.out / MERGED)
    return Answer(content, lambda screen: draw_tuned(content, screen))


def _ablate(args: argparse.Namespace) -> Answer:
    from babelscope.editing.edits import ablate

    model, tokenizer, neurons, options = load_edit(args)
    return _continuations(args, f"{args.op} of {neurons!r}", model, tokenizer, ablate(model, neurons, **options))


def _steer(args: argparse.Namespace) -> Answer:
    from babelscope.corpora.sources import open_corpus
    from babelscope.editing.steering import residual_means, steer, steer_by_means

    to, away = args.to, args.away
    if args.by == "neurons":
        if args.layers is not None:
            raise ConfigError("--layers goes with --by means: neurons have their own layers. Leave it out.")
        target, source = load_neurons([Path(to)]), load_neurons([Path(away)])
        model, tokenizer = load(args)
        factor = 2.0 if args.factor is None else args.factor
        edited: Any = steer(model, target, source, factor=factor, force=args.force)
        return _continuations(args, f"{factor:g} x {Path(to).stem}, zero {Path(away).stem}", model, tokenizer, edited)
    corpora = {"to": open_corpus(to), "away": open_corpus(away)}
    model, tokenizer = load(args)
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

    model, tokenizer, neurons, options = load_edit(args)
    content = {**asdict(export(model, tokenizer, neurons, args.out, **options)), "folder": str(args.out)}
    return Answer(content, lambda screen: draw_exported(content, screen))


def _evaluate(args: argparse.Namespace) -> Answer:
    quieten_transformers()
    from babelscope.detection.atlas import Atlas
    from babelscope.evaluation.evaluate import evaluate

    neurons = None if args.neurons is None else load_neurons(args.neurons)
    options = given(args, "limit op factor value force data batch_size chat_template")
    options["reference"] = None if args.reference is None else Atlas.load(args.reference)
    model, tokenizer = load(args)
    found = evaluate(model, tokenizer, args.tasks, args.languages, neurons, run_dir=args.out, **options)
    content = {
        "model": args.model,
        "edit": "as it is" if neurons is None else f"{args.op} of {neurons!r}",
        "out": None if args.out is None else str(args.out),
        "scores": [score.as_json() for score in found.scores],
    }
    return Answer(content, lambda screen: draw_evaluated(content, screen))


def _show(args: argparse.Namespace) -> Answer:
    quieten_transformers()
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


def _demo(args: argparse.Namespace) -> Answer:
    quieten_transformers()
    from babelscope.demo import demo

    content = demo(args.out, documents=args.documents)
    return Answer(content, lambda screen: [*draw_demo(content, screen), "", *draw_studied(content["study"], screen)])


def _report(args: argparse.Namespace) -> Answer:
    from babelscope.report.page import write_comparison, write_report

    for path in (args.path, args.other or args.path):
        if not path.is_dir() or made_by(path) not in (None, "study"):
            found = f"a run of {made_by(path)}" if path.is_dir() else "a file" if path.exists() else "nothing"
            raise DataError(f"wanted the run folder of a study (or of demo), found {found} at {path}. Check the path.")
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
        planned = dry_run(study, args.only, args.start, args.out)
        return Answer(planned, lambda screen: draw_study_plan(planned, screen))
    quieten_transformers()
    content = run_study(study, args.study, args.out, only=args.only, start=args.start)
    return Answer(content, lambda screen: draw_studied(content, screen))


def _stage(args: argparse.Namespace) -> Answer:
    quieten_transformers()
    content = run_stage(args)
    if args.dry_run:
        return Answer(content, lambda screen: draw_study_plan(content, screen))
    return Answer(content, lambda screen: draw_stage(content, args.command, screen))


def _tinybabel(args: argparse.Namespace) -> Answer:
    from babelscope.tinybabel.tasks import export

    written = export(args.out, args.items, args.language)
    content = {"folder": str(args.out), "files": [str(path.relative_to(args.out)) for path in written]}
    told = f"{len(written)} task files in {args.out}: mgsm, xquad, xcsqa, xlsum, and prompts.json"
    return Answer(content, lambda screen: [told])


def _models(args: argparse.Namespace) -> Answer:
    content = {"families": support()}
    return Answer(content, lambda screen: [support_markdown()] if args.markdown else draw_support(screen))


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], Answer]] = {
    "detect": _detect,
    "select": _select,
    "tune": _tune,
    "ablate": _ablate,
    "steer": _steer,
    "export": _export,
    "evaluate": _evaluate,
    "show": _show,
    "merge": _merge,
    "demo": _demo,
    "report": _report,
    "study": _study,
    "tinybabel": _tinybabel,
    "models": _models,
}
"""What does the work, by the name that the parser knows it by."""
