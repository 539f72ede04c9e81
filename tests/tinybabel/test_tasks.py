"""The tasks: split by content, the same items in every language, and files in the benchmarks' layouts."""

import csv
import json
import re
from collections import Counter
from itertools import islice
from random import Random

import pytest

from babelscope.errors import RunFolderError
from babelscope.tinybabel import tasks
from babelscope.tinybabel.grammar import LANGUAGES, grammar
from babelscope.tinybabel.tasks import TASKS, export, items, problem
from babelscope.tinybabel.world import KNOWN, world

SPLITS = ("train", "validation", "test")


def some(task, code, split, count=60):
    return list(islice(items(task, code, split), count))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_problems_are_split_by_their_numbers(steps):
    rng, found = Random(steps), {split: set() for split in SPLITS}
    for split in SPLITS:
        for _ in range(400):
            found[split].add(problem(rng, split, steps).numbers)
    assert not (found["train"] & found["test"])
    assert not (found["train"] & found["validation"])
    assert not found["validation"] & found["test"]


def test_no_training_problem_contains_the_sum_of_a_test_problem():
    def sums(split, steps):
        rng = Random(0)
        return {
            (frozenset((step.left, step.right)), step.operation)
            for _ in range(1500)
            for step in problem(rng, split, steps).steps
            if step.operation != "×"
        }

    trained = set().union(*(sums("train", steps) for steps in (1, 2, 3)))
    assert not trained & sums("test", 1)
    assert len(trained) > 500


@pytest.mark.parametrize("code", LANGUAGES)
def test_solutions_are_right(code):
    for item in some("reasoning", code, "test"):
        stated = item.answer.partition("#### ")[2]
        assert int(stated) == item.fields["answer_number"] >= 3
        equations = re.findall(r"(\d+) ([+×-]) (\d+) = (\d+)", item.answer)
        assert len(equations) == item.fields["steps"]
        for left, sign, right, result in equations:
            assert {"+": int(left) + int(right), "-": int(left) - int(right), "×": int(left) * int(right)}[sign] == int(
                result
            )
            for number in (left, right):
                given = set(re.findall(r"\d+", item.fields["question"]))
                assert number in given or any(number == earlier[3] for earlier in equations)


@pytest.mark.parametrize("code", LANGUAGES)
def test_answers_stand_in_the_context_where_they_are_said_to(code):
    for item in some("understanding", code, "test"):
        [answer] = item.fields["answers"]
        start = answer["answer_start"]
        assert item.fields["context"][start : start + len(answer["text"])] == answer["text"] == item.answer
        assert item.answer.strip() == item.answer != ""


def test_texts_to_understand_and_to_sum_up_hold_facts_of_their_split_only(monkeypatch):
    seen = {split: set() for split in SPLITS}
    write = tasks.write
    for split in SPLITS:
        monkeypatch.setattr(
            tasks,
            "write",
            lambda language, lines, rng, s=split: seen[s].update(x.fact for x in lines) or write(language, lines, rng),
        )
        some("understanding", "en", split, 150)
        some("generation", "en", split, 150)
    assert not (seen["train"] & seen["test"])
    assert not (seen["train"] & seen["validation"])
    assert not (seen["validation"] & seen["test"])
    assert all(fact.split == split for split, facts in seen.items() for fact in facts)


def test_nobody_is_asked_about_in_two_splits():
    asked = {}
    for split in SPLITS:
        people = {*world().groups[split], *(world().groups["english"] if split == "test" else ())}
        stems = {item.fields["question"]["stem"] for item in some("knowledge", "en", split, 500)}
        names = {
            name: grammar("en").render("{p}", {"p": grammar("en").full_name(*name.split("_"))}).text
            for name in world().persons
        }
        asked[split] = {name for name, told in names.items() if any(told in stem for stem in stems)}
        assert asked[split] == people
    assert not (asked["train"] & asked["test"])
    assert not (asked["train"] & asked["validation"])


@pytest.mark.parametrize("code", LANGUAGES)
def test_five_different_choices_of_which_the_key_is_true(code):
    found = some("knowledge", code, "test", 400)
    assert (
        len(found) == (len(world().groups["test"]) + len(world().groups["english"])) * len(KNOWN) or len(found) == 400
    )
    for item in found:
        choices = item.fields["question"]["choices"]
        assert [choice["label"] for choice in choices] == list("ABCDE")
        assert len({choice["text"] for choice in choices}) == 5
        assert next(choice["text"] for choice in choices if choice["label"] == item.fields["answerKey"]) == item.answer
    keys = Counter(item.fields["answerKey"] for item in found)
    assert min(keys.values()) > len(found) / 10
    assert {item.fields["known_in"] for item in items("knowledge", code, "test")} == {"en", "all"}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("code", ["de", "zh", "ar"])
def test_items_are_the_same_in_every_language(task, code):
    for english, other in zip(some(task, "en", "test", 30), some(task, code, "test", 30), strict=True):
        assert english.id == other.id
        assert english.prompt != other.prompt
        if task == "reasoning":
            assert english.fields["answer_number"] == other.fields["answer_number"]
        if task == "knowledge":
            assert english.fields["answerKey"] == other.fields["answerKey"]


@pytest.mark.parametrize("code", LANGUAGES)
@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_is_that_of_the_language_file(task, code):
    item = next(items(task, code, "test"))
    for part in re.split(r"\{\w+\}", grammar(code).prompts[task]):
        assert part in item.prompt
    assert not item.prompt.endswith(" ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks") / "new"
    export(path, 40, ["en", "th"])
    return path


def test_exported_files_have_the_layouts_of_the_benchmarks(folder):
    with (folder / "mgsm/mgsm_th_test.tsv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, dialect="excel-tab", quoting=csv.QUOTE_NONE))
    assert len(rows) == 40
    assert all(len(row) == 2 and row[1].isdigit() for row in rows)
    squad = json.loads((folder / "xquad/xquad.th.test.json").read_text("utf-8"))
    paragraph = squad["data"][0]["paragraphs"][0]
    [question] = paragraph["qas"]
    [answer] = question["answers"]
    assert paragraph["context"][answer["answer_start"] :].startswith(answer["text"])
    knowledge = [json.loads(line) for line in (folder / "xcsqa/en/test.jsonl").read_text("utf-8").splitlines()]
    assert {"id", "lang", "question", "answerKey"} <= set(knowledge[0])
    assert {"stem", "choices"} == set(knowledge[0]["question"])
    news = [json.loads(line) for line in (folder / "xlsum/en_test.jsonl").read_text("utf-8").splitlines()]
    assert {"id", "url", "title", "summary", "text"} == set(news[0])
    assert json.loads((folder / "prompts.json").read_text("utf-8"))["en"] == dict(grammar("en").prompts)


def test_exported_again_the_files_are_the_same(folder, tmp_path):
    export(tmp_path / "again", 40, ["en", "th"])
    for path in sorted(folder.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(folder)).read_bytes()


def test_a_folder_that_holds_something_is_refused(folder):
    with pytest.raises(RunFolderError, match="not empty; wanted a new folder"):
        export(folder)
