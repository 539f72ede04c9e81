"""Letters of choices in answers: `Réponse : B`, `Câu B`, `答案是Ｂ`, `L'option B`, in ten languages and more."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import islice

_LOOK_ALIKES = str.maketrans("АВЕЅІЈКМНОРСТХΑΒΕΖΗΙΚΜΝΟΡΤΥΧС", "ABESIJKMHOPCTXABEZHIKMNOPTYXC")
"""Cyrillic and Greek capitals that look like Latin ones. A model asked for A, B, C that writes the third Cyrillic
letter means the letter that it looks like. Small ones are prepositions in Russian and aren't read."""
_EMOJI = str.maketrans("\U0001f170\U0001f171", "AB")

ANSWERS = {
    "en": ("answer", "answers", "select", "choose", "pick", "go with", "solution"),
    "de": ("Antwort", "Lösung", "Antwortmöglichkeit", "wähle", "antworte"),
    "fr": ("Réponse", "choisis", "solution"),
    "es": ("Respuesta", "elijo", "escojo", "elección", "solución"),
    "ru": ("Ответ", "ответом", "ответа", "выбираю", "выбор"),
    "vi": ("Đáp án", "Trả lời", "Câu trả lời", "chọn"),
    "th": ("คำตอบ", "ตอบ", "เลือก"),
    "ar": ("الإجابة", "الاجابة", "إجابة", "الجواب", "جواب", "أختار"),
    "sw": ("Jibu", "jawabu", "chagua", "nachagua", "ninachagua"),
    "zh": ("答案", "選擇", "选择", "回答", "应选", "應選", "故选", "故選", "选", "選"),
    "ja": ("答え", "回答", "解答", "正解"),
    "id": ("Jawaban", "jawab", "pilih"),
    "pt": ("Resposta", "escolho"),
    "it": ("Risposta", "scelgo"),
    "ko": ("정답", "답"),
    "hi": ("उत्तर", "जवाब"),
}
"""Words for the answer, by language. All are read in all languages: models answer in others than they are asked."""
OPTIONS = {
    "en": ("option", "choice", "letter"),
    "de": ("Option", "Möglichkeit", "Buchstabe", "Auswahl"),
    "fr": ("option", "proposition", "choix", "lettre"),
    "es": ("opción", "letra", "alternativa", "inciso"),
    "ru": ("вариант", "варианта", "буква", "букву", "пункт"),
    "vi": ("Câu", "lựa chọn", "phương án", "chữ cái", "ý"),
    "th": ("ตัวเลือก", "ข้อ", "ตัวอักษร"),
    "ar": ("الخيار", "الحرف", "خيار", "حرف"),
    "sw": ("Chaguo", "herufi"),
    "zh": ("选项", "選項"),
    "ja": ("選択肢",),
    "id": ("Pilihan", "Opsi", "huruf"),
    "pt": ("opção", "alternativa", "letra"),
    "it": ("opzione", "scelta", "lettera"),
    "ko": ("선택지",),
    "hi": ("विकल्प",),
}
"""Words for a choice: an answer may name several before it decides, so they count less."""
_NOT_WORDS = (
    "not", "isn't", "nicht", "kein", "keine", "pas", "no", "не", "không", "không phải", "ไม่ใช่", "ليس", "ليست", "لا",
    "sio", "siyo", "bukan", "não", "non", "不是", "不选", "不選", "非", "नहीं",
)  # fmt: skip
_OTHER_WORDS = (
    "plan vitamin vitamine vitamina vitamini витамин витамина hepatitis hépatite гепатит type typ tipo тип grade class "
    "klasse classe clase класс group gruppe groupe grupo группа size"
)
"""Nouns with a letter of their own: `vitamin C`."""
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
    "karena is ist est es là ni é è هي هو adalah or oder und ou o или hoặc và atau dan au na หรือ และ أو are sind sont"
)
_AFTER = _AFTER_WORDS.split()
"""Words that may follow a letter that is meant as one."""
_WORD = r"A-Za-z0-9\u00c0-\u024f\u0300-\u036f\u0370-\u03ff\u0400-\u04ff\u1e00-\u1eff"


def _any(words: Sequence[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(set(words), key=len, reverse=True))


def _cue(words: Mapping[str, Sequence[str]]) -> re.Pattern[str]:
    return re.compile(
        rf"(?<![{_WORD}])(?:{_any([word for several in words.values() for word in several])})(?![{_WORD}])"
        rf"(?:\W{{0,6}}(?:{_any(_LINKS)})(?![{_WORD}])){{0,4}}\W{{0,8}}$",
        re.IGNORECASE,
    )


_ANSWER, _OPTION = _cue(ANSWERS), _cue(OPTIONS)
_NOT = re.compile(rf"(?<![{_WORD}])(?:{_any(_NOT_WORDS)})[\s\"'*(]{{0,4}}$", re.IGNORECASE)
_OTHER = re.compile(rf"(?<![{_WORD}])(?:{_any(_OTHER_WORDS.split())})[ -]$", re.IGNORECASE)
_APART = (
    rf"(?<![{_WORD}])(?<![{_WORD}]-)(?<![A-Z]\.){{}}(?![{_WORD}+#])"
    rf"(?!['’][{_WORD}])(?!-[{_WORD}])(?!\.[A-Z](?![{_WORD}]))"
)
_CAPITAL = re.compile(_APART.format("[A-Z]"))
_SMALL = re.compile(_APART.format("[a-z]"))
_NEXT_WORD = re.compile(r"[ \u00a0]([^\W\d_]+)")
_DELIMITED = re.compile(r"\s{0,4}(?:[.):\]}*_`$。．）：】」\"”»<>!?！？\-–—\\]|$|\n)")
_LONE = re.compile(rf"(?<![{_WORD}])[\u0370-\u03ff\u0400-\u04ff](?![{_WORD}])")
_REACH = 120
"""Characters before a letter in which its cue is looked for."""
_CANDIDATES = 200
"""Capitals on their own that are looked at, from the beginning: an answer that has more names no choice."""


def choice_letter(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer means; None if it names none.

    A letter that begins the answer and is followed by a mark or nothing comes first (`B. bed`). Then one behind a word
    for the answer (`the answer is C`), behind a word for a choice (`option C`), one that stands alone, and one in front
    of a small word (`B un pré`), but never `A` there, an article or a preposition in many languages. A letter behind
    `not` doesn't count. Small letters count in the first three places only, and if there is no capital.

    Args:
        answer: what the model wrote.
        labels: the labels there are, capitals: a letter that is none of them is no answer (the `I` of `I think`).
    """
    shown = "".join(mark for mark in answer if unicodedata.category(mark) not in ("Cf", "Me") and mark != "\ufe0f")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", shown.translate(_EMOJI)))
    folded = _LONE.sub(lambda match: match[0].translate(_LOOK_ALIKES), text)
    for letters, last in ((_CAPITAL, 4), (_SMALL, 2)):
        ranks: dict[int, str] = {}
        for match in islice(letters.finditer(folded), _CANDIDATES):
            label = match[0].upper()
            if label not in labels:
                continue
            rank = _rank(text, folded, match)
            if rank is not None and rank <= last:
                ranks.setdefault(rank, label)
            if rank == 0:
                break
        if ranks:
            return ranks[min(ranks)]
    return None


def _rank(text: str, folded: str, match: re.Match[str]) -> int | None:
    """How surely a letter is meant as one, 0 the most; None: it is a word, or denied."""
    before = folded[max(0, match.start() - _REACH) : match.start()]
    if _NOT.search(before) or _OTHER.search(before):
        return None
    cue = 1 if _ANSWER.search(before) else 2 if _OPTION.search(before) else None
    word = _NEXT_WORD.match(folded, match.end(), match.end() + 24)
    small = match[0].islower()
    if word is not None and (word[1][0].islower() or (len(word[1]) > 1 and folded.isupper())):
        joins = word[1].casefold() in _AFTER
        looks_like = text[match.start()] != match[0]  # a Cyrillic preposition
        if small or (not joins and (match[0] == "A" or looks_like) and not (cue and looks_like)):
            return None
        return cue or (3 if joins else 4)
    begins = match.start() < _REACH and not any(mark.isalnum() for mark in before)
    delimited = _DELIMITED.match(folded, match.end(), match.end() + 8)
    if begins and delimited:
        return 0
    if small and not (delimited or word is None):
        return None
    return cue or 3
