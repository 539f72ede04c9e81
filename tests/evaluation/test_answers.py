"""Answers against references in ten languages, and readings of any text: no exception, no hang.

The right values follow from the official SQuAD rule, applied by hand: case and punctuation don't count, words do.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babelscope.evaluation.letters import choice_letter
from babelscope.evaluation.metrics import contains, exact_match, token_f1
from babelscope.evaluation.numbers import READINGS

# language, answer, reference, exact match, contains: by SQuAD's rule (delete punctuation, compare words), by hand.
# The answers have the shapes that models print: bare, quoted, in a sentence, with a unit, with Markdown, cut.
PAIRS = [
    ("en", "1,000", "1000", 1, 1),
    ("en", "The end", "end", 1, 1),
    ("en", "Wi-Fi", "WiFi", 1, 1),
    ("en", "**Denver Broncos**", "Denver Broncos", 1, 1),
    ("en", "The answer is the Denver Broncos.", "Denver Broncos", 0, 1),
    ("en", "U.S.A.", "USA", 1, 1),
    ("en", "308", "1308", 0, 0),
    ("en", "$1.2 million", "$1.2 million", 1, 1),
    ("en", "O'Brien's", "O’Brien’s", 0, 0),
    ("en", "a cat", "the cat", 1, 1),
    ("en", "Dr. King Jr.", "Dr King Jr", 1, 1),
    ("en", "New Delhi, India", "New Delhi", 0, 1),
    ("en", "Broncos Denver", "Denver Broncos", 0, 0),
    ("de", "1.000 Jahre", "1000 Jahre", 1, 1),
    ("de", "Straße", "STRASSE", 1, 1),
    ("de", "Donau\u00addampf", "Donaudampf", 1, 1),
    ("de", "„Der Spiegel“", "Der Spiegel", 1, 1),
    ("de", "im Jahr 1618", "1618", 0, 1),
    ("de", "CDU/CSU", "CDU CSU", 0, 0),
    ("de", "80 %", "80", 1, 1),
    ("de", "Die Antwort lautet: Martin Luther.", "Martin Luther", 0, 1),
    ("de", "der Rhein", "Rhein", 0, 1),
    ("de", "St. Gallen", "St Gallen", 1, 1),
    ("de", "U-Bahn", "UBahn", 1, 1),
    ("de", "3.500.000", "500", 0, 0),
    ("de", "Müller", "Mueller", 0, 0),
    ("fr", "l'été", "l’été", 1, 1),
    ("fr", "«Paris»", "Paris", 1, 1),
    ("fr", "« Le Monde »", "Le Monde", 1, 1),
    ("fr", "Parisien", "Paris", 0, 0),
    ("fr", "CAFÉ", "cafe\u0301", 1, 1),
    ("fr", "en 1789", "1789", 0, 1),
    ("fr", "La réponse est Victor Hugo.", "Victor Hugo", 0, 1),
    ("fr", "Saint-Étienne", "SaintÉtienne", 1, 1),
    ("fr", "80\u202f%", "80%", 1, 1),
    ("fr", "œuvre", "oeuvre", 0, 0),
    ("fr", "la tour Eiffel", "tour Eiffel", 0, 1),
    ("fr", "aujourd’hui", "aujourd'hui", 1, 1),
    ("es", "1.345.596 habitants", "345", 0, 0),
    ("es", "1.345.596 habitantes", "1345596", 0, 1),
    ("es", "¿Madrid?", "Madrid", 1, 1),
    ("es", "¡Sí!", "sí", 1, 1),
    ("es", "«El País»", "El País", 1, 1),
    ("es", "La respuesta es: Simón Bolívar", "Simón Bolívar", 0, 1),
    ("es", "España", "Espana", 0, 0),
    ("es", "un tercio", "tercio", 0, 1),
    ("es", "EE. UU.", "EE UU", 1, 1),
    ("es", "n.º 5", "nº 5", 1, 1),
    ("es", "siglo XVI", "el siglo XVI", 0, 0),
    ("es", "Lima (Perú)", "Lima Perú", 1, 1),
    ("ru", "«Москва»", "москва", 1, 1),
    ("ru", "в Москве", "Москве", 0, 1),
    ("ru", "Ответ: в 1961 году.", "1961", 0, 1),
    ("ru", "Санкт-Петербург", "СанктПетербург", 1, 1),
    ("ru", "А. С. Пушкин", "А С Пушкин", 1, 1),
    ("ru", "А.С. Пушкин", "АС Пушкин", 1, 1),
    ("ru", "— Лев Толстой", "Лев Толстой", 1, 1),
    ("ru", "№ 5", "5", 0, 1),
    ("ru", "ёлка", "елка", 0, 0),
    ("ru", "20-й век", "20й век", 1, 1),
    ("ru", "„Правда“", "Правда", 1, 1),
    ("ru", "московский", "Москва", 0, 0),
    ("zh", "308分。", "308 分", 1, 1),
    ("zh", "北京，上海", "上海", 0, 1),
    ("zh", "Paris，London", "London", 0, 1),
    ("zh", "１，０００", "1000", 1, 1),
    ("zh", "《红楼梦》", "红楼梦", 1, 1),
    ("zh", "答案是丹佛野马队。", "丹佛野马", 0, 1),
    ("zh", "“长城”", "长城", 1, 1),
    ("zh", "1953年7月", "1953年", 0, 1),
    ("zh", "ＮＦＬ", "NFL", 1, 1),
    ("zh", "路易·十四", "路易十四", 1, 1),
    ("zh", "在北京", "京北", 0, 0),
    ("zh", "１２．５％", "12.5%", 1, 1),
    ("zh", "21953年", "1953年", 0, 0),
    ("vi", "Hà Nội.", "hà nội", 1, 1),
    ("vi", "Ha\u0300 Nội", "Hà Nội", 1, 1),
    ("vi", "Ha Noi", "Hà Nội", 0, 0),
    ("vi", "Thành phố Hồ Chí Minh", "Hồ Chí Minh", 0, 1),
    ("vi", "“Truyện Kiều”", "Truyện Kiều", 1, 1),
    ("vi", "Câu trả lời là: năm 1945.", "năm 1945", 0, 1),
    ("vi", "3.500 mét", "3500 mét", 1, 1),
    ("vi", "TP.HCM", "TPHCM", 1, 1),
    ("vi", "khoảng 80%", "80 %", 0, 1),
    ("vi", "con mèo", "mèo con", 0, 0),
    ("th", "กรุงเทพฯ", "กรุงเทพ", 0, 1),
    ("th", "กรุง\u200bเทพ", "กรุงเทพ", 1, 1),
    ("th", "“กรุงเทพมหานคร”", "กรุงเทพมหานคร", 1, 1),
    ("th", "คำตอบคือ ปี 1953", "1953", 0, 1),
    ("th", "พ.ศ. 2475", "พศ 2475", 1, 1),
    ("th", "1,000 บาท", "1000บาท", 1, 1),
    ("th", "๒๔๗๕", "2475", 0, 0),
    ("th", "แม่น้ำเจ้าพระยา", "เจ้าพระยา", 0, 1),
    ("th", "เชียงใหม่ (ไทย)", "เชียงใหม่ ไทย", 1, 1),
    ("th", "น้ำ", "น้าม", 0, 0),
    ("ar", "القاهرة،", "القاهرة", 1, 1),
    ("ar", "\u200fالقاهرة\u200f", "القاهرة", 1, 1),
    ("ar", "؟نعم", "نعم", 1, 1),
    ("ar", "«الأهرام»", "الأهرام", 1, 1),
    ("ar", "الإجابة هي: مدينة دنفر.", "دنفر", 0, 1),
    ("ar", "في عام 1952", "1952", 0, 1),
    ("ar", "١٬٠٠٠", "١٠٠٠", 1, 1),
    ("ar", "القاهرة", "قاهرة", 0, 0),
    ("ar", "محمد علي؛", "محمد علي", 1, 1),
    ("ar", "القـاهرة", "القاهرة", 1, 1),
    ("ar", "50٪", "50", 1, 1),
    ("sw", "Ng'ombe", "Ng’ombe", 1, 1),
    ("sw", "mji wa Nairobi", "Nairobi", 0, 1),
    ("sw", "Jibu ni: mwaka 1964.", "1964", 0, 1),
    ("sw", "“Dar es Salaam”", "dar es salaam", 1, 1),
    ("sw", "1,250", "1250", 1, 1),
    ("sw", "Dkt. Nyerere", "Dkt Nyerere", 1, 1),
    ("sw", "Kilimanjaro!", "Kilimanjaro", 1, 1),
    ("sw", "watu", "mtu", 0, 0),
    ("sw", "Mwl. Julius K. Nyerere", "Julius K Nyerere", 0, 1),
    ("sw", "asilimia 80", "80 asilimia", 0, 0),
]


@pytest.mark.parametrize(("language", "answer", "reference", "exact", "within"), PAIRS)
def test_pairs(language, answer, reference, exact, within):
    assert len(PAIRS) >= 110
    assert len({language for language, *_ in PAIRS}) == 10
    assert exact_match(answer, [reference], language) == exact
    assert contains(answer, [reference], language) == within
    assert token_f1(answer, [reference], language) == 1 or not exact


@given(st.text(max_size=200), st.sampled_from(["en", "de", "zh", "ar", None]))
def test_any_text_has_readings(text, language):
    for read in READINGS.values():
        value = read(f"#### {text}\\boxed{{{text}", language)
        assert value is None or isinstance(value, float)
    assert choice_letter(text, ["A", "B"]) in {"A", "B", None}
    exact_match(text, [text[::-1]], language or "fr")


REPEATED = [
    "1",
    "1 ",
    "1,",
    "1.",
    "1 000 ",
    "#",
    "#### ",
    "#### (",
    "#### - ",
    "#### $ ",
    "USD$\\boxed{-",
    "\\boxed{",
    "-",
    "- ",
    "$ ",
    "A ",
    "A a ",
    "not A ",
    "answer is the ",
    "(a",
    "$",
    " ",
    "١",
    "{,}",
    "А ",
    "1/",
    "1e1",
    "1^",
    "1万",
    "1亿1万1千",
    "elfu ",
    "&amp;",
    "\\frac{1}{1}",
    "= - ",
    "#### 1+",
    "<b>",
    "½",
    "กB",
    "ก\u0300",
]


@pytest.mark.parametrize("piece", REPEATED)
def test_time_grows_with_the_length_and_no_faster(piece):
    """Four times the text may take four times as long, and noise; a search that starts over takes sixteen times."""

    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        begun = time.process_time()
        for read in READINGS.values():
            read(text, "en")
        choice_letter(text, ["A", "B"])
        exact_match(text, ["x"], "fr")
        contains(text, ["x"], "zh")
        return time.process_time() - begun

    short, long = (min(seconds(length) for _ in range(2)) for length in (10_000, 40_000))
    assert long < 9 * max(short, 0.01)
