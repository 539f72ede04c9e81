"""Language confusion: does an answer stay in the language of its prompt, line by line and word by word?

Source: Marchisio et al., "Understanding and Mitigating Language Confusion in LLMs" (EMNLP 2024), section 3. Where we
differ: lingua identifies lines, among our languages, instead of fastText; a wrong word is one in a script that the
language is not written in, where the original has a list of English words; and an answer without a line of five words
is judged as a whole instead of left out, so that silence is no success.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

from babelscope.errors import DataError
from babelscope.evaluation.metrics import words
from babelscope.evaluation.tasks.data import TINYBABEL_ITEMS, Row, Rows, Source
from babelscope.evaluation.tasks.prompts import WORDS
from babelscope.languages import get_language
from babelscope.lens.identify import identifier
from babelscope.lens.tokens import token_script
from babelscope.textfiles import read_text
from babelscope.tinybabel.grammar import LANGUAGES
from babelscope.tinybabel.texts import documents

SHORT = 5
"""Words that a line must have to be judged by itself."""
_SCRIPTS = {"Latn": "LATIN", "Hans": "CJK", "Cyrl": "CYRILLIC", "Thai": "THAI", "Arab": "ARABIC"}
"""As languages and as characters name them."""


def stays(language: str, row: Row, answer: str) -> dict[str, float]:
    """`line_pass`: every line is in the language. `word_pass`: no word is in a script that it isn't written in.

    Both are 0 for an answer without a letter.
    """
    scripts = {token_script(word.encode()) for word in words(answer)} - {""}
    if not scripts:
        return {"line_pass": 0.0, "word_pass": 0.0}
    lines = [line for line in answer.split("\n") if len(words(line)) >= SHORT] or [answer]
    name = _identifier()
    return {
        "line_pass": float(all(name(line) == language for line in lines)),
        "word_pass": float(scripts == {_SCRIPTS[get_language(language).script]}),
    }


@cache
def _identifier() -> Callable[[str], str]:
    return identifier("lingua", tuple(WORDS))


def read_prompts(path: Path) -> Rows:
    """The prompts of a language: its files in all folders beside this one's."""
    rows: Rows = []
    for file in sorted(path.parents[1].glob(f"*/{path.name}")):
        try:
            for number, row in enumerate(csv.DictReader(io.StringIO(read_text(file), newline=""))):
                if not row.get("prompt"):
                    raise DataError(f"{file}, item {number + 1}: wanted a column prompt, found {list(row)}.")
                rows.append(_prompt(f"{file.parent.name}-{number}", row["prompt"].strip(), path.stem))
        except csv.Error as error:
            raise DataError(f"{file} is not CSV ({error}). Give the file as published.") from None
    if not rows:
        raise DataError(f"{path} holds no item.")
    return rows


def _prompt(name: str, prompt: str, language: str) -> Row:
    return {"id": name, "prompt": prompt, "language": language}


def _nowhere(language: str) -> Rows:
    raise DataError(
        "the language confusion benchmark is not on the Hub. Clone github.com/for-ai/language-confusion and give its "
        "folder with data=FOLDER (--data)."
    )


def _beginnings(code: str) -> Rows:
    """The first sixth of the first line of Tinybabel's held-out documents, up to a space where there is one."""
    rows = []
    for number, text in enumerate(islice(documents(code, "test"), TINYBABEL_ITEMS)):
        line = text.split("\n")[0]
        start = line[: max(6, len(line) // 6)]
        rows.append(_prompt(str(number), start.rpartition(" ")[0] or start, code))
    return rows


CONFUSION = Source(
    {code: code for code in ("en", "de", "fr", "zh", "es", "ru", "vi", "ar")},
    _nowhere,
    ("test_sets/monolingual/*/{}.csv", "monolingual/*/{}.csv"),
    read_prompts,
)
TINYBABEL_CONFUSION = Source({code: code for code in LANGUAGES}, _beginnings)
