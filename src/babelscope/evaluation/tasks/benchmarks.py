"""The table of tasks: what is asked, how long an answer may be, and how it is scored. All scores lie between 0 and 1.

A name is `mgsm`, `mgsm_direct`, `xquad`, ...; `mgsm_paper` and so on ask in the paper's zero-shot wording; in the
harness a task has the language behind it (`babelscope_mgsm_fr`), so that it is told from the harness's own.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.evaluation import metrics, official
from babelscope.evaluation.letters import choice_letter
from babelscope.evaluation.numbers import READINGS, whole
from babelscope.evaluation.tasks import lm_eval_prompts
from babelscope.evaluation.tasks.confusion import CONFUSION, TINYBABEL_CONFUSION, stays
from babelscope.evaluation.tasks.data import CMRC, MGSM, XCSQA, XLSUM, XQUAD, Row, Rows, Source, tinybabel_source
from babelscope.evaluation.tasks.prompts import WORDS, Words, labelled
from babelscope.languages import get_language
from babelscope.tinybabel.tasks import TASKS

PREFIX = "babelscope_"
"""Of a task's name in the harness, which has an xquad and an mgsm of its own."""
VERSION = 2
"""Of prompts and scores; a number is compared only with numbers of the same version."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """A task in every language."""

    name: str
    source: Source
    prompt: Callable[[Words, Row], str]
    score: Callable[[str, Row, Any], Scores]
    """Language, item and answer: what was generated, or the log-likelihood of every choice."""
    metrics: tuple[str, ...]
    """What `score` gives, in the languages that have it."""
    max_tokens: int = 0
    """Of a generated answer; 0: the choices' likelihoods are compared and nothing is generated."""
    line: bool = True
    """The answer is one line; else it ends where the next question would begin."""
    stops: Callable[[str], list[str]] | None = None
    """By language: other strings that an answer ends at."""

    def languages(self, data: Path | None) -> tuple[str, ...]:
        """Those that there are items in: on the Hub, or in the folder."""
        if data is None or not self.source.patterns:
            return tuple(self.source.names)
        return tuple(code for code in WORDS if self.source.local(data, code))


@dataclass(frozen=True)
class Asked:
    """A benchmark in a language: what the harness's task is made of."""

    benchmark: Benchmark
    language: str
    data: Path | None = None

    @property
    def name(self) -> str:
        """In the harness."""
        return f"{PREFIX}{self.benchmark.name}_{self.language}"

    def rows(self) -> Rows:
        """The items."""
        return self.benchmark.source.rows(self.language, self.data)

    def prompt(self, doc: Row) -> str:
        """What the model is given."""
        return self.benchmark.prompt(WORDS[self.language], doc)

    def choices(self, doc: Row) -> list[str]:
        """What may follow the prompt."""
        return list(doc["choices"])

    def target(self, doc: Row) -> Any:
        """The right answer, or the place of the right choice."""
        for name in ("number", "gold", "references", "summary", "language"):
            if name in doc:
                return whole(doc[name]) if name == "number" else doc[name]
        raise AssertionError(f"an item without an answer: {doc}")

    def score(self, doc: Row, results: Sequence[Any]) -> Scores:
        """Scores of one item from what the harness hands over."""
        return self.benchmark.score(self.language, doc, results if not self.benchmark.max_tokens else results[0])

    def config(self) -> dict[str, Any]:
        """The harness's configuration of this task."""
        words, generated = WORDS[self.language], bool(self.benchmark.max_tokens)
        config: dict[str, Any] = {
            "task": self.name,
            "custom_dataset": self.dataset,
            "test_split": "test",
            "output_type": "generate_until" if generated else "multiple_choice",
            "doc_to_text": self.prompt,
            "doc_to_target": self.target,
            "process_results": self.score,
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in self.benchmark.metrics
                if official.has(name, self.language)
            ],
            "num_fewshot": 0,
            "metadata": {"version": VERSION, "benchmark": self.benchmark.name, "language": self.language},
        }
        if generated:
            stop = "\n" if self.benchmark.line else f"\n{words.question}{words.colon.rstrip()}"
            stops = self.benchmark.stops(self.language) if self.benchmark.stops else [stop]
            kwargs = {"until": stops, "max_gen_toks": self.benchmark.max_tokens, "do_sample": False}
            return {**config, "generation_kwargs": kwargs}
        # Tinybabel was taught with a space after every colon.
        delimiter = " " if self.benchmark.name.startswith("tinybabel") else words.space
        return {**config, "doc_to_choice": self.choices, "target_delimiter": delimiter}

    def dataset(self, **_: Any) -> dict[str, Any]:
        """The items as the harness wants them."""
        from datasets import Dataset

        return {"test": Dataset.from_list(self.rows())}


def find(names: Sequence[str], languages: Sequence[str] | None, data: str | Path | None) -> list[Asked]:
    """The tasks that a user means.

    Args:
        names: of `TABLE`; `tinybabel` is all four of its tasks.
        languages: codes or English names; None: all in which every one of the tasks has items.
        data: a folder with local files; None: the Hub.

    Raises:
        ConfigError: a task or a language that there isn't; the message lists what there is.
        DataError: no such folder.
    """
    folder = None if data is None else Path(data)
    if folder is not None and not folder.is_dir():
        raise DataError(f"no folder {folder}. Give the one that holds mgsm/, xquad/, xcsqa/ or xlsum/.")
    asked = []
    for name in names:
        expanded = [f"tinybabel_{task}" for task in TASKS] if name == "tinybabel" else [name]
        for benchmark in map(benchmark_named, expanded):
            there = benchmark.languages(folder)
            if not there:
                places = ", ".join(benchmark.source.patterns)
                raise DataError(f"{folder} holds no file of {name}. Wanted, with a language for {{}}: {places}.")
            for language in there if languages is None else languages:
                code = get_language(language).code
                if code not in there:
                    raise ConfigError(
                        f"{benchmark.name} has no items in {code}; it has them in {', '.join(there)}. Leave the "
                        "language out, or give a file of it with data=FOLDER (--data)."
                        if code in WORDS
                        else f"{benchmark.name} has no prompts in {code}; there are some in {', '.join(WORDS)}."
                    )
                asked.append(Asked(benchmark, code, folder))
    return list({each.name: each for each in asked}.values())


def benchmark_named(name: str) -> Benchmark:
    """A row of the table.

    Raises:
        ConfigError: no such task; the message lists those there are.
    """
    if name in TABLE:
        return TABLE[name]
    near = difflib.get_close_matches(name, TABLE, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"unknown task {name!r}: {hint}there are {', '.join(TABLE)}, and tinybabel for its four.")


def asked_by_name(name: str, data: str | Path | None = None) -> Asked:
    """The task that the harness knows by this name.

    Raises:
        ConfigError: no such task or language.
    """
    benchmark, _, language = name.removeprefix(PREFIX).rpartition("_")
    return find([benchmark], [language], data)[0]


# Prompts


def _reasoning(words: Words, row: Row) -> str:
    """Native chain of thought."""
    lines = (labelled(words, words.question, row["question"]), f"{words.steps}{words.space}{words.final}")
    return "\n".join((*lines, labelled(words, words.answer)))


def _question(words: Words, row: Row) -> str:
    return "\n".join((labelled(words, words.question, row["question"]), labelled(words, words.answer)))


def _understanding(words: Words, row: Row) -> str:
    return f"{row['context']}\n{_question(words, row)}"


def _letter(words: Words, row: Row) -> str:
    choices = [f"{label}. {text}" for label, text in zip(row["labels"], row["choices"], strict=True)]
    asked = (labelled(words, words.question, row["question"]), *choices, words.letter)
    return "\n".join((*asked, labelled(words, words.answer)))


def _summary(words: Words, row: Row) -> str:
    title = [labelled(words, words.title, row["title"])] if row["title"] else []
    lines = (words.summarize, *title, labelled(words, words.text, row["text"]), labelled(words, words.summary))
    return "\n".join(lines)


def _paper_reasoning(words: Words, row: Row) -> str:
    return f"{words.steps}{words.space}{labelled(words, words.question, row['question'])}"


def _paper_understanding(words: Words, row: Row) -> str:
    return f"{row['context']}{words.space}{labelled(words, words.question, row['question'])}"


def _paper_knowledge(words: Words, row: Row) -> str:
    return labelled(words, words.question, row["question"])


def _paper_summary(words: Words, row: Row) -> str:
    title = [labelled(words, words.title, row["title"])] if row["title"] else []
    return words.space.join((words.summarize_context, *title, labelled(words, words.context, row["text"])))


def _of_words(words: Words) -> str:
    return next(code for code, known in WORDS.items() if known is words)


def _lm_eval_direct(words: Words, row: Row) -> str:
    return lm_eval_prompts.mgsm_direct(_of_words(words), row["question"])


def _lm_eval_steps(words: Words, row: Row) -> str:
    return lm_eval_prompts.mgsm_native_cot(_of_words(words), row["question"])


def _lm_eval_understanding(words: Words, row: Row) -> str:
    return lm_eval_prompts.xquad(_of_words(words), row["context"], row["question"])


def _as_taught(_: Words, row: Row) -> str:
    return str(row["prompt"])


# Scores


def _numbers(language: str, row: Row, answer: str) -> Scores:
    """Strict: the number behind `####`. Flexible: that, else the boxed one, else the last one."""
    return {name: float(READINGS[name](answer, language) == row["number"]) for name in ("strict", "flexible")}


def _paper_numbers(language: str, row: Row, answer: str) -> Scores:
    """Paper: the number behind `####`, else the last one, as its code reads."""
    right = float(READINGS["paper"](answer, language) == row["number"])
    return {**_numbers(language, row, answer), "paper": right}


def _number(language: str, row: Row, answer: str) -> Scores:
    """Strict: the answer is the number and no word. Flexible: the number of an answer with words, too."""
    right = float(READINGS["flexible"](answer, language) == row["number"])
    return {"strict": right * (not any(character.isalpha() for character in answer)), "flexible": right}


def _overlap(language: str, row: Row, answer: str) -> Scores:
    references = row["references"]
    return {
        "exact_match": metrics.exact_match(answer, references, language),
        "f1": metrics.token_f1(answer, references, language),
        "contains": metrics.contains(answer, references, language),
    }


def _officially(language: str, row: Row, answer: str) -> Scores:
    return {**_overlap(language, row, answer), **official.answer_scores(answer, row["references"], language)}


def _likeliest(_: str, row: Row, results: Sequence[tuple[float, bool]]) -> Scores:
    """`acc`: by log-likelihood; `acc_per_byte`: by log-likelihood per byte, so that long choices are not punished."""
    nats = [result[0] for result in results]
    rates = [value / len(choice.encode()) for value, choice in zip(nats, row["choices"], strict=True)]
    return {
        "acc": float(nats.index(max(nats)) == row["gold"]),
        "acc_per_byte": float(rates.index(max(rates)) == row["gold"]),
    }


def _lettered(_: str, row: Row, answer: str) -> Scores:
    return {"acc": float(choice_letter(answer, row["labels"]) == row["labels"][row["gold"]])}


def _summarized(_: str, row: Row, answer: str) -> Scores:
    chrf = _chrf().sentence_score(answer, [row["summary"]]).score / 100
    return {"rouge_l": metrics.rouge_l(answer, row["summary"]), "chrf": chrf}


def _summarized_officially(language: str, row: Row, answer: str) -> Scores:
    return {**_summarized(language, row, answer), **official.summary_scores(answer, row["summary"], language)}


@cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise MissingDependencyError('chrF needs sacrebleu: pip install "babelscope[eval]"') from error
    return CHRF()


# The table


_NUMBER, _OVERLAP, _SUMMARY = ("strict", "flexible"), ("exact_match", "f1", "contains"), ("rouge_l", "chrf")
_OFFICIAL = (*_OVERLAP, *official.ANSWER_METRICS)
_CHOICE, _STAYS = ("acc", "acc_per_byte"), ("line_pass", "word_pass")

TABLE: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("mgsm", MGSM, _reasoning, _numbers, _NUMBER, 512, line=False),
        Benchmark("mgsm_direct", MGSM, _question, _number, _NUMBER, 32),
        Benchmark("mgsm_paper", MGSM, _paper_reasoning, _paper_numbers, (*_NUMBER, "paper"), 512, line=False),
        Benchmark("xquad", XQUAD, _understanding, _overlap, _OVERLAP, 64),
        Benchmark("xquad_paper", XQUAD, _paper_understanding, _overlap, _OVERLAP, 64, line=False),
        Benchmark(
            "mgsm_lm_eval",
            MGSM,
            _lm_eval_steps,
            _numbers,
            _NUMBER,
            lm_eval_prompts.MAX_TOKENS,
            stops=lm_eval_prompts.mgsm_stops,
        ),
        Benchmark(
            "mgsm_direct_lm_eval",
            MGSM,
            _lm_eval_direct,
            _numbers,
            _NUMBER,
            lm_eval_prompts.MAX_TOKENS,
            stops=lm_eval_prompts.mgsm_stops,
        ),
        Benchmark("xquad_official", XQUAD, _understanding, _officially, _OFFICIAL, 64),
        Benchmark("cmrc2018", CMRC, _understanding, _officially, _OFFICIAL, 64),
        Benchmark(
            "xquad_lm_eval",
            XQUAD,
            _lm_eval_understanding,
            _officially,
            _OFFICIAL,
            lm_eval_prompts.MAX_TOKENS,
            stops=lm_eval_prompts.xquad_stops,
        ),
        Benchmark("xcsqa", XCSQA, _question, _likeliest, _CHOICE),
        Benchmark("xcsqa_letter", XCSQA, _letter, _lettered, ("acc",), 8),
        Benchmark("xcsqa_paper", XCSQA, _paper_knowledge, _likeliest, _CHOICE),
        Benchmark("xlsum", XLSUM, _summary, _summarized, _SUMMARY, 128),
        Benchmark("xlsum_paper", XLSUM, _paper_summary, _summarized, _SUMMARY, 128, line=False),
        Benchmark(
            "xlsum_official", XLSUM, _summary, _summarized_officially, (*_SUMMARY, *official.SUMMARY_METRICS), 128
        ),
        Benchmark("confusion", CONFUSION, _as_taught, stays, _STAYS, 100, line=False),
        Benchmark("tinybabel_confusion", TINYBABEL_CONFUSION, _as_taught, stays, _STAYS, 32, line=False),
        Benchmark("tinybabel_reasoning", tinybabel_source("reasoning"), _as_taught, _numbers, _NUMBER, 96, line=False),
        Benchmark("tinybabel_understanding", tinybabel_source("understanding"), _as_taught, _overlap, _OVERLAP, 16),
        Benchmark("tinybabel_knowledge", tinybabel_source("knowledge"), _as_taught, _likeliest, _CHOICE),
        Benchmark("tinybabel_generation", tinybabel_source("generation"), _as_taught, _summarized, _SUMMARY, 64),
    )
}
"""By name."""
