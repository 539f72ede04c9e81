"""Settings: what a value may be, how it is read from text, and what is said of one that can't be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest

from babelscope.errors import ConfigError
from babelscope.options import (
    Budget,
    Choice,
    Controls,
    Count,
    Language,
    NonNegative,
    Options,
    Positive,
    Refused,
    describe,
    help_of,
    metavar,
)


class Inner(Options):
    """A section in a section."""

    understand: NonNegative
    """First layers."""


class Sample(Options):
    """Every kind of field."""

    name: str
    """The name of the sample."""
    documents: Count | dict[Language, Count] | None = 1000
    """Documents per language, or by language; null: all."""
    kernel: Literal["auto", "eager"] = "auto"
    """The way in which it is computed."""
    factors: tuple[Positive, ...] = (2.0,)
    """Factors to try."""
    budget: Budget = 0.01
    """Neurons per language."""
    controls: Controls = 5
    """Random sets."""
    shard: tuple[NonNegative, NonNegative] = (0, 1)
    """Which share."""
    split: Literal["searched"] | Inner = "searched"
    """The split of the layers,
    over two lines."""
    out: Path | None = None
    """A folder."""
    quick: bool = False
    """Only a look."""
    fruit: Annotated[str, Choice(lambda: ("apple", "pear"))] = "apple"
    """One of the names that are known at run time."""

    def check(self) -> None:
        if self.shard[0] >= self.shard[1]:
            self.refuse("shard", "an index below the number of shards")


def read(**given: object) -> Sample:
    return Sample.of({"name": "x", **given}, "sample", text=True)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("documents", "1_000", 1000),
        ("documents", "null", None),
        ("documents", "none", None),
        ("documents", None, None),
        ("documents", {"french": "3", "zh": "4"}, {"fr": 3, "zh": 4}),
        ("factors", "1e-3,2", (0.001, 2.0)),
        ("factors", ["1e-3", "2"], (0.001, 2.0)),
        ("factors", "4", (4.0,)),
        ("budget", "500", 500),
        ("budget", "0.5", 0.5),
        ("controls", "0", 0),
        ("shard", "1,4", (1, 4)),
        ("split", "searched", "searched"),
        ("split", {"understand": "2"}, Inner(understand=2)),
        ("out", "a/b", Path("a/b")),
        ("quick", "true", True),
        ("fruit", "pear", "pear"),
        ("kernel", "eager", "eager"),
    ],
)
def test_text_becomes_the_value_of_the_field(field, text, value):
    assert getattr(read(**{field: text}), field) == value


@pytest.mark.parametrize(
    ("field", "text", "parts"),
    [
        ("documents", "-1", ("sample.documents: wanted", "a whole number of 1 or more", "-1")),
        ("documents", "12345678901", ("sample.documents",)),
        ("documents", "1.0", ("sample.documents",)),
        ("documents", {"xx1": "3"}, ("language's code", "'xx1'")),
        ("documents", {"fr": "0"}, ("sample.documents.fr",)),
        ("kernel", "eagr", ("one of auto, eager", "Did you mean eager?")),
        ("factors", "1,1", ("factors[1]", "once")),
        ("factors", "0", ("a number above 0",)),
        ("factors", "nan", ("a number above 0",)),
        ("budget", "1.0", ("a share of all units",)),
        ("budget", "0", ("a share of all units",)),
        ("budget", "inf", ("a share",)),
        ("controls", "1", ("one draw is no control",)),
        ("shard", "4,4", ("sample.shard: wanted an index below the number of shards",)),
        ("shard", "1", ("2 values",)),
        ("split", "found", ("sample.split",)),
        ("split", {"understnd": "2"}, ("sample.split.understnd", "understand")),
        ("split", {}, ("sample.split: wanted the key understand", "none")),
        ("quick", "yes", ("true or false",)),
        ("fruit", "aple", ("one of apple, pear", "Did you mean apple?")),
        ("nam", "x", ("Did you mean name?",)),
    ],
)
def test_a_refusal_names_the_setting_what_was_wanted_found_and_to_do(field, text, parts):
    with pytest.raises(Refused) as caught:
        read(**{field: text})
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_python_values_are_not_read_from_text_but_checked_and_frozen():
    sample = Sample(name="x", factors=[1, 2], documents={"French": 3})
    assert (sample.factors, sample.documents) == ((1.0, 2.0), {"fr": 3})
    for changes in ({"documents": "3"}, {"documents": True}, {"budget": 1.0}, {"factors": "2"}, {"quick": 1}):
        with pytest.raises(ConfigError):
            sample.changed(**changes)
    with pytest.raises(AttributeError):
        sample.name = "y"  # type: ignore[misc]


def test_a_missing_setting_is_named_with_its_help():
    with pytest.raises(Refused, match=r"sample: wanted the key name \(The name of the sample\.\), found none"):
        Sample.of({}, "sample")


def test_help_is_the_docstring_below_a_field_also_of_the_class_above():
    class More(Sample):
        """With one more."""

        extra: Count = 1
        """One more."""
        quick: bool = True
        """Another help."""

    assert help_of(More)["extra"] == "One more."
    assert help_of(More)["split"] == "The split of the layers, over two lines."
    assert (help_of(More)["quick"], help_of(Sample)["quick"]) == ("Another help.", "Only a look.")
    assert set(help_of(Sample)) == set(Sample.__dataclass_fields__)


def test_types_are_described_for_messages_and_for_flags():
    assert describe(int | None) == "a whole number, or null"
    assert (metavar(tuple[Positive, ...]), metavar(Path | None), metavar(tuple[int, int])) == ("X,...", "PATH", "N,N")
    assert metavar(Literal["a", "b"]) == "{a,b}"


def test_as_json_holds_everything_as_plain_data():
    assert read(out="a/b", split={"understand": "2"}).as_json() == {
        "name": "x",
        "documents": 1000,
        "kernel": "auto",
        "factors": [2.0],
        "budget": 0.01,
        "controls": 5,
        "shard": [0, 1],
        "split": {"understand": 2},
        "out": "a/b",
        "quick": False,
        "fruit": "apple",
    }
