"""The recipe: tokenizer, proportions, and a training that can be repeated and resumed."""

from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file

from babelscope.errors import NumericsError, RunFolderError
from babelscope.tinybabel import recipe as module
from babelscope.tinybabel.grammar import LANGUAGES
from babelscope.tinybabel.recipe import FULL, QUICK, train, train_tokenizer, training_document, training_rows
from babelscope.tinybabel.texts import documents

SHORT = replace(QUICK, tokens=128 * 16 * 8, checkpoint=4)
"""Eight steps."""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(QUICK)


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_text_comes_back(tokenizer, code):
    for text in islice(documents(code), 20):
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_what_it_never_saw_falls_back_on_bytes(tokenizer):
    ids = tokenizer("Ω 😀")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Ω 😀"
    assert {"<0xCE>", "<0xA9>", "<0xF0>"} <= set(tokenizer.convert_ids_to_tokens(ids))


def test_digits_and_chinese_characters_are_tokens_of_their_own(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("1234 巴黎")["input_ids"])
    assert tokens[0] == "<s>"
    assert [token for token in tokens if token.isdigit()] == list("1234")
    assert max(len(token) for token in tokenizer.get_vocab() if not token.isascii() and "一" <= token[-1] <= "鿿") == 1


def test_the_prompt_of_a_task_is_the_beginning_of_what_was_trained_on(tokenizer):
    from babelscope.tinybabel.tasks import TASKS, items

    for code in LANGUAGES:
        for task in TASKS:
            item = next(items(task, code, "train"))
            prompt, whole = (tokenizer(text)["input_ids"] for text in (item.prompt, f"{item.prompt} {item.answer}"))
            assert whole[: len(prompt)] == prompt


def test_about_half_of_the_tokens_are_english_and_few_of_low_resource(tokenizer, monkeypatch):
    counts = Counter()
    original = module.training_document

    def counted(code, index, seed):
        text = original(code, index, seed)
        counts[code] += len(tokenizer(text)["input_ids"]) + 1
        return text

    monkeypatch.setattr(module, "training_document", counted)
    rows = training_rows(replace(QUICK, tokens=1_000_000), tokenizer)
    assert rows.shape[1] == QUICK.length
    assert rows.numel() <= 1_000_000
    shares = module._SHARES
    assert sum(shares.values()) == pytest.approx(1.0)
    assert 0.45 <= shares["en"] <= 0.5
    assert all(0.01 <= shares[code] <= 0.02 for code in LANGUAGES[6:])
    assert counts["en"] > shares["en"] * 1_000_000


def test_training_documents_hold_texts_and_solved_tasks():
    found = [training_document("en", index) for index in range(400)]
    solved = [text for text in found if "Question:" in text or "Summary:" in text]
    assert 0.4 < len(solved) / len(found) < 0.65
    assert any("#### " in text for text in solved)


def test_the_same_recipe_gives_the_same_model(tmp_path):
    one, other = (train(tmp_path / name, SHORT, report=lambda line: None) for name in ("one", "other"))
    left, right = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert left["model.embed_tokens.weight"].dtype == torch.bfloat16
    curve = (tmp_path / "one/curve.jsonl").read_text().splitlines()
    assert len(curve) == SHORT.steps == 8

    class Killed(Exception):
        pass

    def kill(line):
        if line.startswith("step 4/"):
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path / "broken", SHORT, report=kill)
    resumed = load_file(train(tmp_path / "broken", SHORT, report=lambda line: None) / "model.safetensors")
    assert all(torch.equal(left[name], resumed[name]) for name in left)
    assert (tmp_path / "broken/curve.jsonl").read_text().splitlines() == curve
    with pytest.raises(RunFolderError, match="rate"):
        train(tmp_path / "one", replace(SHORT, rate=1e-3), report=lambda line: None)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path):
    with pytest.raises(NumericsError, match=r"the loss at step .* lower the rate"):
        train(tmp_path / "run", replace(SHORT, rate=1e30, warmup=0), report=lambda line: None)


def test_the_rate_warms_up_and_falls():
    rates = [FULL.rate_at(step) for step in range(1, FULL.steps + 1)]
    assert rates[0] == FULL.rate / FULL.warmup
    assert max(rates) == pytest.approx(FULL.rate)
    assert rates[-1] == pytest.approx(FULL.rate * 0.02, rel=1e-3)
    assert rates[FULL.warmup :] == sorted(rates[FULL.warmup :], reverse=True)
