"""The commands that act on a model: what they print is what the library does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from babelscope import Anatomy, Atlas, NeuronSet, Stages, ablate, cli, detect, load_model
from babelscope.editing.recorded import record_activations
from babelscope.editing.steering import residual_means, steer_by_means
from babelscope.errors import ConfigError
from builders import byte_llama, byte_tokenizer, make_texts
from editing.cases import zeroed_by_hand
from fixtures_text import write_texts

LAYERS = 4
PROMPTS = ("lemon rain", "an old\nhouse")


class Place(NamedTuple):
    model: Path
    fr: Path
    zh: Path
    atlas: Path
    texts: dict[str, Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model folder, two neuron files and an atlas."""
    folder = tmp_path_factory.mktemp("edits")
    names = ("model", "fr.safetensors", "zh.safetensors", "atlas.safetensors")
    found = Place(*(folder / name for name in names), write_texts(folder / "texts"))
    model = byte_llama(num_hidden_layers=LAYERS)
    model.generation_config.eos_token_id = None
    model.generation_config.do_sample = True
    model.save_pretrained(found.model)
    byte_tokenizer().save_pretrained(found.model)
    loaded, tokenizer = load_model(found.model)
    anatomy = Anatomy(loaded, check=False)
    for start, path in ((0, found.fr), (1, found.zh)):
        indices = {
            slot: {layer: range(start, anatomy.width(slot, layer), 3) for layer in range(LAYERS)}
            for slot in ("v", "ffn")
        }
        NeuronSet.from_indices(anatomy, indices).save(path)
    detect(loaded, tokenizer, {"fr": make_texts("fr", 6)}, max_tokens=32).save(found.atlas)
    return found


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    return cli.main([str(word) for word in words]), *capsys.readouterr()


def answer(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    code, out, err = run(capsys, *words, "--json")
    assert code == 0, err
    assert "warning" not in err
    return json.loads(out)


def greedy(model: Any, prompt: str, count: int) -> str:
    """Without cache, token by token."""
    ids = torch.tensor([byte_tokenizer()(prompt)["input_ids"]])
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return byte_tokenizer().decode(ids[0, start:], skip_special_tokens=True)


def prompts() -> list[str]:
    return [word for prompt in PROMPTS for word in ("--prompt", prompt)]


def test_ablate_shows_before_and_after(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    found = answer(capsys, "ablate", place.model, "--neurons", place.fr, *prompts(), "--max-new-tokens", 9)
    model, _ = load_model(place.model)
    assert [each["prompt"] for each in found["continuations"]] == list(PROMPTS)
    for each in found["continuations"]:
        assert each["before"] == greedy(model, each["prompt"], 9)
        with zeroed_by_hand(model, NeuronSet.load(place.fr)):
            assert each["after"] == greedy(model, each["prompt"], 9)
        assert each["before"] != each["after"]


def test_stages_are_those_of_the_paper_in_proportion_unless_told(
    capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    """Of four layers the first understands and the last generates; 8 and 2 of 32 used to be taken for any model."""
    words = ("ablate", place.model, "--neurons", place.fr, "--stage", "solve", "--prompt", "a", "--json")
    usual, told = (run(capsys, *words, *more) for more in ((), ("--stages", "1,1")))
    assert usual == told
    assert usual[0] == 0


def test_ablate_by_stage_and_structure(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    words = [
        "--stages",
        "1,2",
        "--stage",
        "understand,solve",
        "--structure",
        "attention",
        "--op",
        "scale",
        "--factor",
        "-3",
    ]
    found = answer(capsys, "ablate", place.model, "--neurons", place.fr, *words, "--prompt", "lemon rain")
    model, _ = load_model(place.model)
    neurons = NeuronSet.load(place.fr)
    part = Stages(1, 2).of(neurons, ["understand", "solve"], "attention")
    assert {(slot, layer) for slot, layer, _ in part} == {("v", 0), ("v", 1)}
    with ablate(model, part, op="scale", factor=-3):
        assert found["continuations"][0]["after"] == greedy(model, "lemon rain", 40)
    assert found["edit"] == f"scale of {part!r}"


def test_steer(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    words = ["--to", place.fr, "--away", place.zh, "--factor", 4, *prompts(), "--max-new-tokens", 7]
    found = answer(capsys, "steer", place.model, *words)
    model, _ = load_model(place.model)
    with ablate(model, NeuronSet.load(place.fr), op="scale", factor=4), ablate(model, NeuronSet.load(place.zh)):
        assert [each["after"] for each in found["continuations"]] == [greedy(model, each, 7) for each in PROMPTS]


@pytest.mark.parametrize("op", ["median", "resample"])
def test_values_that_are_recorded_from_a_text(capsys: pytest.CaptureFixture[str], place: Place, op: str) -> None:
    words = ["--op", op, "--reference", place.texts["zh"], "--documents", 3, "--structure", "ffn"]
    found = answer(capsys, "ablate", place.model, "--neurons", place.fr, *words, *prompts(), "--max-new-tokens", 7)
    model, tokenizer = load_model(place.model)
    neurons = NeuronSet.load(place.fr).at(slots=("ffn",))
    reference = record_activations(model, tokenizer, place.texts["zh"], neurons, documents=3)
    with ablate(model, neurons, op=op, reference=reference):
        assert [each["after"] for each in found["continuations"]] == [greedy(model, each, 7) for each in PROMPTS]
    other = record_activations(model, tokenizer, place.texts["zh"], neurons)
    assert other.tokens > reference.tokens
    assert any(each["after"] != each["before"] for each in found["continuations"])


@pytest.mark.parametrize(
    ("words", "options"), [([], {}), (["--layers", "0,2", "--factor", "-6"], {"layers": [0, 2], "alpha": -6})]
)
def test_steer_by_means(capsys: pytest.CaptureFixture[str], place: Place, words: list[str], options: dict) -> None:
    texts = place.texts
    command = ["--by", "means", "--to", texts["fr"], "--away", texts["zh"], "--documents", 4, *words]
    found = answer(capsys, "steer", place.model, *command, *prompts(), "--max-new-tokens", 7)
    model, tokenizer = load_model(place.model)
    means = residual_means(model, tokenizer, {language: texts[language] for language in ("fr", "zh")}, documents=4)
    with steer_by_means(model, means, "fr", "zh", **{"layers": [1, 2], **options}):
        assert [each["after"] for each in found["continuations"]] == [greedy(model, each, 7) for each in PROMPTS]
    assert any(each["after"] != each["before"] for each in found["continuations"])
    assert found["edit"].startswith(f"{options.get('alpha', 1)} x (mean of ")


def test_layers_are_of_means(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    words = ["--to", place.fr, "--away", place.zh, "--layers", "1", "--prompt", "a"]
    code, _, err = run(capsys, "steer", place.model, *words)
    assert (code, "--layers goes with --by means" in err) == (1, True)


@pytest.mark.parametrize("columns", [60, 100])
def test_side_by_side_on_a_screen(
    capsys: pytest.CaptureFixture[str], place: Place, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = run(capsys, "ablate", place.model, "--neurons", place.fr, *prompts(), "--max-new-tokens", 30)
    assert code == 0
    assert all(len(line) <= columns for line in out.splitlines())
    assert out.splitlines()[0].startswith("zero of NeuronSet(")
    assert "an old ⏎ house" in out
    assert out.count("before") == out.count("after") == 2


def test_export(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    found = answer(capsys, "export", place.model, "--neurons", place.fr, "--op", "zero", "--out", tmp_path / "out")
    assert (found["folder"], found["difference"]) == (str(tmp_path / "out"), 0)
    model, copied = load_model(place.model)[0], AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids, mask = tiny.ragged_batch(model)
    with ablate(model, NeuronSet.load(place.fr)), torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
        assert torch.equal(copied(input_ids=ids, attention_mask=mask).logits, expected)
    code, out, _ = run(capsys, "show", tmp_path / "out")
    assert (code, "Model" in out) == (0, True)

    code, _, err = run(capsys, "export", place.model, "--neurons", place.fr, "--out", tmp_path / "out")
    assert code == 1
    assert "not an empty folder. Give a new one with --out." in err


def test_export_of_a_mean_for_a_screen(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    words = ["--op", "mean", "--reference", place.atlas, "--structure", "ffn", "--out", tmp_path / "out"]
    code, out, err = run(capsys, "export", place.model, "--neurons", place.fr, *words)
    assert code == 0, err
    assert "warning" not in err
    assert f"Exportedto{tmp_path / 'out'}" in "".join(out.split())  # a long path is broken
    assert "mlp_bias" in out
    assert "attention_bias" not in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--op", "scale"], "op='scale' needs factor"),
        (["--op", "erase"], "wanted op among zero, scale, clamp, mean, median, resample"),
        (["--op", "median"], "op='median' needs reference"),
        (["--stage", "solve", "--stages", "8,2"], "the stage understand has 8 layers, the model only 4"),
        (["--stage", "solving", "--stages", "1,1"], "wanted a stage among understand, solve, generate"),
        (["--stage", "solve", "--stages", "2,2"], "there is nothing to edit"),
    ],
)
def test_errors_explain_themselves(
    capsys: pytest.CaptureFixture[str], place: Place, words: list[str], expected: str
) -> None:
    code, out, err = run(capsys, "ablate", place.model, "--neurons", place.fr, *words, "--prompt", "a")
    assert (code, out) == (1, "")
    assert expected in err


def test_neurons_that_are_not_there(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    there = f"There are {place.fr}, {place.zh}."
    (tmp_path / "empty").mkdir()
    german = place.fr.with_name("de.safetensors")
    for path, expected in (
        (german, f"wanted a neuron file or a folder of them, found nothing at {german}. {there}"),
        (tmp_path / "empty", f"found a folder without any at {tmp_path / 'empty'}. babelscope select writes them."),
        (tmp_path / "a" / "b", f"found nothing at {tmp_path / 'a' / 'b'}. babelscope select writes them."),
    ):
        for command in (
            ["ablate", "no-model", "--neurons", path, "--prompt", "a"],
            ["steer", "no-model", "--to", place.fr, "--away", path, "--prompt", "a"],
            ["export", "no-model", "--neurons", path, "--out", tmp_path / "out"],
            ["evaluate", "no-model", "--neurons", path, "--tasks", "tinybabel"],
        ):
            code, _, err = run(capsys, *command)
            assert (code, expected in err) == (1, True)


def test_neurons_of_files_of_a_folder_and_of_a_run_are_the_same(
    capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path
) -> None:
    for file in (place.fr, place.zh):
        (tmp_path / "neurons").mkdir(exist_ok=True)
        (tmp_path / "neurons" / file.name).write_bytes(file.read_bytes())
    told = []
    for paths in ([place.fr, place.zh], [tmp_path / "neurons"], [tmp_path], [place.fr.parent]):
        shown = answer(capsys, "ablate", place.model, "--neurons", *paths, "--prompt", "a", "--max-new-tokens", 4)
        told.append((shown["edit"], shown["continuations"]))
    assert told == [told[0]] * 4
    both = NeuronSet.load(place.fr) | NeuronSet.load(place.zh)
    assert told[0][0] == f"zero of {both!r}"


def test_means_reach_evaluate(
    capsys: pytest.CaptureFixture[str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def stop(*_: Any, **options: Any) -> None:
        asked.update(options)
        raise ConfigError("enough")

    monkeypatch.setattr("babelscope.evaluation.evaluate.evaluate", stop)
    words = ["--tasks", "tinybabel", "--reference", place.atlas, "--neurons", place.fr]
    run(capsys, "evaluate", place.model, *words, "--op", "mean")
    assert asked["op"] == "mean"
    assert asked["reference"].languages == Atlas.load(place.atlas).languages


def test_neurons_of_another_model_need_force(capsys: pytest.CaptureFixture[str], place: Place, tmp_path: Path) -> None:
    model = byte_llama(num_hidden_layers=LAYERS)
    model.lm_head.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    byte_tokenizer().save_pretrained(tmp_path / "other")
    for command in (
        ["ablate", tmp_path / "other", "--neurons", place.fr, "--prompt", "a"],
        ["steer", tmp_path / "other", "--to", place.fr, "--away", place.zh, "--prompt", "a"],
        ["export", tmp_path / "other", "--neurons", place.fr, "--out", tmp_path / "out"],
    ):
        code, _, err = run(capsys, *command)
        assert (code, "--force" in err) == (1, True)
        assert run(capsys, *command, "--force")[0] == 0


def test_stages_that_cannot_be_read(capsys: pytest.CaptureFixture[str], place: Place) -> None:
    with pytest.raises(SystemExit):
        run(capsys, "ablate", place.model, "--neurons", place.fr, "--stages", "8", "--prompt", "a")
    assert "wanted N,N, such as 8,2" in capsys.readouterr().err
