"""A stage of another package: the file of docs/extend/stage.md, installed outside of the repository's tree."""

from __future__ import annotations

import json

import pytest

from babelscope import cli
from babelscope.artifacts import read_json
from babelscope.errors import ConfigError
from babelscope.report.reader import read_run
from babelscope.stages.job import FOUND
from babelscope.study.config import load_study, template
from babelscope.study.plan import dry_run, run_study
from study_worlds import save_model, write_corpora


@pytest.fixture
def study(tmp_path):
    """A file with the stage in it."""
    model, corpora = save_model(tmp_path / "llama", "llama"), write_corpora(tmp_path / "texts")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"models: [{model}]\nlanguages: [en, fr, zh]\nstages: [tokens, detect, select]\n"
        f"corpora: {{detect: '{corpora.replace('KIND', 'detect')}', held_out: '{corpora.replace('KIND', 'held')}'}}\n"
        "detect: {documents: 5, max_tokens: 32}\nselect: {budget: 0.1}\ntokens: {texts: 3}\n",
        encoding="utf-8",
    )
    return file


def test_a_stage_of_another_package_goes_through_everything_by_name(tokens, study, tmp_path, capsys):
    loaded = load_study(study)
    assert loaded.tokens.texts == 3
    (planned,) = dry_run(loaded)["models"].values()
    assert [(row["stage"], row["cells"]) for row in planned["stages"]] == [("detect", 3), ("select", 1), ("tokens", 3)]
    run_study(loaded, str(study), tmp_path / "run", shown=False)
    run = read_run(tmp_path / "run")
    (results,) = run.results.values()
    assert (run.finished, list(results)[-1]) == (True, "tokens")
    lines = {
        code: (tmp_path / "texts" / f"held-{code}.txt").read_text("utf-8").split("\n")[:3] for code in ("en", "zh")
    }
    table = {row[0]: row[1] for row in results["tokens"].tables[0].rows}
    for name, code in (("English", "en"), ("Chinese", "zh")):  # a token per byte, and one BOS per text
        size = sum(len(line.encode()) for line in lines[code])
        assert table[name] == pytest.approx((size + 3) / size)
    assert read_json(tmp_path / "run" / "llama" / "tokens" / FOUND)["tokens_per_byte"] == table
    assert "What a language costs in tokens" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    study.write_text(study.read_text("utf-8").replace("texts: 3", "texts: 4"), encoding="utf-8")
    assert cli.main(["study", str(study), "--only", "tokens", "--out", str(tmp_path / "run"), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"].values()
    assert {each["stage"]: each["before"] for each in model["stages"]} == {
        "detect": True,
        "select": True,
        "tokens": False,
    }
    assert "# tokens:  # How many tokens a byte of each language takes." in template()


def test_its_checks_and_needs_are_those_of_the_file(tokens, study):
    text = study.read_text("utf-8")
    for old, new, said in (
        ("texts: 3", "texts: 5000", r"line 7: tokens\.texts: wanted 1,000 texts at most, found 5000\. Lower it"),
        ("texts: 3", "texts: 1", r"tokens\.texts: wanted a whole number of 2 or more"),
        (", select]", "]", "wanted select, which tokens reads"),
        ("[tokens,", "[tokns,", "Did you mean tokens"),
    ):
        study.write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(ConfigError, match=said):
            load_study(study)
