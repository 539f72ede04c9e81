"""lm-evaluation-harness on an edited model: the numbers are those of weights zeroed by hand, of the harness's own
command, and of the exported checkpoint; a killed run goes on and gives the same."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

from babelscope import Anatomy, NeuronSet, ablate, detect, export
from babelscope.errors import ConfigError, NumericsError, ProvenanceError, RunFolderError
from babelscope.evaluation.evaluate import ANSWERS, Evaluation, evaluate
from babelscope.evaluation.harness import Answer, Answers, EditedLM, write_task_files
from babelscope.evaluation.inference import bootstrap_mean, wilson
from babelscope.evaluation.tasks.benchmarks import find
from builders import byte_llama, byte_tokenizer, make_texts
from editing.cases import some, zeroed_by_hand
from evaluation.commands import harness_command

CHOICE, SPAN = "tinybabel_knowledge", "tinybabel_understanding"
NAMES = ("babelscope_tinybabel_knowledge_fr", "babelscope_tinybabel_understanding_fr")


class World(NamedTuple):
    model: PreTrainedModel
    tokenizer: Any
    neurons: NeuronSet
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A tiny model that reads 2048 bytes, in a folder too, with neurons whose zeroing can be seen."""
    folder = tmp_path_factory.mktemp("world")
    model = byte_llama(max_position_embeddings=2048)
    model.save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    neurons = some(Anatomy(model, check=False))
    neurons.save(folder / "fr.safetensors")
    return World(model, byte_tokenizer(), neurons, folder)


def measure(world: World, *tasks: str, **options: Any) -> Evaluation:
    options = {"limit": 3, "batch_size": 2, **options}
    return evaluate(world.model, world.tokenizer, tasks or (CHOICE, SPAN), ["fr"], **options)


def answers(found: Evaluation, name: str) -> list[Any]:
    return [sample["resps"] for sample in found.results["samples"][name]]


def by_hand(world: World, text: str, choice: str) -> float:
    """Log-likelihood of a choice: nats, unbatched."""
    ids = torch.tensor([world.tokenizer(text + choice).input_ids])
    with torch.no_grad():
        logs = world.model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return float(logs[-len(world.tokenizer(choice, add_special_tokens=False).input_ids) :].sum())


def test_likelihoods_and_text_are_those_of_weights_zeroed_by_hand(world):
    before = {name: tensor.clone() for name, tensor in world.model.state_dict().items()}
    intact, edited = measure(world), measure(world, neurons=world.neurons)
    for name, tensor in world.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "restored bit for bit"
    world.model.generation_config.eos_token_id = 2
    for found, neurons in ((intact, None), (edited, world.neurons)):
        with zeroed_by_hand(world.model, neurons):
            for sample in found.results["samples"][NAMES[0]]:
                likelihoods = [by_hand(world, *request) for request in sample["arguments"]]
                assert [answer[0][0] for answer in sample["resps"]] == pytest.approx(likelihoods, rel=1e-4)
                assert sample["acc"] == float(likelihoods.index(max(likelihoods)) == sample["doc"]["gold"])
            for sample in found.results["samples"][NAMES[1]]:
                prompt = world.tokenizer(sample["arguments"][0][0], return_tensors="pt")
                said = world.model.generate(**prompt, max_new_tokens=16, do_sample=False, pad_token_id=0)
                text = world.tokenizer.decode(said[0, prompt.input_ids.shape[1] :], skip_special_tokens=True)
                assert sample["resps"] == [[text.split("\n")[0]]]
    for name in NAMES:
        assert answers(intact, name) != answers(edited, name), "the edit can be seen"


def test_scores_and_intervals_are_those_of_the_samples(world):
    found = measure(world, neurons=world.neurons)
    for score in found.scores:
        name = f"babelscope_{score.task}_fr"
        items = [sample[score.metric] for sample in found.results["samples"][name]]
        assert score.items == tuple(items)
        expected = bootstrap_mean(items) if score.metric == "f1" else wilson(int(sum(items)), len(items))
        assert score.interval == expected
        assert score.interval.value == pytest.approx(found.results["results"][name][f"{score.metric},none"])
    assert {(score.task, score.metric) for score in found.scores} == {
        (CHOICE, "acc"), (CHOICE, "acc_per_byte"), (SPAN, "exact_match"), (SPAN, "f1"), (SPAN, "contains")
    }  # fmt: skip
    assert found.score(CHOICE, "fr", "acc") in found.scores
    with pytest.raises(ConfigError, match="no score mgsm/fr/acc; measured were tinybabel_knowledge/fr/acc"):
        found.score("mgsm", "fr", "acc")
    assert str(found).count("\n") == len(found.scores)


@pytest.mark.parametrize("op", ["zero", "mean"])
def test_the_harness_command_and_the_export_give_the_same(world, tmp_path, monkeypatch, op):
    atlas = detect(world.model, world.tokenizer, {"fr": make_texts("fr", 4)}, max_tokens=48)
    atlas.save(tmp_path / "atlas.safetensors")
    given: dict[str, Any] = {} if op == "zero" else {"reference": atlas}
    ours = measure(world, neurons=world.neurons, op=op, **given)
    files = write_task_files(find([CHOICE, SPAN], ["fr"], None), tmp_path / "tasks")
    tasks = ("--tasks", ",".join(map(str, files)))
    asked = f"pretrained={world.folder / 'model'},neurons={world.folder / 'fr.safetensors'},op={op}"
    asked += f",reference={tmp_path / 'atlas.safetensors'}" if given else ""
    edited = harness_command(
        monkeypatch, tmp_path / "edited", NAMES, "--model", "babelscope", "--model_args", asked, *tasks
    )
    export(world.model, world.tokenizer, world.neurons, tmp_path / "exported", op=op, **given)
    plain = f"pretrained={tmp_path / 'exported'}"
    exported = harness_command(monkeypatch, tmp_path / "plain", NAMES, "--model", "hf", "--model_args", plain, *tasks)
    for name in NAMES:
        saved = json.loads(json.dumps(answers(ours, name)))
        for theirs in (edited, exported):
            if name == NAMES[1]:
                assert theirs["samples"][name] == saved
            else:  # the harness writes them as text
                numbers = [float(choice[0][0]) for item in theirs["samples"][name] for choice in item]
                assert numbers == pytest.approx([choice[0][0] for item in saved for choice in item], rel=1e-5)
            for score in ours.scores:
                if name == f"babelscope_{score.task}_fr":
                    assert theirs["results"][name][f"{score.metric},none"] == pytest.approx(score.interval.value)


def test_task_files_carry_the_data_folder(tmp_path):
    (tmp_path / "mgsm").mkdir()
    (tmp_path / "mgsm" / "mgsm_fr.tsv").write_text("Un et un ?\t2\n", encoding="utf-8")
    (file,) = write_task_files(find(["mgsm"], ["fr"], tmp_path), tmp_path / "tasks")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(file.parent), include_defaults=False)
    task = manager.load(["babelscope_mgsm_fr"])["tasks"]["babelscope_mgsm_fr"]
    assert [doc["number"] for doc in task.test_docs()] == [2]
    assert task.VERSION == 2


# Killed and started again


def plainly(folder: Path) -> dict[str, str]:
    """What a run wrote, without what differs between folders."""
    written = (path for path in folder.iterdir() if path.suffix in (".json", ".jsonl") and path.name != "run.json")
    return {path.name: path.read_text(encoding="utf-8") for path in written}


def test_a_killed_run_goes_on_and_writes_the_same(world, tmp_path, monkeypatch):
    options = {"limit": 5, "batch_size": 1, "neurons": world.neurons}
    whole = measure(world, **options, run_dir=tmp_path / "whole")
    add, blocks = Answers.add, []

    def dies(self: Answers, found: dict[str, Any]) -> None:
        blocks.append(set(found))
        if len(blocks) == 4:
            raise KeyboardInterrupt
        add(self, found)

    with monkeypatch.context() as patch:
        patch.setattr(Answers, "add", dies)
        with pytest.raises(KeyboardInterrupt):
            measure(world, **options, run_dir=tmp_path / "killed")
    with (tmp_path / "killed" / ANSWERS).open("ab") as stream:
        stream.write('{"request": "half a lé'.encode()[:-1])
    assert not (tmp_path / "killed" / "results.json").exists()
    done = set.union(*blocks[:3])

    def watch(self: Answers, found: dict[str, Any]) -> None:
        assert not done & set(found), "no answer is given twice"
        again.update(found)
        add(self, found)

    again: set[str] = set()
    monkeypatch.setattr(Answers, "add", watch)
    resumed = measure(world, **options, run_dir=tmp_path / "killed")
    assert done
    assert again
    assert len(done | again) == len(Answers(tmp_path / "whole" / ANSWERS))
    assert plainly(tmp_path / "killed") == plainly(tmp_path / "whole")
    assert resumed.scores == whole.scores
    status = json.loads((tmp_path / "killed" / "run.json").read_text(encoding="utf-8"))
    assert status["status"] == "finished"
    again.clear()
    assert measure(world, **options, run_dir=tmp_path / "killed").scores == whole.scores
    assert not again, "a finished run is only read"
    with pytest.raises(RunFolderError, match="limit: then 5, now 4"):
        measure(world, **{**options, "limit": 4}, run_dir=tmp_path / "killed")
    with pytest.raises(RunFolderError, match=r"neurons: then '[0-9a-f]+', now None"):
        measure(world, **{**options, "neurons": None}, run_dir=tmp_path / "killed")


def test_a_run_under_mean_is_resumed_with_the_same_means_only(world, tmp_path):
    atlas = detect(world.model, world.tokenizer, {code: make_texts(code, 4) for code in ("fr", "zh")}, max_tokens=48)
    options = {"limit": 1, "neurons": world.neurons, "op": "mean", "run_dir": tmp_path / "run"}
    found = measure(world, CHOICE, **options, reference=atlas)
    assert measure(world, CHOICE, **options, reference=atlas).scores == found.scores
    with pytest.raises(RunFolderError, match="means: then"):
        measure(world, CHOICE, **options, reference=atlas.of("zh"))
    with pytest.raises(ConfigError, match="op 'mean' needs the units' mean activations, found none"):
        measure(world, CHOICE, **{**options, "run_dir": tmp_path / "other"})
    assert not (tmp_path / "other").exists()


def test_files_are_in_the_harness_format(world, tmp_path):
    found = measure(world, CHOICE, run_dir=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["results"] == found.results["results"]
    assert set(results) >= {"results", "configs", "versions", "n-samples", "config", "higher_is_better", "scores"}
    assert results["versions"] == {NAMES[0]: 2}
    assert results["n-samples"][NAMES[0]]["effective"] == 3
    assert [row["value"] for row in results["scores"]] == [score.interval.value for score in found.scores]
    lines = (tmp_path / f"samples_{NAMES[0]}.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert set(json.loads(lines[0])) >= {"doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "doc_hash"}


# What is counted, and errors by name


def test_prompts_that_do_not_fit_and_answers_without_an_end_are_counted(world, caplog):
    model = byte_llama(max_position_embeddings=96)
    model.generation_config.eos_token_id = None
    found = evaluate(model, world.tokenizer, [SPAN], ["fr"], limit=3, batch_size=2)
    lengths = [
        len(world.tokenizer(sample["arguments"][0][0]).input_ids) for sample in found.results["samples"][NAMES[1]]
    ]
    score = found.score(SPAN, "fr", "f1")
    assert score.cut == sum(length + 16 > 96 for length in lengths) > 0
    ends = ["\n" in answer or len(answer) < 1 for [[answer]] in answers(found, NAMES[1])]
    assert 0 <= score.endless <= 3 - sum(ends)
    assert f"{score.cut} of 3 prompts were longer" in caplog.text
    # a prompt that is cut is read from behind: as if only its end had been asked
    sample = found.results["samples"][NAMES[1]][0]
    ids = torch.tensor([world.tokenizer(sample["arguments"][0][0]).input_ids[-80:]])
    said = model.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    assert sample["resps"][0][0] == world.tokenizer.decode(said, skip_special_tokens=True).split("\n")[0]


@pytest.mark.parametrize(("stop", "endless"), [("\n", 1), ("", 0)])
def test_an_answer_ends_by_a_stop_or_not_at_all(world, stop, endless):
    """With a model that repeats one byte: no stop among it is endless, and that byte as a stop ends it."""
    from lm_eval.api.instance import Instance

    lm = EditedLM(world.model, world.tokenizer, batch_size=1)
    said = lm.generate_until([_request(Instance, "abc", "\x00")], disable_tqdm=True)[0]
    assert lm.endless["t"] == 1
    assert len(world.tokenizer(said, add_special_tokens=False).input_ids) >= 4
    lm = EditedLM(world.model, world.tokenizer, batch_size=1)
    lm.generate_until([_request(Instance, "abc", stop or said[1:2])], disable_tqdm=True)
    assert lm.endless["t"] == endless


def test_an_answer_that_ended_is_not_endless_because_its_neighbour_is(world):
    from lm_eval.api.instance import Instance

    def ask(prompts: list[str], stop: str) -> tuple[list[str], int]:
        lm = EditedLM(world.model, world.tokenizer, batch_size=len(prompts))
        said = lm.generate_until([_request(Instance, prompt, stop) for prompt in prompts], disable_tqdm=True)
        return said, lm.endless["t"]

    prompts = ["abc", "lemon", "an old house", "12 + 7", "Zug!", "~~~~"]
    said = {prompt: ask([prompt], "\x00")[0][0] for prompt in prompts}
    one, other, stop = next(
        (one, other, letter)
        for one in prompts
        for other in prompts
        for letter in said[one]
        if letter.isascii() and letter not in said[other]
    )
    assert ask([other], stop)[1] == 1
    assert ask([one, other], stop) == ([said[one].split(stop)[0], said[other]], 1)


def _request(instance: Any, prompt: str, stop: str) -> Any:
    kwargs = {"until": [stop], "max_gen_toks": 8, "do_sample": False}
    return instance("generate_until", {}, (prompt, kwargs), 0, metadata=("t", 0, 1))


def test_likelihoods_that_are_not_numbers_are_no_scores(world, tmp_path):
    """Of choices that are all NaN the first would count as the likeliest."""
    model = byte_llama(max_position_embeddings=2048)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(NumericsError, match=r"is NaN: no score is defined\..*dtype=float32"):
        evaluate(model, world.tokenizer, [CHOICE], ["fr"], limit=1, run_dir=tmp_path)
    assert len(Answers(tmp_path / ANSWERS)) == 0
    neurons = some(Anatomy(model, check=False))
    with pytest.raises(NumericsError, match="is NaN under zero of NeuronSet"):
        evaluate(model, world.tokenizer, [CHOICE], ["fr"], neurons, limit=1)


def test_what_is_refused(world, tmp_path):
    with pytest.raises(ConfigError, match="limit of at least one item, found 0"):
        measure(world, limit=0)
    with pytest.raises(ConfigError, match="wanted tasks, found none"):
        evaluate(world.model, world.tokenizer, [])
    with pytest.raises(ConfigError, match="has no chat template"):
        measure(world, chat_template=True)
    with pytest.raises(ConfigError, match="context has 16: no room"):
        evaluate(byte_llama(max_position_embeddings=16), world.tokenizer, [SPAN], ["fr"], limit=1)
    with ablate(world.model, world.neurons), pytest.raises(ConfigError, match="an ablate context is open"):
        measure(world, run_dir=tmp_path / "run")
    other = some(Anatomy(byte_llama(max_position_embeddings=2048, attention_bias=True), check=False))
    with pytest.raises(ProvenanceError):
        measure(world, neurons=other)
    assert not (tmp_path / "run").exists()


def test_chat_models_are_asked_in_their_template(world):
    import copy

    tokenizer = copy.deepcopy(world.tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    found = evaluate(
        world.model, tokenizer, [CHOICE], ["fr"], limit=1, batch_size=2, chat_template=True
    )  # fmt: skip
    (sample,) = found.results["samples"][NAMES[0]]
    assert sample["arguments"][0][0].startswith("<user>")
    assert sample["arguments"][0][0].endswith("<assistant>")


def test_tokenizer_of_the_caller_is_left_alone(world):
    tokenizer = byte_tokenizer.__wrapped__()
    tokenizer.pad_token = None
    evaluate(world.model, tokenizer, [CHOICE], ["fr"], limit=1)
    assert tokenizer.pad_token is None


def test_answers_are_kept_as_they_are(tmp_path):
    kept = {"a": Answer("line\u2028separator\n\x85 ปี", 3, True), "b": Answer([-1 / 3, False])}
    Answers(tmp_path / "answers.jsonl").add(kept)
    again = Answers(tmp_path / "answers.jsonl")
    assert {key: again[key] for key in kept} == kept
    assert len(again) == 2


# The command


def test_the_command_is_the_function(world, tmp_path, capsys, monkeypatch):
    from babelscope import cli

    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", lambda _: [])
    model, neurons = world.folder / "model", world.folder / "fr.safetensors"
    words = f"evaluate {model} --tasks {CHOICE},{SPAN} --languages fr --neurons {neurons} --op scale --factor -3"
    words += f" --limit 3 --batch-size 2 --out {tmp_path / 'run'}"
    assert cli.main([*words.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = measure(world, neurons=world.neurons, op="scale", factor=-3)
    assert found["scores"] == [json.loads(json.dumps(score.as_json())) for score in expected.scores]
    assert (tmp_path / "run" / "results.json").exists()
    assert cli.main(words.split()) == 0
    drawn = "".join(capsys.readouterr().out.split())  # without line breaks, which may be in the middle of a path
    for text in ("scaleofNeuronSet", "frFrench", "exact_match", str(tmp_path / "run")):
        assert text in drawn
    assert cli.main([*words.replace(CHOICE, "tinybabel_knowlege").split()]) == 1
    assert "did you mean tinybabel_knowledge" in capsys.readouterr().err


def test_tasks_of_the_harness_work_with_an_edit_too(world, tmp_path, monkeypatch):
    docs = [{"q": "abc", "choices": ["x", "yz"], "gold": 0}, {"q": "lemon", "choices": ["z", "rain"], "gold": 1}]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    toy = {
        "task": "toy", "dataset_path": "json", "test_split": "train", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": str(tmp_path / "docs.jsonl"), "cache_dir": str(tmp_path / "cache")},
        "doc_to_text": "{{q}}", "doc_to_target": "{{gold}}", "doc_to_choice": "{{choices}}",
    }  # fmt: skip
    (tmp_path / "toy.yaml").write_text(json.dumps(toy), encoding="utf-8")
    monkeypatch.setattr("lm_eval.tasks._index.TaskIndex._iter_yaml_files", lambda _: [tmp_path / "toy.yaml"])
    found = evaluate(world.model, world.tokenizer, ["toy"], neurons=world.neurons)
    samples = found.results["samples"]["toy"]
    with zeroed_by_hand(world.model, world.neurons):
        for sample in samples:
            likelihoods = [by_hand(world, *request) for request in sample["arguments"]]
            assert [answer[0][0] for answer in sample["resps"]] == pytest.approx(likelihoods, rel=1e-4)
    score = found.score("toy", "", "acc")
    assert score.items == tuple(sample["acc"] for sample in samples)
    with pytest.raises(ConfigError, match=r"unknown task 'toi'.*lm_eval ls tasks"):
        evaluate(world.model, world.tokenizer, ["toi"])
