"""Looking at artefacts: what is read is what is there, and what is drawn fits and can't steer a terminal."""

from __future__ import annotations

import contextlib
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import T5Config

from babelscope import Anatomy, Atlas, NeuronSet
from babelscope.artifacts import write_json, write_tensors
from babelscope.errors import DataError
from babelscope.languages import all_languages
from babelscope.models.families import FAMILIES
from babelscope.models.slots import SLOTS
from babelscope.neurons.statistics import Layout, Statistics
from babelscope.progress import clean
from babelscope.show import describe, draw, support
from babelscope.show.terminal import Screen, cells, human_bytes, label, wrapped
from tiny import FAMILIES as TINY
from tiny import PROBED, tiny_model

# Text for a terminal


@given(st.text())
def test_clean_text_cannot_steer_a_terminal(text):
    assert clean(text).isprintable()
    assert len(clean(text)) == len(text)
    assert clean(clean(text)) == clean(text)


def test_clean_leaves_every_script_alone():
    for text in ("français", "中文", "ไทย", "हिन्दी", "العربية", "日本語"):
        assert clean(text) == text
    assert clean("a\nb\x1b[2J", keep="\n") == "a\nb\ufffd[2J"


@given(st.text(alphabet="ab 中文é́-/", max_size=200), st.integers(10, 60))
def test_wrapped_lines_fit_and_lose_nothing(text, width):
    lines = wrapped(text, width)
    assert all(cells(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


def test_marks_that_take_no_column_do_not_hide_wide_characters():
    lines = wrapped("\u0301 aaaaa\u0301\u0301\u4e2d\u4e2d\u4e2d", 10)
    assert max(map(cells, lines)) <= 10


def test_labels():
    assert label("fr") == "fr French"
    assert label("zh-Hant") == "zh-Hant Traditional Chinese"
    assert label("klingon") == "klingon"
    assert label("\x1b[31m") == "\ufffd[31m"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1536, "1.5 KiB"), (200 * 2**20, "200 MiB"), (3 * 2**50, "3072 TiB")],
)
def test_human_bytes(count, text):
    assert human_bytes(count) == text


def test_table_aligns_and_wraps():
    rows = [("zh-Hant Traditional Chinese", "1,000", "40,000"), ("中文", "1", "2")]
    assert Screen(80).table(("language", "documents", "not sampled"), rows) == [
        "  language                     documents  not sampled",
        "  zh-Hant Traditional Chinese      1,000       40,000",
        "  中文                                 1            2",
    ]
    # Headings first, then names; nothing that is a number.
    assert Screen(40).table(("language", "documents", "not sampled"), rows) == [
        "                                     not",
        "  language            documents  sampled",
        "  zh-Hant                 1,000   40,000",
        "  Traditional",
        "  Chinese",
        "  中文                        1        2",
    ]


def test_strips_show_zero_small_and_largest_apart():
    lines = Screen(80).strips({"q": [0, 1, 50, 100], "ffn": [0, 0, 0, 0]}, {"q": "x"})
    assert lines == ["       0  1  2  3", "  q    ···▁▁▁▅▅▅███   x", "  ffn  ············"]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("layers", [1, 8, 40, 80, 126])
def test_strips_fit_any_number_of_layers(width, layers):
    rows = {slot: list(range(layers)) for slot in SLOTS}
    lines = Screen(width).strips(rows, dict.fromkeys(SLOTS, "0.123 to 0.456"))
    assert max(map(len, lines)) <= width
    numbers = [int(number) for number in lines[0].split()]
    assert numbers == sorted(set(numbers)), "numbers of the axis don't run into each other"
    assert all(number < layers for number in numbers)


# Sets


def make_set(units: dict[str, dict[int, list[int]]], widths: dict[str, tuple[int, ...]], language: str) -> NeuronSet:
    masks = {slot: [torch.zeros(width, dtype=torch.bool) for width in layers] for slot, layers in widths.items()}
    for slot, layers in units.items():
        for layer, chosen in layers.items():
            masks[slot][layer][chosen] = True
    scores = {slot: [torch.arange(width) / 10 for width in layers] for slot, layers in widths.items()}
    provenance = {"language": language, "model": {"name": "m", "fingerprint": "f"}, "selection": {"rule": "minimum"}}
    return NeuronSet.from_masks(masks, scores, provenance)


WIDTHS = {"q": (8, 8), "ffn": (20, 10)}


@pytest.fixture
def sets():
    french = make_set({"q": {0: [1, 2]}, "ffn": {1: [3, 4, 5, 9]}}, WIDTHS, "fr")
    chinese = make_set({"q": {0: [2], 1: [0]}, "ffn": {1: [3, 4]}}, WIDTHS, "zh")
    return {"fr": french, "zh": chinese}


def test_overlap_is_a_share_of_the_second_set(sets):
    content = describe.sets_content(sets)
    assert content["overlap"]["fr"]["zh"] == pytest.approx(3 / 4)
    assert content["overlap"]["zh"]["fr"] == pytest.approx(3 / 6)
    assert content["files"]["fr"]["neurons"] == 6
    assert content["files"]["fr"]["share"] == pytest.approx(6 / 46)


def test_chance_is_what_random_sets_of_the_same_counts_have(sets):
    content = describe.sets_content(sets)
    expected = 2 * 1 / 8 + 4 * 2 / 10
    assert content["chance"]["fr"]["zh"] == pytest.approx(expected / 4)
    drawn = [len(sets["fr"] & sets["zh"].random_like(seed, overlap=True)) for seed in range(400)]
    assert sum(drawn) / len(drawn) == pytest.approx(expected, abs=0.1)


def test_empty_sets_have_no_overlap(sets):
    content = describe.sets_content({**sets, "sw": make_set({}, WIDTHS, "sw")})
    assert "sw" not in content["overlap"]["fr"], "a share of nothing"
    assert content["overlap"]["sw"]["fr"] == 0
    assert draw.draw_sets(content, Screen())
    nothing = describe.sets_content({name: make_set({}, WIDTHS, name) for name in ("fr", "zh")})
    assert "No overlaps" in "\n".join(draw.draw_sets(nothing, Screen()))


def test_sets_of_different_models_are_listed_without_overlap(sets, tmp_path):
    other = make_set({"q": {0: [1]}}, {"q": (4,)}, "sw")
    for name, each in {**sets, "sw": other}.items():
        each.save(tmp_path / f"{name}.safetensors")
    content = describe.describe(tmp_path)
    assert list(content["sets"]["files"]) == ["fr", "sw", "zh"]
    assert "overlap" not in content["sets"]
    assert "no overlaps: " in "\n".join(draw.draw(content, Screen()))


def test_neuron_file(sets, tmp_path):
    sets["fr"].save(tmp_path / "fr.safetensors")
    content = describe.describe(tmp_path / "fr.safetensors", top=3)
    assert content["artefact"] == "neurons"
    assert content["by_slot"]["ffn"] == {"neurons": 4, "units": 30, "by_layer": [0, 4]}
    assert [(each["slot"], each["layer"], each["unit"]) for each in content["top"]] == [
        ("ffn", 1, 9),
        ("ffn", 1, 5),
        ("ffn", 1, 4),
    ]
    text = "\n".join(draw.draw(content, Screen(80)))
    assert "6 of 46 units (13 %)" in text
    assert "most in layer 1: 4" in text
    assert "fr French" in text
    assert describe.describe(tmp_path / "fr.safetensors", top=-1)["top"] == []


def test_neurons_without_scores_come_last(tmp_path):
    anatomy = Anatomy(tiny_model("llama"), check=False)
    NeuronSet.from_indices(anatomy, {"ffn": {0: [1, 2]}}).save(tmp_path / "a.safetensors")
    content = describe.describe(tmp_path / "a.safetensors")
    assert math.isnan(content["top"][0]["score"])
    assert draw.draw(content, Screen())[-2:] == ["  1   ffn      0     1      -", "  2   ffn      0     2      -"]


def test_units_of_experts_are_explained(sets, tmp_path):
    french = sets["fr"]
    provenance = {**french.provenance, "measurement": {"family": "Mixtral"}}
    NeuronSet(french.widths, french.indices, french.scores, provenance).save(tmp_path / "a.safetensors")
    assert "expert x width" in "\n".join(draw.draw(describe.describe(tmp_path / "a.safetensors"), Screen()))


def test_sets_selected_in_different_ways_carry_a_warning(sets):
    other = NeuronSet(WIDTHS, sets["fr"].indices, sets["fr"].scores, {**sets["fr"].provenance, "selection": {"eps": 1}})
    text = "\n".join(draw.draw_sets(describe.sets_content({**sets, "other": other}), Screen()))
    assert "selected in different ways" in text
    assert "other (fr French)" in text
    assert "different ways" not in "\n".join(draw.draw_sets(describe.sets_content(sets), Screen()))


def test_disjoint_by_construction_is_no_finding(sets):
    provenance = {"language": "fr", "selection": {"rule": "contrast", "rest_statistic": "max"}}
    apart = {
        name: NeuronSet(WIDTHS, each.indices, each.scores, provenance)
        for name, each in {"fr": sets["fr"] - sets["zh"], "zh": sets["zh"]}.items()
    }
    text = "\n".join(draw.draw_sets(describe.sets_content(apart), Screen()))
    assert "No overlaps: this rule gives" in text


def test_the_overlaps_of_many_languages_fit(sets):
    many = {language.code: sets["fr"] for language in all_languages()[:30]}
    content = describe.sets_content(many)
    for width in (60, 80, 120):
        assert max(map(cells, draw.draw_sets(content, Screen(width)))) <= width


# Atlases and runs


def make_atlas() -> Atlas:
    layout = Layout({"v": (4, 4), "ffn": (6, 6)}, folds=1, top_shares=(0.5,), activations=False)
    statistics = {}
    for number, language in enumerate(("fr", "zh"), 1):
        each = Statistics.empty(layout)
        each.documents += 2
        each.tokens += 30
        for slot, widths in layout.widths.items():
            each.slots[slot]["total"][:] = 2 * number * torch.arange(len(widths)).repeat_interleave(widths[0])
        statistics[language] = each
    record = {
        "name": "text.txt",
        "documents": 2,
        "tokens": 30,
        "skipped": {"seen": 9, "empty": 3, "too_short": 4},
        "batches_halved": 1,
    }
    model = {"name": "some/model", "revision": "main", "model_type": "llama", "fingerprint": "0123456789abcdef"}
    return Atlas(statistics, model, {"preset": "default"}, {"fr": [record, record], "zh": [record]})


def test_atlas(tmp_path):
    make_atlas().save(tmp_path / "a.safetensors")
    content = describe.describe(tmp_path / "a.safetensors")
    assert content["artefact"] == "atlas"
    assert content["languages"]["fr"]["skipped"]["empty"] == 6, "of both shards"
    assert content["mean_impact"]["zh"]["ffn"] == [0, 2]
    text = "\n".join(draw.draw(content, Screen(80)))
    for expected in ("some/model, revision main", "v 8, ffn 12: 20 in 2 layers", "3 batches were halved", "0 to 1.50"):
        assert expected in text


def test_merged_atlas_in_a_folder_with_neuron_files(tmp_path, sets):
    make_atlas().save(tmp_path)
    (tmp_path / "neurons").mkdir()
    for name in ("zh", "fr"):
        sets[name].save(tmp_path / "neurons" / f"{name}.safetensors")
    content = describe.describe(tmp_path)
    assert (content["artefact"], content["state"]) == ("run", "finished")
    assert list(content["sets"]["files"]) == ["fr", "zh"]


def test_unfinished_run(tmp_path):
    asked = {"command": "detect", "corpora": {"fr": [], "zh": [], "sw": []}, "settings": {"preset": "paper"}}
    write_json(tmp_path / "run.json", {"asked": asked, "environment": {"babelscope": "9.9"}, "status": "running"})
    write_tensors(tmp_path / "languages" / "fr.safetensors", "checkpoint", {}, {})
    write_tensors(tmp_path / "languages" / "zh.partial.safetensors", "checkpoint", {}, {})
    content = describe.describe(tmp_path / "run.json")
    assert content["languages"] == {"fr": "finished", "zh": "begun", "sw": "to do"}
    text = "\n".join(draw.draw(content, Screen()))
    assert "1 of 3 languages finished" in text
    assert "preset paper" in text
    with pytest.raises(DataError, match="Give the run folder"):
        describe.describe(tmp_path / "languages" / "fr.safetensors")


# Models


@pytest.mark.parametrize("name", [*TINY, *PROBED])
def test_model_folder_from_its_configuration_alone(name, tmp_path):
    model = tiny_model(name)
    model.config.save_pretrained(tmp_path)
    content = describe.describe(tmp_path)
    anatomy = Anatomy(model, check=False)
    assert content["supported"]
    assert content["family"] == anatomy.family
    assert content["layers"] == anatomy.n_layers
    assert content["units"] == anatomy.widths()
    assert content["unscored"] == anatomy.unscored(0)
    assert content["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert draw.draw(content, Screen())


def test_model_folder_that_is_not_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nonesuch"}), encoding="utf-8")
    content = describe.describe(tmp_path)
    assert content["supported"] is None
    assert "nonesuch" in content["reason"]
    assert "unknown, transformers can't build it" in "\n".join(draw.draw(content, Screen()))
    T5Config(num_layers=1, d_model=8, d_ff=8, d_kv=4, num_heads=2, vocab_size=8).save_pretrained(tmp_path)
    content = describe.describe(tmp_path / "config.json")
    assert not content["supported"]
    assert draw.draw(content, Screen())


def test_model_folder_that_brings_code_is_not_run(tmp_path):
    config = {"model_type": "nonesuch", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('this code was run')", encoding="utf-8")
    assert describe.describe(tmp_path)["supported"] is None


def test_support_table():
    rows = support.support()
    assert support.SLOTS == SLOTS
    assert [row["family"] for row in rows] == [family.name for family in FAMILIES]
    lines = support.support_markdown().splitlines()
    assert len(lines) == len(FAMILIES) + 2
    assert len({line.count("|") for line in lines}) == 1
    for width in (60, 80, 120):
        assert max(map(cells, support.draw_support(Screen(width)))) <= width


# Anything else


def test_paths_that_hold_nothing_to_show(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        describe.describe(tmp_path / "none")
    with pytest.raises(DataError, match="found nothing at all"):
        describe.describe(tmp_path)
    (tmp_path / "notes.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match="nothing that Babelscope makes"):
        describe.describe(tmp_path / "notes.txt")
    with pytest.raises(DataError, match=r"found notes\.txt"):
        describe.describe(tmp_path)
    (tmp_path / "config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(DataError, match="wanted a JSON object"):
        describe.describe(tmp_path)
    (tmp_path / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=": not JSON"):
        describe.describe(tmp_path)


@pytest.mark.parametrize(
    "provenance",
    [
        "text",
        ["list"],
        {"model": "text"},
        {"corpus": "text"},
        {"corpus": [{"documents": "many"}]},
        {"selection": "text"},
        {"language": {"a": 1}, "measurement": 7},
    ],
)
def test_headers_of_strangers_never_end_in_a_traceback(provenance, tmp_path):
    widths = {slot: list(layers) for slot, layers in WIDTHS.items()}
    write_tensors(tmp_path / "a.safetensors", "neurons", {}, {"widths": widths, "provenance": provenance})
    for path in (tmp_path / "a.safetensors", tmp_path):
        with contextlib.suppress(DataError):
            draw.draw(describe.describe(path), Screen())


def test_a_run_record_of_strangers(tmp_path):
    for asked in ("text", {"corpora": 7}):
        write_json(tmp_path / "run.json", {"asked": asked})
        with pytest.raises(DataError, match="damaged"):
            describe.run_state(tmp_path)


def test_a_study_is_shown_with_what_it_found(tmp_path):
    """Until then it was shown as a detection of no languages."""
    finding = {"claim": "A holds", "verdict": "holds", "text": "It does.", "effect": 0.5, "low": 0.25, "high": 0.75}
    result = {
        "kind": "babelscope result",
        "version": 1,
        "stage": "damage",
        "model": "m",
        "title": "Damage",
        "seconds": 120.0,
        "command": "babelscope study s.yaml",
        "how": "So.",
        "findings": [finding],
        "tables": [],
        "figures": [],
    }
    record = {"asked": {"command": "study"}, "status": "unfinished", "models": {"m": {}}, "stages": ["damage", "lens"]}
    write_json(tmp_path / "run.json", record)
    (tmp_path / "m" / "damage").mkdir(parents=True)
    write_json(tmp_path / "m" / "damage" / "result.json", result)
    found = describe.describe(tmp_path)
    assert found["artefact"] == "study"
    assert [each["claim"] for each in found["models"]["m"]["findings"]] == ["A holds"]
    shown = "\n".join(draw.draw(found, Screen()))
    assert all(part in shown for part in ("unfinished", "m lens", "A holds. It does.", "1 stage, 2 min", "makes it"))


def test_a_run_of_another_command_names_it(tmp_path):
    write_json(tmp_path / "run.json", {"asked": {"command": "lens"}, "status": "finished"})
    shown = "\n".join(draw.draw(describe.describe(tmp_path), Screen()))
    assert "finished" in shown
    assert "lens" in shown
    assert "languages" not in shown
