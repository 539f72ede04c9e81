"""A setting has one name, one default and one help: as keyword, as flag and as key of a study file."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from typing import Any

import pytest

import babelscope as bs
from babelscope.cli.parser import build_parser
from babelscope.detection.options import DetectOptions
from babelscope.options import defaults_of, fields_of, help_of, read, written
from babelscope.rules.contract import RULES, all_settings
from babelscope.stages.contract import STAGES
from babelscope.stages.detect import STUDY_WIDE
from babelscope.stages.study import Common
from babelscope.tuning.train import Recipe

NOT_OF_A_STUDY = {"shard": "several machines share one detection, a study runs on one"}
NOT_A_SETTING = {
    "model",
    "tokenizer",
    "corpora",
    "run_dir",
    "checkpoint_seconds",
    "progress",
}
"""Keywords of `detect` that say what it works on and where, and not what its numbers are."""
OTHER_FLAGS = {"corpora": "--corpus LANGUAGE=SOURCE", "run_dir": "--out"}


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(commands.choices)


def keywords(function: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions if action.option_strings}


def test_detect_has_the_same_settings_on_all_faces(parsers: dict[str, argparse.ArgumentParser]) -> None:
    defaults = defaults_of(DetectOptions)
    of_python = {name: default for name, default in keywords(bs.detect).items() if name not in NOT_A_SETTING}
    assert of_python == defaults
    of_study = defaults_of(STAGES["detect"].options) | {name: defaults_of(Common)[name] for name in STUDY_WIDE}
    assert of_study == {name: default for name, default in defaults.items() if name not in NOT_OF_A_STUDY}
    typed = build_parser("detect").parse_args(["detect", "m", "--corpus", "fr=a.txt", "--out", "o"])
    for name, default in defaults.items():
        action = flags(parsers["detect"])[name]
        assert action.option_strings[0] == f"--{name.replace('_', '-')}"
        assert getattr(typed, name, default) == default, "what is not typed has the default of the library"


def test_select_has_the_same_settings_on_all_faces(parsers: dict[str, argparse.ArgumentParser]) -> None:
    of_study = fields_of(STAGES["select"].options)
    for name in all_settings():
        assert name in of_study, "what a rule can be told, a study can say"
        assert f"--{name.replace('_', '-')}" in flags(parsers["select"])[name].option_strings
    for rule in RULES:
        atlas = set(keywords(bs.Atlas.select))
        assert {"rule", "options"} <= atlas, "Atlas.select passes the settings of its rule on"
        assert set(fields_of(rule.options)) <= set(all_settings())


@pytest.mark.parametrize("name", [name for name in STAGES.names() if name not in ("detect", "select")])
def test_a_stage_alone_has_the_settings_of_its_section(name: str, parsers: dict[str, argparse.ArgumentParser]) -> None:
    """Of flags that are typed as the defaults, the section of a study file comes out."""
    options = STAGES[name].options
    there = flags(parsers[name])
    about, defaults = help_of(options), defaults_of(options)
    for setting, annotation in fields_of(options).items():
        action = there[setting]
        assert action.option_strings[0] == f"--{setting.replace('_', '-')}"
        assert about[setting].rstrip(".").replace("%", "%%") in action.help
        assert action.default is argparse.SUPPRESS, "what is not typed has the default of the study file"
        default = defaults[setting]
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            assert read(annotation, action.type(written(default)), setting) == default


@pytest.mark.parametrize("name", [name for name in STAGES.names() if name not in ("detect", "select")])
def test_what_all_stages_share_has_the_same_name_as_a_flag(
    name: str, parsers: dict[str, argparse.ArgumentParser]
) -> None:
    there, own = flags(parsers[name]), fields_of(STAGES[name].options)
    for setting in ("english", "seed", "field"):
        assert there[setting].option_strings[0] == f"--{setting}"
        assert setting in fields_of(Common)
    assert "languages" in there
    assert "languages" in {*own, *fields_of(Common)}


def test_every_setting_has_a_help_that_can_be_read_alone() -> None:
    for stage in STAGES:
        about = help_of(stage.options)
        assert set(fields_of(stage.options)) <= set(about), stage.name
    assert set(fields_of(Common)) <= set(help_of(Common))


TUNE_ONLY_IN_PYTHON = {
    "warmup": "a comparison of trainings can set it, one training has a good default",
    "evaluations": "as warmup",
    "patience": "as warmup",
    "held_out_documents": "a study says `texts` for all its stages, a command gives the files",
}
TUNE_OTHERWISE_IN_A_STUDY = {
    "documents": "a study compares several numbers of them",
    "learning_rate": "a study tries several: learning_rates, full_learning_rates",
    "held_out_documents": "`texts`, as in other stages",
    "seed": "a study compares several: seeds",
}
EVALUATE_OTHERWISE = {
    "tasks": "required: no default",
    "neurons": "files of a set",
    "reference": "a file of an atlas; by --atlas or --reference",
    "run_dir": "--out",
}


def test_tune_has_the_same_settings_on_all_faces() -> None:
    recipe = {field.name: field.default for field in dataclasses.fields(Recipe)}
    typed = vars(build_parser("tune").parse_args(["tune", "m", "--out", "o"]))
    for name, default in recipe.items():
        assert (name in typed) != (name in TUNE_ONLY_IN_PYTHON)
        assert typed.get(name, default) == default, "what is not typed has the default of the library"
    of_study = defaults_of(STAGES["tuning"].options)
    for name, default in recipe.items():
        assert (name in of_study and of_study[name] in (default, None)) != (name in TUNE_OTHERWISE_IN_A_STUDY)


def test_evaluate_has_the_same_settings_as_keyword_and_as_flag() -> None:
    typed = vars(build_parser("evaluate").parse_args(["evaluate", "m", "--tasks", "tinybabel"]))
    for name, default in keywords(bs.evaluate).items():
        if name in ("model", "tokenizer", *EVALUATE_OTHERWISE):
            continue
        assert typed[name] == default
