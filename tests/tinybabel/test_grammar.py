"""Language files: read, refused with every fault named, and each in its own language only."""

import itertools
import re
import unicodedata
from functools import cache
from pathlib import Path

import pytest

from babelscope.errors import DataError
from babelscope.tinybabel import grammar as module
from babelscope.tinybabel.grammar import LANGUAGES, Grammar, grammar, schema

FILES = Path(module.__file__).parent / "languages"
SCRIPTS = {"zh": "CJK", "ru": "CYRILLIC", "th": "THAI", "ar": "ARABIC"}  # the others: LATIN

# Words outside names that two languages spell alike: loans, names of countries and languages, and short words that
# happen to coincide. Whatever else turns up in two languages was left in the wrong one.
_LINES = (Path(__file__).parent / "shared_words.txt").read_text("utf-8").splitlines()
SHARED = {pair: set(words.split()) for pair, words in (line.split(":") for line in _LINES if line)}


def changed(tmp_path, old, new, count=1):
    text = (FILES / "en.toml").read_text("utf-8")
    assert old in text
    path = tmp_path / "en.toml"
    path.write_text(text.replace(old, new, count), "utf-8")
    return path


@cache
def rendered(code):
    """Every template of a language with every word in every slot, and every form of its names."""
    language = grammar(code)
    samples = {kind: list(words.values()) for kind, words in language.words.items()}
    samples |= {"number": [3, 7, 11, 21, 22, 103], "equation": ["5 + 3 = 8"]}
    texts = []
    for template, slots, *_ in language._templates():
        values = {slot: samples[kind] for slot, kind in slots.items()}
        for row in range(max(map(len, values.values()))):
            texts.append(
                language.render(template, {slot: words[row % len(words)] for slot, words in values.items()}).text
            )
    names = [
        language.render(f"{{word.{form}}}", {"word": word}).text
        for kind in ("person", "surname", "city")
        for word in samples[kind]
        for form in word.forms
        if form != "gender"
    ]
    return texts, names


def words_of(texts):
    return {word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower())}


@pytest.mark.parametrize("code", LANGUAGES)
def test_covers_every_word_and_relation_in_its_own_script(code):
    Grammar(code)  # refuses whatever is missing, and tries every template with every word
    texts, names = rendered(code)
    letters = {character for text in texts + names for character in text if character.isalpha()}
    assert {
        character for character in letters if SCRIPTS.get(code, "LATIN") not in unicodedata.name(character)
    } == set()
    assert len(texts) > 3000


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(LANGUAGES, 2)))
def test_no_word_is_left_in_another_language(one, other):
    left, right = (words_of(rendered(code)[0]) - words_of(rendered(code)[1]) for code in (one, other))
    assert left & right == SHARED.get(f"{one} {other}", set())


@pytest.mark.parametrize("code", LANGUAGES)
def test_words_of_a_class_are_told_apart(code):
    for kind, entries in grammar(code).words.items():
        bases = [grammar(code).render("{word}", {"word": entry}).text for entry in entries.values()]
        assert len(set(bases)) == len(bases), kind


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('lamp = "lamp"\n', "", r"\[object\] lamp: missing"),
        ('lamp = "lamp"\n', 'lamp = "lamp"\nlantern = "lantern"\n', r"\[object\] lantern: not in the schema"),
        ('base = "apple", ', "", r"\[object\] apple: a word needs a form `base`"),
        ("lives in {city}", "lives there", r"has to name \['city'\]"),
        ("Where does {person} live?", "Does {person} live in {city}?", r"gives its answer \['city'\] away"),
        ("lives in {city}", "lives in {city.inside}", "london has no form 'inside'"),
        ("lives in {city}", "lives in {town}", "no slot or form 'town'"),
        ("lives in {city}", "lives in {city", "braces that don't match"),
        ("m=he|f=she", "m=he", "has no choice for 'f'"),
        ('one = "n = 1"', 'one = "n is 1"', "expected conditions such as"),
        (', "{person} has a house in {city}."', "", "at least 3 different phrasings are needed, found 2"),
        ('gen = "{base}\'s"', 'gen = "{gen}\'s"', "defined by itself"),
        ("[plural]", "[plural", "expected a language file"),
    ],
)
def test_a_faulty_file_is_refused_with_the_fault(tmp_path, old, new, told):
    with pytest.raises(DataError, match=told):
        Grammar("en", changed(tmp_path, old, new))


def test_all_faults_are_told_at_once(tmp_path):
    path = changed(tmp_path, 'lamp = "lamp"\n', "")
    path.write_text(
        path.read_text("utf-8").replace('rain = { base = "it rained"', 'shower = { base = "it rained"'), "utf-8"
    )
    with pytest.raises(DataError, match=r"(?s)3 fault.*lamp: missing.*rain: missing.*shower: not in the schema"):
        Grammar("en", path)


def test_a_language_it_does_not_speak():
    with pytest.raises(DataError, match=r"Tinybabel speaks en, de.*'pl'"):
        grammar("pl")


def test_slots_are_found_where_they_were_rendered():
    english = grammar("en")
    words = {"person": english.full_name("anna", "weber"), "city": english.words["city"]["paris"]}
    told = english.render("{person.gen} home, as {person.he} says, is {city}.", words)
    assert told.text == "Anna Weber's home, as she says, is Paris."
    assert [(span.slot, told.text[span.start : span.end]) for span in told.spans] == [
        ("person", "Anna Weber's"),
        ("person", "she"),
        ("city", "Paris"),
    ]


@pytest.mark.parametrize(
    ("code", "number", "category"),
    [
        ("ru", 21, "one"),
        ("ru", 11, "other"),
        ("ru", 22, "few"),
        ("ru", 12, "other"),
        ("ru", 111, "other"),
        ("ar", 7, "few"),
        ("ar", 11, "many"),
        ("ar", 99, "many"),
        ("ar", 103, "few"),
        ("ar", 101, "other"),
        ("en", 1, "one"),
    ],
)
def test_plural_categories_follow_cldr(code, number, category):
    assert grammar(code).render("{n.plural}", {"n": number}, sentence=False).text == category


def test_the_schema_asks_for_what_the_issue_names():
    classes = schema()["classes"]
    assert {"person", "city", "country", "food", "animal", "object", "profession", "weather", "kin"} <= set(classes)
    assert len(classes["person"]) == len(set(classes["person"])) == 24
