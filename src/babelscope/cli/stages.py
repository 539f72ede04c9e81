"""One stage of a study as a command of its own: flags from its settings, and a study that has this stage alone."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from babelscope.cli.settings import add_options, add_setting, given
from babelscope.cli.values import stages as layer_stages
from babelscope.errors import ConfigError
from babelscope.options import Refused, fields_of, help_of
from babelscope.stages.contract import STAGES, Stage
from babelscope.stages.study import Common, Corpora, Model, Sources, Study

SPLIT = "first and last layers, such as 8,2; usual: a quarter and a sixteenth (%(default)s)"
KINDS = {"detect": "--corpus", "held_out": "--held-out", "validation": "--validation"}
"""Kind of texts -> its flag."""


def stage_flags(name: str) -> Callable[[argparse.ArgumentParser], None]:
    """The flags of the command that runs a stage alone."""

    def add(parser: argparse.ArgumentParser) -> None:
        stage = STAGES[name]
        parser.add_argument("model", metavar="MODEL", help=help_of(Model)["name"])
        for setting, annotation in _shared(stage).items():
            about = help_of(Common)[setting]
            if setting == "split":
                parser.add_argument("--split", type=_split, default="usual", metavar="N,N", help=SPLIT)
            elif setting == "neurons":
                parser.add_argument("--neurons", nargs="+", default=argparse.SUPPRESS, metavar="NEURONS", help=about)
            else:
                add_setting(parser, setting, annotation, about)
        for kind, flag in KINDS.items():
            if kind in (*stage.texts, *stage.also_reads):
                add_setting(parser, kind, Sources, help_of(Corpora)[kind], flag=flag)
        add_options(parser, stage.options)
        for setting in ("dtype", "device_map", "device", "revision", "trust_remote_code", "strip_prefix", "adapter"):
            add_setting(parser, setting, fields_of(Model)[setting], help_of(Model)[setting])
        parser.add_argument("--out", type=Path, metavar="DIR", help="the run folder; the same command again resumes it")
        parser.add_argument("--dry-run", action="store_true", help="print cells, time and memory, and write nothing")

    return add


def stage_study(args: argparse.Namespace) -> Study:
    """The study that a stage's command asks for.

    Raises:
        ConfigError: a setting that can't be, or too little to know the languages by.
    """
    from babelscope.study.config import contradictions, study_of

    stage = STAGES[args.command]
    content: dict[str, Any] = given(args, _shared(stage))
    corpora = given(args, [kind for kind in KINDS if kind in (*stage.texts, *stage.also_reads)])
    if "select" in stage.needs and "neurons" not in content:
        content |= _chosen_before(args)
    content.setdefault("languages", _languages(stage, content, corpora))
    content.setdefault("english", "en" if "en" in content["languages"] else content["languages"][0])
    model = {"name": args.model} | given(args, [name for name in fields_of(Model) if name != "name"])
    content |= {"models": [model], "corpora": corpora, "stages": [args.command], "name": _name(args.out)}
    content[args.command] = given(args, fields_of(stage.options))
    study = study_of(content)
    for problem in contradictions(study):
        raise Refused(_flag(problem.key, args.command), problem.wanted, problem.found, problem.remedy)
    return study


def run_stage(args: argparse.Namespace) -> Mapping[str, Any]:
    """Runs a stage alone, or says what it would do."""
    study = stage_study(args)
    if args.out is None and not args.dry_run:
        raise ConfigError("wanted a run folder, found none. Give --out DIR, or --dry-run.")
    from babelscope.stages.job import portable
    from babelscope.study.plan import dry_run, run_study

    if args.dry_run:
        return dry_run(study, out=args.out)
    command = shlex.join(["babelscope", *(portable_word(word, portable) for word in args.typed)])
    return run_study(study, args.command, args.out, command=command)


def portable_word(word: str, portable: Callable[[Any], Any]) -> str:
    """A word of a command without the folders of this machine, also behind `fr=`."""
    head, sign, tail = word.partition("=")
    return f"{head}={portable(tail)}" if sign and tail else str(portable(word))


def _split(text: str) -> str | dict[str, int]:
    if text in ("usual", "searched"):
        return text
    return dict(zip(("understand", "generate"), layer_stages(text), strict=True))


def _shared(stage: type[Stage[Any]]) -> dict[str, Any]:
    """The settings of all stages that this one reads; one of its own has the flag where both have a name."""
    names = ["languages", "english", "seed", "field"]
    names += ["neurons"] * bool({"select"} & {*stage.needs}) + ["atlas", "force"] * bool(stage.needs)
    names += [name for name in ("split", "data") if name in stage.decides]
    own, annotations = fields_of(stage.options), fields_of(Common)
    return {name: annotations[name] for name in names if name not in own}


def _chosen_before(args: argparse.Namespace) -> dict[str, Any]:
    """The neuron files that a study has left in the run folder, if there is one."""
    there = sorted(args.out.glob("*/select/*.safetensors")) if args.out is not None else []
    folders = list(dict.fromkeys(path.parent for path in there))
    if len(folders) == 1:
        return {"neurons": [str(folders[0])]}
    raise ConfigError("wanted neurons, found none. Give --neurons with what babelscope select wrote.")


def _languages(stage: type[Stage[Any]], content: Mapping[str, Any], corpora: Mapping[str, Any]) -> list[str]:
    """The languages that texts or neuron files name; English beside them where edits should spare it."""
    named = [code for sources in corpora.values() if isinstance(sources, Mapping) for code in sources]
    if not named and content.get("neurons"):
        from babelscope.neurons.files import files_by_language

        named = [*files_by_language(content["neurons"]), *(["en"] if "english" in stage.decides else [])]
    if not named:
        raise ConfigError("wanted languages, found none. Give --languages, such as en,fr,zh.")
    return list(dict.fromkeys(named))


def _name(out: Path | None) -> str:
    """The name of the study in the run folder, so that a stage can be added to it; for a new one, the folder's."""
    from babelscope.artifacts import read_json

    if out is not None and (out / "run.json").is_file():
        asked = read_json(out / "run.json").get("asked", {})
        if asked.get("command") == "study":
            return str(asked["study"])
    return "study" if out is None else out.resolve().name or "study"


def _flag(key: str, command: str) -> str:
    """The flag of a study's key."""
    section, _, kind = key.partition(".")
    name = KINDS.get(kind, key) if section == "corpora" else f"--{key.removeprefix(f'{command}.').replace('_', '-')}"
    return name if section in ("corpora", command) or "." not in key else key
