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


CLD3 = {
    "le": ("fr", True), "la": ("it", True), "un": ("fr", False), "ya": ("ru-Latn", True), "si": ("und", True),
    "של": ("iw", True), "字": ("zh", True), "字a": ("zh-Latn", True),
}  # fmt: skip
NAMED = ["fr", "", "", "", "", "he", "zh", ""]


def answer(text):
    """As the Result of either binding: language, probability, is_reliable, proportion."""
    language, reliable = CLD3[text]
    return types.SimpleNamespace(language=language, probability=0.9, is_reliable=reliable, proportion=1.0)


def test_gcld3_as_its_binding_has_it(monkeypatch):
    """A stand-in with the interface of gcld3/pybind_ext.cc, which takes its two numbers by these names."""

    class NNetLanguageIdentifier:
        def __init__(self, min_num_bytes: int, max_num_bytes: int):
            assert min_num_bytes == 0, "its default of 140 bytes would call every token unreliable"
            assert max_num_bytes > 100

        def FindLanguage(self, text):
            return answer(text)

    module = types.SimpleNamespace(NNetLanguageIdentifier=NNetLanguageIdentifier)
    monkeypatch.setitem(sys.modules, "gcld3", module)
    monkeypatch.setitem(sys.modules, "cld3", None)
    find = identifier("cld3", ("fr", "en", "he", "zh"))
    assert [find(text) for text in CLD3] == NAMED
    assert find("12") == "", "no language is not asked about"


def test_pycld3_as_its_binding_has_it(monkeypatch):
    """A stand-in for the older binding, whose function gives None for a text of nothing."""
    module = types.SimpleNamespace(get_language=lambda text: None if text == "a" else answer(text))
    monkeypatch.setitem(sys.modules, "gcld3", None)
    monkeypatch.setitem(sys.modules, "cld3", module)
    find = identifier("cld3", ("fr", "en", "he", "zh"))
    assert [find(text) for text in (*CLD3, "a")] == [*NAMED, ""]


def test_the_real_cld3():
    pytest.importorskip("gcld3", reason="gcld3 isn't installed: it has no wheels and needs protobuf to build")
    find = identifier("cld3", ("fr", "en", "ja"))
    assert find("Les enfants jouaient dans le jardin") == "fr"
    assert find("The children were playing in the garden") == "en"
    assert find("こどもたちがあそんでいます") == "ja"


@pytest.mark.parametrize(
    ("name", "line"), [("lingua", "babelscope\\[eval\\]"), ("cld3", "pip install gcld3 .*protobuf")]
)
def test_missing_packages(monkeypatch, name, line):
    for module in (name, "gcld3"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=line):
        identifier(name, ("fr", "en"))
