"""Identifiers of whole texts, for the paper's way."""

from __future__ import annotations

import sys
import types

import pytest

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.lens.identify import identifier


def test_lingua_among_the_languages():
    pytest.importorskip("lingua")
    find = identifier("lingua", ("fr", "en", "ja", "no"))
    assert find("Les enfants jouaient dans le jardin") == "fr"
    assert find("The children were playing in the garden") == "en"
    assert find("こどもたち") == "ja"
    assert find("Barna lekte i hagen hele dagen, og etterpå spiste de") == "no"
    assert find("123") == find("...") == find("<br>") == "", "no language is not asked about"
    with pytest.raises(ConfigError, match="lingua does not know bo"):
        identifier("lingua", ("bo", "fr"))


def test_cld3_as_it_answers(monkeypatch):
    """The package isn't among the tested ones: a stand-in with its interface."""
    answers = {"le": ("fr", True), "la": ("it", True), "un": ("fr", False), "ya": ("ru-Latn", True), "do": None}

    def get_language(text):
        found = answers[text]
        return found and types.SimpleNamespace(language=found[0], probability=0.9, is_reliable=found[1])

    monkeypatch.setitem(sys.modules, "cld3", types.SimpleNamespace(get_language=get_language))
    find = identifier("cld3", ("fr", "en"))
    assert [find(text) for text in answers] == ["fr", "", "", "", ""]


@pytest.mark.parametrize(("name", "line"), [("lingua", "babelscope\\[eval\\]"), ("cld3", "pip install pycld3")])
def test_missing_packages(monkeypatch, name, line):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=line):
        identifier(name, ("fr", "en"))
