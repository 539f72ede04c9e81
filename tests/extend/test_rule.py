"""A rule of another package: the file of docs/extend/rule.md, installed outside of the repository's tree."""

from __future__ import annotations

import pytest

import babelscope as bs
from babelscope import cli
from babelscope.errors import ConfigError
from babelscope.report.reader import read_run
from babelscope.rules import contract
from babelscope.study.config import load_study
from babelscope.study.plan import run_study
from study_worlds import save_model, write_corpora


def test_a_rule_of_another_package_goes_through_everything_by_name(spread, tmp_path, capsys):
    model, corpora = save_model(tmp_path / "llama", "llama"), write_corpora(tmp_path / "texts")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"models: [{model}]\nlanguages: [en, fr, zh]\nstages: [detect, select, damage]\n"
        f"corpora: {{detect: '{corpora.replace('KIND', 'detect')}', held_out: '{corpora.replace('KIND', 'held')}'}}\n"
        "detect: {documents: 5, max_tokens: 32}\nselect: {rule: spread, budget: 0.1, compare: [minimum]}\n"
        "damage: {texts: 2, max_tokens: 32, controls: 2}\n",
        encoding="utf-8",
    )
    run_study(load_study(file), str(file), tmp_path / "run", shown=False)
    (results,) = read_run(tmp_path / "run").results.values()
    assert "Rule spread, budget 0.1" in results["select"].how
    assert results["damage"].tables[0].rows[0][0] == "rule spread"
    assert "rule spread" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    run = tmp_path / "run" / "llama" / "detect" / "run"
    atlas = bs.Atlas.load(run)
    neurons = atlas.select("fr", rule="spread", budget=12)
    assert len(neurons) == 12
    statistics = atlas.of("fr")
    scores = {slot: statistics.mean(slot) - statistics.deviation(slot) for slot in atlas.slots}
    kept = sorted((float(score) for slot in scores for score in scores[slot]), reverse=True)[:12]
    found = sorted(
        (float(score) for layers in neurons.scores.values() for layer in layers for score in layer), reverse=True
    )
    assert found == pytest.approx(kept, rel=1e-5)
    assert neurons.provenance["selection"] == {"rule": "spread", "budget": 12, "slots": list(atlas.slots)}

    assert cli.main(["select", str(run), "--rule", "spread", "--budget", "12", "--out", str(tmp_path / "sets")]) == 0
    assert bs.NeuronSet.load(tmp_path / "sets" / "fr.safetensors") == neurons
    capsys.readouterr()
    assert cli.main(["show", str(tmp_path / "sets" / "fr.safetensors")]) == 0
    assert "rule spread" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["select", "--help"])
    assert "spread, large and steady impact" in " ".join(capsys.readouterr().out.split())


def test_its_settings_are_checked_and_its_name_is_offered(spread):
    with pytest.raises(ConfigError, match="rule 'spread' has no use for eps; it takes slots, exclude, budget"):
        contract.options_of("spread", {"eps": 1.0})
    with pytest.raises(ConfigError, match=r"found 'spred'\. Did you mean spread\?"):
        contract.options_of("spred", {})
