"""Letters of choices in answers: `Réponse : B`, `Câu B`, `答案是Ｂ`, `L'option B`, in ten languages and more."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import islice

_LOOK_ALIKES = str.maketrans("АВЕЅІЈКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧС", "ABESIJKMHOPCTXABEZHIKMNOPTYXC")
"""Cyrillic and Greek capitals that look like Latin ones. A model asked for A, B, C that writes the third Cyrillic
letter means the letter that it looks like."""

CUES = {
    "en": ("answer", "option", "choice", "letter", "select", "choose", "pick"),
    "de": ("Antwort", "Option", "Möglichkeit", "Lösung", "Buchstabe", "Auswahl", "Antwortmöglichkeit", "wähle"),
    "fr": ("Réponse", "option", "proposition", "choix", "lettre", "choisis"),
    "es": ("Respuesta", "opción", "letra", "alternativa", "elección", "elijo", "inciso"),
    "ru": ("Ответ", "ответом", "вариант", "варианта", "буква", "букву", "пункт", "выбираю"),
    "vi": ("Đáp án", "Trả lời", "Câu", "Câu trả lời", "lựa chọn", "phương án", "chữ cái", "chọn", "ý"),
    "th": ("คำตอบ", "ตัวเลือก", "ข้อ", "ตอบ", "ตัวอักษร", "เลือก"),
    "ar": ("الإجابة", "الاجابة", "الجواب", "الخيار", "الحرف", "خيار", "حرف", "أختار"),
    "sw": ("Jibu", "Chaguo", "herufi", "jawabu", "chagua", "nachagua"),
    "zh": ("答案", "选项", "選項", "选择", "回答", "应选", "故选", "选", "選"),
    "ja": ("答え", "回答", "解答", "選択肢", "正解"),
    "id": ("Jawaban", "Pilihan", "Opsi", "huruf"),
    "pt": ("Resposta", "opção", "alternativa", "letra"),
    "it": ("Risposta", "opzione", "scelta", "lettera"),
    "ko": ("정답", "답", "선택지"),
    "hi": ("उत्तर", "जवाब", "विकल्प"),
}
"""Words before the letter, by language. All are read in all languages: models answer in others than they are asked."""
_LINK_WORDS = (
    "is was would be should the correct right option choice letter answer ist lautet die der das richtige Option "
    "Möglichkeit Antwort est la le correcte bonne réponse proposition lettre es correcta opción letra respuesta будет "
    "это правильный вариант буква под буквой là đúng đáp án câu คือ ข้อ ตัวเลือก เป็น ถูก هي هو الصحيحة الصحيح الخيار "
    "الحرف ni sahihi chaguo herufi adalah yang benar é a correta opção è corretta "
    "lettera 是 为 為 应该是 选 選 项 は 选项 है"
)
_LINKS = _LINK_WORDS.split()
_AFTER_WORDS = (
    "because since as and so for weil da denn car parce et puisque porque ya y потому так и vì bởi do เพราะ لأن kwa "
    "karena is ist est es là ni"
)
_AFTER = _AFTER_WORDS.split()
"""Words that may follow a letter that is meant as one."""
_WORD = r"A-Za-z0-9\u00c0-\u024f\u0300-\u036f\u0370-\u03ff\u0400-\u04ff\u1e00-\u1eff"


def _any(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


_CUE = re.compile(
    rf"(?<![{_WORD}])(?:{_any([cue for cues in CUES.values() for cue in cues])})(?![{_WORD}])"
    rf"(?:\W{{0,6}}(?:{_any(_LINKS)})(?![{_WORD}])){{0,4}}\W{{0,8}}$",
    re.IGNORECASE,
)
_ALONE = re.compile(rf"(?<![{_WORD}])(?<![{_WORD}]-)[A-Z](?![{_WORD}])(?!['’][{_WORD}])(?!-[{_WORD}])")
_SMALL = re.compile(r"(?:^\W{0,8}|\()([a-z])(?:\)|\.(?=\s|$)|:)|[:：]\s{0,4}([a-z])\W{0,4}$")
_LOWER_WORD = re.compile(r"[ \u00a0]([^\W\d_]+)")
_REACH = 120
"""Characters before a letter in which its cue is looked for."""
_CANDIDATES = 200
"""Capitals on their own that are looked at, from the beginning: an answer that has more names no choice."""


def choice_letter(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer means; None if it names none.

    A letter that begins the answer and is followed by a mark or nothing comes first (`B. bed`), then one behind a cue
    (`the answer is C`), then one that stands alone, then one in front of a small word (`B un pré`); never `A` there,
    an article or a preposition in many languages.

    Args:
        answer: what the model wrote.
        labels: the labels there are, capitals: a letter that is none of them is no answer (the `I` of `I think`).
    """
    shown = "".join(mark for mark in answer if unicodedata.category(mark) != "Cf")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", shown))
    folded = _fold(text)
    ranks: dict[int, str] = {}
    for match in islice(_ALONE.finditer(folded), _CANDIDATES):
        if match[0] in labels:
            rank = _rank(text, folded, match)
            if rank is not None:
                ranks.setdefault(rank, match[0])
            if rank == 0:
                break
    if ranks:
        return ranks[min(ranks)]
    small = _SMALL.search(folded)
    label = (small[1] or small[2]).upper() if small else ""
    return label if label in list(labels) else None


def _fold(text: str) -> str:
    """Latin capitals for those that look like them, where they stand alone."""
    lone = re.compile(rf"(?<![{_WORD}])[\u0370-\u03ff\u0400-\u04ff](?![{_WORD}])")
    return lone.sub(lambda match: match[0].translate(_LOOK_ALIKES), text)


def _rank(text: str, folded: str, match: re.Match[str]) -> int | None:
    """How surely a letter is meant as one: 0 begins, 1 has a cue, 2 alone, 3 in front of a small word; None: a word."""
    next_word = _LOWER_WORD.match(folded, match.end(), match.end() + 24)
    running = next_word is not None and next_word[1][0].islower()
    cued = _CUE.search(folded[max(0, match.start() - _REACH) : match.start()]) is not None
    looks_like = text[match.start()] != match[0]
    if next_word is not None and running:
        if cued and (match[0] != "A" or looks_like or next_word[1] in _AFTER):
            return 1
        return None if match[0] == "A" or looks_like else 3
    begins = not any(mark.isalnum() for mark in folded[max(0, match.start() - _REACH) : match.start()])
    delimited = re.match(r"\s*(?:[.):\]}*,;。、，：）】」\"”\-–—]|$|\n)", folded[match.end() : match.end() + 8])
    if begins and match.start() < _REACH and delimited:
        return 0
    return 1 if cued else 2
