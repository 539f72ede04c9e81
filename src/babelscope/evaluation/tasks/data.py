"""Items of the benchmarks: from local files in the original layouts, from the Hub, or from Tinybabel's world.

MGSM: TSV of question and number. XQuAD: SQuAD JSON. X-CSQA and XL-Sum: JSON lines. The fields are checked here, so that
a wrong file is named before a model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from babelscope.compression import opened
from babelscope.errors import DataError, MissingDependencyError
from babelscope.evaluation.numbers import last_number
from babelscope.textfiles import json_rows, parse_json, read_text, valid_strings
from babelscope.tinybabel import tasks as tinybabel
from babelscope.tinybabel.grammar import LANGUAGES

Row = dict[str, Any]
Rows = list[Row]

TINYBABEL_ITEMS = 200
"""Items of each of Tinybabel's tasks in a language; there is no end of them but for knowledge."""


@dataclass(frozen=True)
class Source:
    """Where the items of a benchmark come from."""

    names: Mapping[str, str]
    """By language of the Hub dataset: what it calls it."""
    hub: Callable[[str], Rows]
    """The Hub's items in a language, by the name that it has there; or made ones."""
    patterns: tuple[str, ...] = ()
    """Names of local files below the data folder, the first that is there is read; `{}` is the language. Without any,
    the items are made."""
    read: Callable[[Path], Rows] | None = None
    """A file in the original layout."""

    def local(self, folder: Path, code: str) -> Path | None:
        """The file of a language, or None."""
        if code not in self.names and not any("{}" in pattern for pattern in self.patterns):
            return None
        names = dict.fromkeys((self.names.get(code, code), code))
        found = (path for name in names for pattern in self.patterns for path in folder.glob(pattern.format(name)))
        return next(found, None)

    def rows(self, code: str, folder: Path | None) -> Rows:
        """The items of a language, each with a field `id`.

        Args:
            code: the language.
            folder: with local files; None reads the Hub, or its cache.

        Raises:
            DataError: no such file, a file of another layout, or a dataset that can't be had.
        """
        if folder is None or self.read is None:
            return self.hub(self.names[code])
        path = self.local(folder, code)
        if path is None:
            wanted = " or ".join(pattern.format(self.names.get(code, code)) for pattern in self.patterns)
            raise DataError(f"no file {wanted} in {folder}. Put it there, or leave data out to read the Hub.")
        return self.read(path)


def read_mgsm(path: Path) -> Rows:
    """Questions with numbers, from a TSV; the numbers are in English notation (2,125) in every language."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        question, tab, answer = line.rpartition("\t")
        if not tab or (value := last_number(answer, "en")) is None:
            raise DataError(f"{path}, line {number}: wanted a question, a tab and a number, found {line[-60:]!r}.")
        rows.append({"id": str(number - 1), "question": question, "number": value})
    return _some(rows, path)


def read_squad(path: Path) -> Rows:
    """Questions on paragraphs with their answers, from SQuAD JSON."""
    try:
        paragraphs = [
            paragraph
            for article in valid_strings(parse_json(read_text(path), str(path)))["data"]
            for paragraph in article["paragraphs"]
        ]
        rows = [_question(asked, paragraph["context"]) for paragraph in paragraphs for asked in paragraph["qas"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not SQuAD JSON ({error!r}). Give the file as published.") from None
    return _some(rows, path)


def _question(asked: Mapping[str, Any], context: str) -> Row:
    answers = asked["answers"]
    if not answers:
        raise DataError(
            f"question {asked['id']} has no answer: no score of it is defined. Give files of SQuAD 1.1's kind, as "
            "XQuAD's are: in SQuAD 2.0 some questions have none."
        )
    references = [answer["text"] for answer in answers]
    for text in (context, asked["question"], *references):
        if not isinstance(text, str):
            raise DataError(f"question {asked['id']}: wanted texts, found a {type(text).__name__}. Leave it out.")
    return {
        "id": asked["id"],
        "context": context,
        "question": asked["question"],
        "references": references,
        "starts": [answer["answer_start"] for answer in answers],
    }


def read_csqa(path: Path) -> Rows:
    """Questions with choices, from JSON lines."""
    return _some([_choice(row, path) for row in _lines(path)], path)


def _choice(row: Mapping[str, Any], where: object) -> Row:
    try:
        stem, choices, key = row["question"]["stem"], row["question"]["choices"], row["answerKey"]
        if isinstance(choices, Mapping):  # as the Hub stores a list of objects
            choices = [
                {"label": label, "text": text} for label, text in zip(choices["label"], choices["text"], strict=True)
            ]
        labels = [choice["label"] for choice in choices]
        texts = [choice["text"] for choice in choices]
        if not all(isinstance(text, str) for text in (stem, *labels, *texts)):
            raise TypeError("a question, label or choice that is no text")
        if not all(text.strip() for text in texts):
            raise ValueError("a choice without text")
        return {
            "id": row["id"],
            "question": stem,
            "labels": labels,
            "choices": texts,
            "gold": labels.index(key),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{where}: wanted question (stem, choices of label and text) and an answerKey among the labels, found "
            f"{error!r} in {str(row)[:80]}. X-CSQA's test split has no keys; give dev."
        ) from None


def read_xlsum(path: Path) -> Rows:
    """Articles with summaries, from JSON lines."""
    return _some([_article(row, path) for row in _lines(path)], path)


def _article(row: Mapping[str, Any], where: object) -> Row:
    for name in ("id", "text", "summary"):
        if name not in row:
            raise DataError(f"{where}: wanted id, text and summary, found no {name!r} in {sorted(row)}.")
    article = {"id": row["id"], "title": row.get("title", ""), "text": row["text"], "summary": row["summary"]}
    for name in ("title", "text", "summary"):
        if not isinstance(article[name], str):
            kind = type(article[name]).__name__
            raise DataError(f"{where}: {name} of article {row['id']!r}: wanted text, found a {kind}. Leave it out.")
    if not article["summary"].strip():
        raise DataError(f"{where}: article {row['id']!r} has an empty summary: no score is defined. Leave it out.")
    return article


def tinybabel_source(task: str) -> Source:
    """The test items of one of Tinybabel's tasks, as those of the benchmark that it stands for, with a `prompt`."""

    def rows(code: str) -> Rows:
        return [
            {**_as_benchmark(task, item), "id": item.id, "prompt": item.prompt}
            for item in islice(tinybabel.items(task, code, "test"), TINYBABEL_ITEMS)
        ]

    return Source({code: code for code in LANGUAGES}, rows)


def _as_benchmark(task: str, item: tinybabel.Item) -> Row:
    fields = {"id": item.id, **item.fields}
    if task == "reasoning":
        return {"question": fields["question"], "number": float(fields["answer_number"]), "steps": fields["steps"]}
    if task == "understanding":
        return _question(fields, fields["context"])
    if task == "knowledge":
        return {**_choice(fields, "Tinybabel"), "known_in": fields["known_in"]}
    return _article(fields, "Tinybabel")


def hub_file(repository: str, name: str, read: Callable[[Path], Rows]) -> Callable[[str], Rows]:
    """Items of a Hub repository that holds files in the original layout."""

    def rows(code: str) -> Rows:
        from huggingface_hub import hf_hub_download

        try:
            return read(Path(hf_hub_download(repository, name.format(code), repo_type="dataset")))
        except (OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise _not_had(repository, error) from error

    return rows


def hub_table(
    repository: str, config: str, split: str, row: Callable[[Mapping[str, Any], object], Row], **options: str
) -> Callable[[str], Rows]:
    """Items of a Hub dataset that `datasets` reads."""

    def rows(code: str) -> Rows:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingDependencyError(f'{repository} needs datasets: pip install "babelscope[eval]"') from error
        try:
            table = load_dataset(repository, config.format(code), split=split, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise _not_had(repository, error) from error
        return [row(each, repository) for each in table]

    return rows


def _not_had(repository: str, error: Exception) -> DataError:
    return DataError(
        f"the dataset {repository} is not in the cache and could not be downloaded ({str(error)[:200]}). Go online "
        "once, or give local files in the original layout with data=FOLDER (--data)."
    )


def _hub_squad(row: Mapping[str, Any], _: object) -> Row:
    answers = row["answers"]
    asked = [
        {"text": text, "answer_start": start}
        for text, start in zip(answers["text"], answers["answer_start"], strict=True)
    ]
    return _question({**row, "answers": asked}, row["context"])


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with opened(path) as stream:
        for where, row in json_rows(stream, str(path)):
            if row is not None and not isinstance(row, Mapping):
                raise DataError(f"{where}: wanted an object, found a JSON {type(row).__name__}.")
            if row is not None:
                yield valid_strings(row)


def _some(rows: Iterable[Row], path: Path) -> Rows:
    found = list(rows)
    if not found:
        raise DataError(f"{path} holds no item.")
    return found


def _same(codes: str, **others: str) -> dict[str, str]:
    return {code: others.get(code, code) for code in codes.split()}


MGSM = Source(
    _same("en de fr zh es ru th sw"),
    # The repository's loading script is refused by datasets >= 4; its files are the original ones.
    hub_file("juletxara/mgsm", "mgsm_{}.tsv", read_mgsm),
    ("mgsm/mgsm_{}.tsv", "mgsm/mgsm_{}_test.tsv", "mgsm_{}.tsv"),
    read_mgsm,
)
XQUAD = Source(
    _same("en de zh es ru vi th ar"),
    hub_table("google/xquad", "xquad.{}", "validation", _hub_squad),
    ("xquad/xquad.{}.json", "xquad/xquad.{}.test.json", "xquad.{}.json"),
    read_squad,
)
CMRC = Source(
    {"zh": "zh"},
    hub_table("hfl/cmrc2018", "default", "validation", _hub_squad),
    ("cmrc2018/cmrc2018_dev.json", "cmrc2018/cmrc2018_trial.json"),
    read_squad,
)
XCSQA = Source(
    _same("en de fr zh es ru vi ar sw"),
    hub_table("INK-USC/xcsr", "X-CSQA-{}", "validation", _choice),
    ("xcsqa/{}/dev.jsonl", "X-CSQA/{}/dev.jsonl", "xcsqa/{}/test.jsonl"),
    read_csqa,
)
XLSUM = Source(
    _same(
        "en fr zh es ru vi th ar sw", en="english", fr="french", zh="chinese_simplified", es="spanish", ru="russian",
        vi="vietnamese", th="thai", ar="arabic", sw="swahili",
    ),
    hub_table("csebuetnlp/xlsum", "{}", "test", _article, revision="refs/convert/parquet"),
    ("[xX][lL][sS]um*/{}_test.jsonl", "[xX][lL][sS]um*/{}_val.jsonl", "{}_test.jsonl"),
    read_xlsum,
)  # fmt: skip
