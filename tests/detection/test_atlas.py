"""What an atlas keeps on disk, and what it refuses to merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from babelscope import Atlas
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.models.observe import Observation
from babelscope.models.taps import Activation
from babelscope.neurons.statistics import Layout, Statistics

torch.set_num_threads(1)

LAYOUT = Layout({"v": (3, 5), "ffn": (7, 2)}, folds=3, top_shares=(0.3, 0.6), thresholds=(1.0,))
MODEL = {"name": "tiny", "revision": None, "model_type": "llama", "fingerprint": "abc"}
SETTINGS = {"preset": "default", "max_tokens": 32, "slots": ["v", "ffn"]}


def statistics(positions: list[int], seed: int = 0, layout: Layout = LAYOUT) -> Statistics:
    """Documents that a position and the seed decide, with impacts whose sums are exact."""
    found = Statistics.empty(layout)
    for position in positions:
        generator = torch.Generator().manual_seed(1000 * seed + position)

        def draw(width: int, generator: torch.Generator = generator) -> torch.Tensor:
            return torch.randperm(100, generator=generator)[None, :width] / 64

        impact = {slot: [draw(width) for width in widths] for slot, widths in layout.widths.items()}
        activation = {
            slot: [Activation(draw(width).round(), draw(width), draw(width)) for width in widths]
            for slot, widths in layout.widths.items()
        }
        found.add(Observation(impact, activation), torch.tensor([9]), torch.tensor([position]), per_token=False)
    return found


def record(shard: tuple[int, int] = (0, 1), **changes: Any) -> dict[str, Any]:
    return {"name": "fr.txt", "identity": "sha256:1", "shard": list(shard), "seed": 0, "asked": None, **changes}


def atlas(language: str = "fr", shard: tuple[int, int] = (0, 1), documents: int = 12, **changes: Any) -> Atlas:
    positions = [position for position in range(documents) if position % shard[1] == shard[0]]
    return Atlas({language: statistics(positions)}, dict(MODEL), dict(SETTINGS), {language: [record(shard, **changes)]})


def assert_bit_equal(found: Atlas, expected: Atlas) -> None:
    assert found.languages == expected.languages
    for language in expected.languages:
        assert found.of(language).layout == expected.of(language).layout
        mine, theirs = found.of(language).tensors("x"), expected.of(language).tensors("x")
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name].dtype == value.dtype
            assert torch.equal(mine[name], value), (language, name)


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_folder", [False, True])
def test_saved_and_loaded(tmp_path: Path, in_folder: bool) -> None:
    both = atlas("fr") | atlas("zh-Hant", documents=5)
    path = tmp_path if in_folder else tmp_path / "deep" / "both.safetensors"
    both.save(path)
    loaded = Atlas.load(path)
    assert_bit_equal(loaded, both)
    assert (loaded.model, loaded.settings, loaded.corpora) == (both.model, both.settings, both.corpora)
    assert loaded.layout == LAYOUT
    assert loaded.slots == ("v", "ffn")
    assert loaded.languages == ("fr", "zh-Hant")
    written = path / "atlas.safetensors" if in_folder else path
    assert [item.name for item in written.parent.iterdir()] == [written.name]


def test_an_atlas_of_doubles_stays_one(tmp_path: Path) -> None:
    one = Atlas({"fr": Statistics.empty(LAYOUT, torch.float64)}, MODEL, SETTINGS)
    one.save(tmp_path)
    assert Atlas.load(tmp_path).of("fr").slots["v"]["minimum"].dtype == torch.float64
    assert_bit_equal(Atlas.load(tmp_path), one)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "atlas.safetensors"
    (atlas("fr") | atlas("zh")).save(path)
    return path


@pytest.mark.parametrize("kept", [0, 7, 500, -1])
def test_a_truncated_file(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{saved} is not a whole safetensors file"):
        Atlas.load(saved)
    with pytest.raises(DataError, match=rf"{saved} is not a whole safetensors file"):
        Atlas.load(saved.parent)


def _rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> None:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["babelscope"])
    tensors = load_file(path)
    change(header, tensors)
    header.pop("checksum", None)  # as in a file of an earlier version
    save_file(tensors, path, metadata={"babelscope": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda header, tensors: header.pop("layout"), "header is damaged"),
        (lambda header, tensors: header["layout"].pop("folds"), "header is damaged"),
        (lambda header, tensors: header["layout"].update(folds="x"), "header is damaged"),
        (lambda header, tensors: header.update(languages=3), "header is damaged"),
        (lambda header, tensors: header.pop("model"), "header is damaged"),
        (lambda header, tensors: header.pop("settings"), "header is damaged"),
        (lambda header, tensors: header["languages"].append("sw"), "no tensor .*sw.documents"),
        (lambda header, tensors: tensors.pop("zh.v.hits"), "no tensor .*zh.v.hits"),
        (lambda header, tensors: header["layout"].update(folds=4), r"no tensor .*of shape \(4,"),
        (lambda header, tensors: header["layout"]["widths"].update(v=[3, 6]), r"no tensor .*of shape \(3, 9\)"),
        (lambda header, tensors: header.update(kind="neurons"), "wanted a file of kind 'atlas', found 'neurons'"),
    ],
)
def test_a_damaged_file(saved: Path, change: Callable[..., Any], match: str) -> None:
    _rewritten(saved, change)
    with pytest.raises(DataError, match=match) as caught:
        Atlas.load(saved)
    assert str(saved) in str(caught.value)


def test_no_atlas_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*atlas\.safetensors"):
        Atlas.load(tmp_path)
    with pytest.raises(DataError, match="no file"):
        Atlas.load(tmp_path / "nowhere")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(DataError, match=r"is a run that has not finished\. Repeat its detect command"):
        Atlas.load(tmp_path)


def test_a_missing_language() -> None:
    both = atlas("fr") | atlas("zh")
    assert both.of("fra") is both.statistics["fr"]
    with pytest.raises(ConfigError, match=r"the atlas holds fr, zh, not 'de'\. Detect it too and merge"):
        both.of("de")
    with pytest.raises(ConfigError, match="unknown language 'frr_'"):
        both.of("frr_")


# ----------------------------------------------------------------------------------------------------------------------
# Merging
# ----------------------------------------------------------------------------------------------------------------------


@given(parts=st.integers(1, 5), order=st.randoms(use_true_random=False), documents=st.integers(5, 20))
@settings(max_examples=25, deadline=None)
def test_shards_in_any_order_are_one_run(parts: int, order: Any, documents: int) -> None:
    shards = [atlas("fr", (number, parts), documents) for number in range(parts)]
    order.shuffle(shards)
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged | shard
    assert_bit_equal(merged, atlas("fr", documents=documents))
    assert sorted(record["shard"] for record in merged.corpora["fr"]) == [[n, parts] for n in range(parts)]


def test_languages_come_together_and_both_sides_stay_as_they_were(tmp_path: Path) -> None:
    left = atlas("fr", (0, 2)) | atlas("zh")
    right = atlas("fr", (1, 2)) | atlas("sw")
    for name, each in (("left", left), ("right", right)):
        each.save(tmp_path / name)
    merged = left | right
    assert merged.languages == ("fr", "zh", "sw")
    assert_bit_equal(Atlas({"fr": merged.of("fr")}, MODEL, SETTINGS), atlas("fr"))
    assert_bit_equal(Atlas({"sw": merged.of("sw")}, MODEL, SETTINGS), atlas("sw"))
    assert [len(merged.corpora[code]) for code in merged.languages] == [2, 1, 1]
    assert_bit_equal(Atlas.load(tmp_path / "left"), left)
    assert_bit_equal(Atlas.load(tmp_path / "right"), right)
    assert Atlas.load(tmp_path / "left").corpora == left.corpora


def test_other_files_of_a_language_are_added() -> None:
    merged = atlas("fr") | atlas("fr", documents=5, name="more.txt", identity="sha256:2")
    assert int(merged.of("fr").documents.sum()) == 17
    streams = atlas("fr", identity="unknown") | atlas("fr", identity="unknown")
    assert int(streams.of("fr").documents.sum()) == 24, "nobody can tell whether these are the same"


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        ({}, {}),
        ({"shard": (0, 2)}, {"shard": (0, 2)}),
        ({}, {"shard": (1, 2)}),  # the whole and a half of it
        ({"shard": (1, 2)}, {"shard": (3, 4)}),
        ({"shard": (1, 2)}, {"shard": (1, 3)}),  # they meet at position 1
        ({"shard": (0, 2)}, {"shard": (1, 2), "seed": 1}),  # another draw from the same file
        ({"shard": (0, 2), "asked": 10}, {"shard": (1, 2), "asked": 20}),
    ],
)
def test_documents_are_not_counted_twice(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    for left, right in ((mine, theirs), (theirs, mine)):
        with pytest.raises(ProvenanceError, match=r"fr: both atlases counted the same documents.*of fr\.txt") as caught:
            atlas("fr", **left) | atlas("fr", **right)
        assert "--shard 0/2 and --shard 1/2" in str(caught.value)


@pytest.mark.parametrize("other", [(1, 2), (1, 4), (3, 4)])
def test_shards_that_share_no_document(other: tuple[int, int]) -> None:
    merged = atlas("fr", (0, 2)) | atlas("fr", other)
    positions = [n for n in range(12) if n % 2 == 0 or n % other[1] == other[0]]
    assert_bit_equal(merged, Atlas({"fr": statistics(positions)}, MODEL, SETTINGS))


def test_a_shard_merged_before_is_recognised() -> None:
    merged = atlas("fr", (0, 3)) | atlas("fr", (1, 3))
    with pytest.raises(ProvenanceError, match="shard 1/3"):
        merged | atlas("fr", (1, 3))
    assert int((merged | atlas("fr", (2, 3))).of("fr").documents.sum()) == 12


def test_another_model() -> None:
    other = atlas("zh")
    other.model["fingerprint"] = "def"
    with pytest.raises(ProvenanceError, match=r"found tiny \(abc\) and tiny \(def\)\. Merge atlases of one model only"):
        atlas("fr") | other


def test_other_settings() -> None:
    other = atlas("zh")
    other.settings["max_tokens"] = 64
    with pytest.raises(ProvenanceError, match=r"measured differently \(max_tokens: 32 and 64\)"):
        atlas("fr") | other


def test_settings_that_only_one_side_has() -> None:
    other = atlas("zh")
    other.settings["new"] = 1
    for left, right in ((atlas("fr"), other), (other, atlas("fr"))):
        with pytest.raises(ProvenanceError, match="new: "):
            left | right


@pytest.mark.parametrize("changes", [{"folds": 2}, {"thresholds": ()}, {"top_shares": (0.3,)}, {"activations": False}])
def test_other_counts(changes: dict[str, Any]) -> None:
    other = Atlas({"zh": Statistics.empty(replace(LAYOUT, **changes))}, MODEL, SETTINGS)
    with pytest.raises(ProvenanceError, match="other slots, folds or counts"):
        atlas("fr") | other


def test_something_else_than_an_atlas() -> None:
    with pytest.raises(TypeError):
        atlas("fr") | {"fr": 1}  # type: ignore[operator]
