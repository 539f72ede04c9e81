"""Identifiers of whole texts, for the paper's way."""

from __future__ import annotations

import sys
import types

import pytest

from babelscope.errors import ConfigError, MissingDependencyError
from babelscope.lens.identify import Guess, guesser, identifier


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


def test_lingua_guesses_where_it_would_abstain():
    lingua = pytest.importorskip("lingua")
    codes = ("fr", "en", "es")
    languages = [lingua.Language.from_iso_code_639_1(getattr(lingua.IsoCode639_1, code.upper())) for code in codes]
    detector = lingua.LanguageDetectorBuilder.from_languages(*languages).build()
    guess, find = guesser("lingua", codes), identifier("lingua", codes)
    for text in ("Les enfants jouaient dans le jardin", "a", "ion", "no"):
        values = {
            each.language.iso_code_639_1.name.lower(): each.value
            for each in detector.compute_language_confidence_values(text)
        }
        best = max(values, key=values.get)
        assert guess(text) == (best, pytest.approx(values[best]), values[best] >= 0.5)
        assert find(text) == (best if values[best] >= 0.5 else "")
    assert not guess("ion").sure, "or nothing here was an abstention"


CLD3 = {
    "le": ("fr", True),
    "la": ("it", True),
    "un": ("fr", False),
    "ya": ("ru-Latn", True),
    "si": ("und", True),
    "של": ("iw", True),
    "字": ("zh", True),
    "字a": ("zh-Latn", True),
}
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
    languages = ("fr", "en", "he", "zh")
    find, guess = identifier("cld3", languages), guesser("cld3", languages)
    assert [find(text) for text in CLD3] == NAMED
    assert find("12") == "", "no language is not asked about"
    assert guess("le") == Guess("fr", 0.9, True)
    assert guess("la") == Guess("", 0.9, True), "surely another language"
    assert guess("un") == Guess("fr", 0.9, False)


def test_pycld3_as_its_binding_has_it(monkeypatch):
    """A stand-in for the older binding, whose function gives None for a text of nothing."""
    module = types.SimpleNamespace(get_language=lambda text: None if text == "a" else answer(text))
    monkeypatch.setitem(sys.modules, "gcld3", None)
    monkeypatch.setitem(sys.modules, "cld3", module)
    find = identifier("cld3", ("fr", "en", "he", "zh"))
    assert [find(text) for text in (*CLD3, "a")] == [*NAMED, ""]


def test_the_real_cld3():
    """Against the binding itself; where it isn't installed the stand-ins above are all there is."""
    gcld3 = pytest.importorskip("gcld3", reason="gcld3 isn't installed: it has no wheels and needs protobuf to build")
    languages = ("fr", "en", "ja")
    find, guess = identifier("cld3", languages), guesser("cld3", languages)
    assert find("Les enfants jouaient dans le jardin") == "fr"
    assert find("This is a test of the English language") == "en"
    assert find("こどもたちがあそんでいます") == "ja"
    own = gcld3.NNetLanguageIdentifier(0, 1000)
    assert (own.FindLanguage("12").language, own.FindLanguage("12").is_reliable) == ("ja", True), (
        "its answer to nothing"
    )
    assert find("12") == "", "which is why it isn't asked"
    abstained = 0
    for text in ("the", " le", "ing", "Der", "ation", "qu", "ment", "字", "un", "nation"):
        found = own.FindLanguage(text)
        assert guess(text) == (
            found.language if found.language in languages else "",
            found.probability,
            found.is_reliable,
        )
        abstained += not found.is_reliable
    assert guess("the") == ("en", pytest.approx(1, abs=0.01), True)
    assert abstained, "or the flag was never seen to be false"


@pytest.mark.parametrize(
    ("name", "line"), [("lingua", "babelscope\\[eval\\]"), ("cld3", "pip install gcld3 .*protobuf")]
)
def test_missing_packages(monkeypatch, name, line):
    for module in (name, "gcld3"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=line):
        identifier(name, ("fr", "en"))
