"""The four tasks of the paper on Tinybabel's world: the same items in every language, in the benchmarks' own layouts.

Split by content: an item of one split is in no other, in any language. Reasoning: its numbers (for a single step, the
sum itself, which no longer problem of the training split contains either); understanding and generation: every fact of
its text; knowledge: the person asked about, whose facts are in the training texts but never asked about there.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from babelscope.artifacts import write_json
from babelscope.errors import RunFolderError
from babelscope.tinybabel.grammar import LANGUAGES, Grammar, grammar, schema
from babelscope.tinybabel.texts import Line, article, lead, pick, say, story, tell, word, write
from babelscope.tinybabel.world import KNOWN, SEED, Fact, Split, split_of, world

TASKS = ("reasoning", "understanding", "knowledge", "generation")
LABELS = "ABCDE"
_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "×": lambda a, b: a * b,
}


@dataclass(frozen=True)
class Item:
    """A question with its answer, in a language."""

    id: str
    """The same in every language."""
    language: str
    prompt: str
    """What the model is given; a space and the answer follow."""
    answer: str
    """What the model was taught to answer."""
    fields: Mapping[str, Any]
    """What the task's files hold of it, by their own names."""


def items(task: str, code: str, split: Split, seed: int = SEED, start: int = 0) -> Iterator[Item]:
    """Items of a task in a language: without end, but for knowledge, which has as many as there are facts to ask about.

    Args:
        task: One of `TASKS`.
        code: A language of Tinybabel.
        split: The part of the items; training items are those that the model was trained on.
        seed: Of the items.
        start: The first item.

    Raises:
        DataError: Tinybabel doesn't speak the language.
    """
    make = {
        "reasoning": _reasoning,
        "understanding": _understanding,
        "knowledge": _knowledge,
        "generation": _generation,
    }
    index = start
    while True:
        item = make[task](grammar(code), split, index, seed)
        if item is None:
            return
        yield item
        index += 1


# Reasoning


@dataclass(frozen=True)
class _Step:
    """One line of a worked solution."""

    name: str
    left: int
    operation: str
    right: int

    @property
    def result(self) -> int:
        return _OPERATIONS[self.operation](self.left, self.right)


@dataclass(frozen=True)
class Problem:
    """A word problem in no language: what is said, what is asked, and how it is solved."""

    said: tuple[tuple[str, Mapping[str, str | int]], ...]
    asked: tuple[str, Mapping[str, str | int]]
    steps: tuple[_Step, ...]

    @property
    def numbers(self) -> tuple[str | int, ...]:
        """What tells it from other problems, whoever has the things, and whatever things they are."""
        return tuple(part for step in self.steps for part in (step.name, step.left, step.operation, step.right))

    @property
    def split(self) -> Split:
        """Where it belongs. Products are few, and every one of them may be trained on."""
        sums = [
            split_of(*sorted((step.left, step.right)), step.operation) for step in self.steps if step.operation != "×"
        ]
        if len(self.steps) == 1:
            return sums[0] if sums else "train"
        return split_of(*self.numbers) if split_of(*self.numbers) != "train" or set(sums) <= {"train"} else "test"


def problem(rng: Random, split: Split, steps: int) -> Problem:
    """A word problem of one to three steps; every number in it is at least 3."""
    while True:
        found = _problem(rng, steps)
        if found.split == split and all(3 <= step.result <= 150 for step in found.steps):
            return found


def _problem(rng: Random, steps: int) -> Problem:
    first, second = rng.sample(schema()["classes"]["person"], 2)
    one: dict[str, str | int] = {"person": first, "object": rng.choice(schema()["classes"]["object"])}
    two = one | {"person2": second}
    a, b, c, d = rng.randint(3, 60), rng.randint(3, 40), rng.randint(3, 40), rng.randint(3, 40)
    n, m = rng.randint(3, 9), rng.randint(3, 9)
    has, boxes = ("has", one | {"n": a}), ("boxes", one | {"n": n, "m": m})
    gets, gives = ("gets", one | {"n": b}), ("gives", two | {"n": c})
    now, left = ("ask_now", one), ("ask_left", one)
    filled = _Step("solve_boxes", n, "×", m)
    if steps == 1:
        more = rng.random() < 0.5
        return (
            Problem((has, gets), now, (_Step("solve_now", a, "+", b),))
            if more
            else Problem((has, ("gives", two | {"n": b})), left, (_Step("solve_left", a, "-", b),))
        )
    if steps == 2:
        kind = rng.randrange(4)
        if kind == 0:
            return Problem(
                (has, gets, gives), left, (_Step("solve_now", a, "+", b), _Step("solve_left", a + b, "-", c))
            )
        if kind == 1:
            return Problem((boxes, gets), now, (filled, _Step("solve_now", n * m, "+", b)))
        if kind == 2:
            than, together = ("than", two | {"n": b}), ("ask_together", two)
            other = _Step("solve_other", a, "+", b)
            return Problem((has, than), together, (other, _Step("solve_together", a, "+", a + b)))
        return Problem((boxes, gives), left, (filled, _Step("solve_left", n * m, "-", c)))
    if rng.random() < 0.5:
        sold = ("gives", two | {"n": d})
        taken = (filled, _Step("solve_now", n * m, "+", b), _Step("solve_left", n * m + b, "-", d))
        return Problem((boxes, gets, sold), left, taken)
    than, together = ("than", two | {"n": c}), ("ask_together", two)
    own, other = _Step("solve_now", a, "+", b), _Step("solve_other", a + b, "+", c)
    return Problem((has, gets, than), together, (own, other, _Step("solve_together", a + b, "+", a + b + c)))


def _reasoning(language: Grammar, split: Split, index: int, seed: int) -> Item:
    rng = Random(f"{seed}:reasoning:{split}:{index}")
    steps = 1 + index % 3
    task = problem(rng, split, steps)
    rng = Random(f"{seed}:reasoning:{split}:{index}:{language.code}")

    def tell_problem(name: str, values: Mapping[str, str | int]) -> str:
        slots = schema()["problems"][name]
        words = {slot: word(language, kind, values[slot]) for slot, kind in slots.items()}
        return language.render(pick(language.problems[name], rng), words).text

    question = language.join.join(tell_problem(*sentence) for sentence in (*task.said, task.asked))
    lines = []
    for step in task.steps:
        equation = f"{step.left} {step.operation} {step.right} = {step.result}"
        lines.append(
            tell_problem(step.name, {**task.asked[1], "person2": _other(task), "sum": equation, "n": step.result})
        )
    answer = language.join.join(lines) + f"\n#### {task.steps[-1].result}"
    fields = {"question": question, "answer": answer, "answer_number": task.steps[-1].result, "steps": steps}
    return Item(f"reasoning-{split}-{index}", language.code, _prompt(language, "reasoning", fields), answer, fields)


def _other(task: Problem) -> str | int:
    return next((values["person2"] for _, values in task.said if "person2" in values), "")


# Understanding


def _understanding(language: Grammar, split: Split, index: int, seed: int) -> Item:
    rng = Random(f"{seed}:understanding:{split}:{index}")
    while True:
        lines = story(rng, split, sentences=rng.randint(3, 6)) if rng.random() < 0.85 else article(rng, split)
        questions = [(line.fact, slot) for line in lines for slot in _asked(line, lines)]
        if questions:
            break
    about, slot = rng.choice(questions)
    rng = Random(f"{seed}:understanding:{split}:{index}:{language.code}")
    context, told = write(language, lines, rng)
    # A slot can be named twice, once by a pronoun: the longer one is the answer.
    spans = [span for line, spans in told if line.fact == about for span in spans if span.slot == slot]
    span = max(spans, key=lambda span: span.end - span.start)
    question = tell(language, about, pick(language.relations[about.relation]["ask"][slot], rng)).text
    answer = context[span.start : span.end]
    fields = {"context": context, "question": question, "answers": [{"text": answer, "answer_start": span.start}]}
    return Item(
        f"understanding-{split}-{index}", language.code, _prompt(language, "understanding", fields), answer, fields
    )


def _asked(line: Line, lines: Sequence[Line]) -> list[str]:
    """The slots of a statement that can be asked about: told here, and no other statement gives a second answer."""
    relation = schema()["relations"][line.fact.relation]
    first = next(iter(relation["args"]))
    rivals = [other.fact for other in lines if other is not line and other.fact.relation == line.fact.relation]
    asked = [slot for slot in relation.get("ask", {}) if line.way == "say" or slot != first]
    if line.fact.relation in ("lives", "born"):  # somebody comes from, lives in and travels to one place each
        asked = [slot for slot in asked if slot == "city"]
    return [
        slot
        for slot in asked
        if not any(set(line.fact.values) & set(rival.values) - {(slot, line.fact[slot])} for rival in rivals)
    ]


# Knowledge


def _knowledge(language: Grammar, split: Split, index: int, seed: int) -> Item | None:
    rng = Random(f"{seed}:knowledge:{split}:{index}")
    groups = world().groups
    people = [*groups[split], *(groups["english"] if split == "test" else ())]
    if split == "train":
        person, relation = rng.choice(people), rng.choice(KNOWN)
    elif index < len(people) * len(KNOWN):
        person, relation = people[index // len(KNOWN)], KNOWN[index % len(KNOWN)]
    else:
        return None
    about = next(fact for fact in world().persons[person] if fact.relation == relation)
    slot = schema()["relations"][relation]["answer"][0]
    kind = schema()["relations"][relation]["args"][slot]
    # Somebody's other city is a wrong answer that is too good.
    theirs = {fact[slot] for fact in world().persons[person] if slot in dict(fact.values)}
    others = rng.sample([thing for thing in schema()["classes"][kind] if thing not in theirs], len(LABELS) - 1)
    key = rng.randrange(len(LABELS))
    options = [*others[:key], about[slot], *others[key:]]
    rng = Random(f"{seed}:knowledge:{split}:{index}:{language.code}")
    question = tell(language, about, pick(language.relations[relation]["ask"][slot], rng)).text
    template = language.relations[relation]["answer"][slot]
    texts = [
        tell(language, Fact(relation, (("person", person), (slot, option))), template, sentence=False).text
        for option in options
    ]
    choices = [{"label": label, "text": text} for label, text in zip(LABELS, texts, strict=True)]
    fields = {
        "question": {"stem": question, "choices": choices},
        "answerKey": LABELS[key],
        "relation": relation,
        "known_in": "en" if person in groups["english"] else "all",
    }
    prompt = _prompt(language, "knowledge", {"question": question})
    return Item(f"knowledge-{split}-{index}", language.code, prompt, texts[key], fields)


# Generation


def _generation(language: Grammar, split: Split, index: int, seed: int) -> Item:
    rng = Random(f"{seed}:generation:{split}:{index}")
    lines = article(rng, split)
    rng = Random(f"{seed}:generation:{split}:{index}:{language.code}")
    text, _ = write(language, lines, rng)
    title = say(language, Line(lead(lines), "title"), rng).text
    summary = say(language, Line(lead(lines), "summary"), rng).text
    fields = {"title": title, "summary": summary, "text": text}
    prompt = _prompt(language, "generation", {"title": title, "article": text})
    return Item(f"generation-{split}-{index}", language.code, prompt, summary, fields)


def _prompt(language: Grammar, task: str, fields: Mapping[str, Any]) -> str:
    return language.render(language.prompts[task], fields, sentence=False).text


# Files


def export(folder: Path, count: int = 200, languages: Sequence[str] = LANGUAGES, seed: int = SEED) -> list[Path]:
    """Writes the tasks in the layouts of MGSM, XQuAD, X-CSQA and XL-Sum, and the prompts.

    Args:
        folder: A folder that doesn't exist yet or is empty.
        count: Items per task, language and split, training included; knowledge has at most as many as facts.
        languages: Languages to write.
        seed: Of the items.

    Returns:
        The files written.

    Raises:
        RunFolderError: The folder holds something.
        DataError: An unknown language.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunFolderError(f"{folder} is not empty; wanted a new folder for the task files. Choose another one.")
    written = []
    splits: tuple[Split, ...] = ("train", "validation", "test")
    for code in languages:
        for split in splits:
            these = {
                task: [item for _, item in zip(range(count), items(task, code, split, seed), strict=False)]
                for task in TASKS
            }
            for name, content in _layouts(code, split, these).items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content, encoding="utf-8")
                written.append(path)
    write_json(folder / "prompts.json", {code: dict(grammar(code).prompts) for code in languages})
    return [*written, folder / "prompts.json"]


def _layouts(code: str, split: str, items: Mapping[str, Sequence[Item]]) -> dict[str, str]:
    table = io.StringIO()
    rows = csv.writer(table, dialect="excel-tab", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    for item in items["reasoning"]:
        rows.writerow([item.fields["question"], item.fields["answer_number"]])
    paragraphs = [
        {
            "context": item.fields["context"],
            "qas": [{"id": item.id, "question": item.fields["question"], "answers": item.fields["answers"]}],
        }
        for item in items["understanding"]
    ]
    squad = {"version": "1.1", "data": [{"title": f"Tinybabel {code} {split}", "paragraphs": paragraphs}]}
    return {
        f"mgsm/mgsm_{code}_{split}.tsv": table.getvalue(),
        f"mgsm/solutions_{code}_{split}.jsonl": _json_lines(items["reasoning"]),
        f"xquad/xquad.{code}.{split}.json": json.dumps(squad, ensure_ascii=False, indent=1) + "\n",
        f"xcsqa/{code}/{split}.jsonl": _json_lines(items["knowledge"], lang=code),
        f"xlsum/{code}_{split}.jsonl": _json_lines(items["generation"], url=""),
    }


def _json_lines(items: Sequence[Item], **more: str) -> str:
    return "".join(json.dumps({"id": item.id, **more, **item.fields}, ensure_ascii=False) + "\n" for item in items)
