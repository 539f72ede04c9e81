"""Numbers for people, CSV, LaTeX, and two tables as one."""

from __future__ import annotations

import csv
import io
import re

import pytest

from babelscope.report import tables
from babelscope.report.results import Figure, Finding, Table


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"), ("x", "x"), (0, "0"), (12345, "12,345"), (-3, "−3"), (0.0, "0"), (0.12345, "0.123"),
        (-0.12345, "−0.123"), (12.345, "12.3"), (1234.5, "1,234"), (0.00001234, "1.23e−05"), (3.2e8, "3.20e+08"),
    ],
)  # fmt: skip
def test_cells(cell, text):
    assert tables.shown(cell) == text


def test_columns_share_decimals_unless_that_hides_a_number():
    assert tables.column([0.5, 0.0123, None, "x"]) == ["0.500", "0.012", "–", "x"]
    assert tables.column([0.04, -0.00082, 0.00005, 0.0]) == ["0.04000", "−0.00082", "0.00005", "0.00000"]
    assert tables.column([0.5, 0.000001]) == ["0.500", "1.00e−06"]
    assert tables.column([3, 10, None]) == ["3", "10", "–"]
    assert tables.column([250.0, 3.14159]) == ["250", "3"]


@pytest.mark.parametrize(
    ("effect", "low", "high", "text"),
    [
        (0.04, -0.03, 0.11, "+0.04 [−0.03, 0.11]"),
        (-0.5, -0.5123, -0.4871, "−0.500 [−0.512, −0.487]"),
        (12.0, 3.0, 40.0, "+12 [3, 40]"),
        (0.25, None, None, "+0.250"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (-1e-9, -1e-9, -1e-9, "−1.00e−09 [−1.00e−09, −1.00e−09]"),
        (-2e-9, -3e-9, 1e-9, "−2.00e−09 [−3.00e−09, 1.00e−09]"),
        (-0.001, -0.3, 0.3, "0.00 [−0.30, 0.30]"),
        (None, None, None, ""),
    ],
)
def test_intervals(effect, low, high, text):
    assert tables.interval(Finding("c", "holds", "t", effect, low, high)) == text


@pytest.mark.parametrize("value", [-1e-9, -0.00004, -0.0, 0.0])
def test_no_zero_has_a_sign(value):
    for text in (tables.between(value, -0.3, 0.3), tables.between(0.3, value, 0.4), tables.between(-0.3, -0.4, value)):
        assert not re.search(r"[−+-]0[.0]*(?![.\d])", text), text
    assert tables.column([value, 12.0])[0] in ("0.0", "−1.00e−09", "−4.00e−05")


def test_an_interval_has_the_digits_of_its_width():
    assert tables.between(-0.00034, -0.0008, 0.0004) == "−0.0003 [−0.0008, 0.0004]"
    assert tables.between(0.0617, 0.0400, 0.0853) == "0.062 [0.040, 0.085]"
    assert tables.between(0.000718, 0.000365, 0.00102) == "0.00072 [0.00036, 0.00102]"
    assert tables.between(0.0617, None, None) == "0.0617"


def test_people_read_names_and_files_keep_codes():
    table = Table(
        "t", "T", ("off", "language", "p_holm", "part"), (("fr", "sw", 0.5, "no"), ("zh", "French", None, "is"))
    )
    assert [row[:2] for row in tables.as_text(table)] == [["French", "Swahili"], ["Chinese", "French"]]
    assert [row[3] for row in tables.as_text(table)] == ["no", "is"], "words, though Norwegian and Icelandic elsewhere"
    assert tables.heads(table) == ["off", "language", "p holm", "part"]
    assert r"French & Swahili & 0.500 & no \\" in tables.to_latex(table)
    assert tables.to_csv(table.columns, table.rows).splitlines()[1] == "fr,sw,0.5,no"


TABLE = Table("t", "50 % of a_b & {c}", ("language", "α_1 #", "p"), (("ar\\العربية", 0.5, None), ("~^$", -1.25, 3)))


def test_csv_gives_back_every_cell():
    rows = list(csv.reader(io.StringIO(tables.to_csv(TABLE.columns, [*TABLE.rows, ('a,"b"\n', 1e-17, None)]))))
    assert rows[0] == list(TABLE.columns)
    assert rows[1] == ["ar\\العربية", "0.5", ""]
    assert rows[3] == ['a,"b"\n', "1e-17", ""]
    assert float(rows[3][1]) == 1e-17


def test_figure_data_keep_further_fields():
    records = ({"series": "a", "x": 1, "y": 2.0, "low": None, "high": 3, "seed": 7},)
    figure = Figure("f", "curve", "", "", records)
    assert tables.figure_csv(figure) == "series,x,y,low,high,seed\na,1,2.0,,3,7\n"


def test_latex_escapes_and_aligns():
    text = tables.to_latex(TABLE)
    assert r"\caption{50 \% of a\_b \& \{c\}}" in text
    assert r"\begin{tabular}{lrr}" in text
    assert r"language & α 1 \# & p \\" in text
    assert r"ar\textbackslash{}العربية & 0.50 & – \\" in text
    assert r"\textasciitilde{}\textasciicircum{}\$ & $-$1.25 & 3 \\" in text
    for line in text.splitlines():
        bare = line.replace(r"\\", "").replace(r"\&", "")
        if "&" in bare:
            assert bare.count("&") == 2


def test_two_tables_as_one():
    first = Table("t", "T", ("language", "own", "note"), (("fr", 1.0, "x"), ("sw", 2.0, "x"), ("sw", 5.0, "x")))
    second = Table("t", "T", ("language", "own", "note"), (("sw", 2.5, "x"), ("th", 4.0, "y"), ("sw", 7.0, "x")))
    joined = tables.beside(first, second, ("A", "B"))
    assert joined.columns == ("language", "note", "own: A", "own: B", "own: difference")
    assert joined.rows == (
        ("fr", "x", 1.0, None, None),
        ("sw", "x", 2.0, 2.5, 0.5),
        ("sw", "x", 5.0, 7.0, 2.0),
        ("th", "y", None, 4.0, None),
    )


def test_a_column_of_one_run_alone():
    joined = tables.beside(
        Table("t", "T", ("l", "a"), (("fr", 1),)), Table("t", "T", ("l", "b"), (("fr", 2),)), ("A", "B")
    )
    assert joined.columns == ("l", "a: A", "a: B", "a: difference", "b: A", "b: B", "b: difference")
    assert joined.rows == (("fr", 1, None, None, None, 2, None),)


def test_whole_numbers_tell_rows_apart_where_texts_do_not():
    columns = ("language", "documents", "seed", "bits", "paper")
    first = Table("t", "T", columns, (("sw", 100, 0, 1.5, None), ("sw", 400, 0, 1.0, None), ("sw", 400, 1, 1.25, None)))
    second = Table("t", "T", columns, (("sw", 400, 1, 1.0, None), ("sw", 400, 0, 2.0, None)))
    joined = tables.beside(first, second, ("A", "B"))
    assert joined.columns == ("language", "documents", "seed", "bits: A", "bits: B", "bits: difference")
    assert joined.rows == (
        ("sw", 100, 0, 1.5, None, None),
        ("sw", 400, 0, 1.0, 2.0, 1.0),
        ("sw", 400, 1, 1.25, 1.0, -0.25),
    )
    counts = Table("t", "T", ("language", "neurons"), (("fr", 10), ("sw", 20)))
    assert tables.beside(counts, counts, ("A", "B")).columns == (
        "language",
        "neurons: A",
        "neurons: B",
        "neurons: difference",
    )
