"""Prompts and stops that equal lm-evaluation-harness's own `mgsm_direct`, `mgsm_native_cot` and `xquad`.

Facts of its task files (version 0.4.13), its odd spellings kept. The tests compare them with the installed files.
"""

from collections.abc import Mapping

MGSM_QUESTION: Mapping[str, str] = {
    "en": "Question:",
    "de": "Frage:",
    "fr": "Question :",
    "zh": "问题：",
    "es": "Pregunta:",
    "ru": "Задача:",
    "th": "โจทย์:",
    "sw": "Swali:",
}
"""What is before a question; its answer ends where the next would begin."""
MGSM_ANSWER: Mapping[str, str] = {"de": "Antwort:", "es": "Respuesta:", "fr": "Réponse :"}
"""What is behind a question; in all other languages `Answer:`."""
MGSM_STEPS: Mapping[str, str] = {
    "en": "Step-by-Step Answer:",
    "de": "Schritt-für-Schritt-Antwort:",
    "fr": "Réponse étape par étape :",
    "zh": "逐步解答:",
    "es": "Respuesta paso a paso:",
    "ru": "Пошаговоерешение:",
    "th": "คำตอบทีละขั้นตอน:",
    "sw": "Jibu la Hatua kwa Hatua:",
}
"""What is behind a question that asks for steps."""
XQUAD: Mapping[str, tuple[str, str, str]] = {
    "en": ("Context", "Question", "Answer"),
    "de": ("Kontext", "Frage", "Antwort"),
    "zh": ("语境", "问题", "回答"),
    "es": ("Contexto", "Pregunta", "Respuesta"),
    "ru": ("Контекст", "Вопрос", "Ответ"),
    "vi": ("Bối cảnh", "Câu hỏi", "Trả lời"),
    "th": ("บริบท", "คำถาม", "คำตอบ"),
    "ar": ("سيا", "سؤال", "إجابة"),
}
"""What is before context, question and answer."""
MAX_TOKENS = 256
"""Of an answer: the harness's own limit where a task states none."""


def mgsm_direct(language: str, question: str) -> str:
    """The prompt of `mgsm_direct_LANGUAGE`."""
    return f"{MGSM_QUESTION[language]} {question}\n{MGSM_ANSWER.get(language, 'Answer:')}"


def mgsm_native_cot(language: str, question: str) -> str:
    """The prompt of `mgsm_native_cot_LANGUAGE`."""
    return f"{MGSM_QUESTION[language]} {question}\n{MGSM_STEPS[language]}"


def mgsm_stops(language: str) -> list[str]:
    """Where an answer of both MGSM tasks ends."""
    return [MGSM_QUESTION[language], "</s>", "<|im_end|>"]


def xquad(language: str, context: str, question: str) -> str:
    """The prompt of `xquad_LANGUAGE`."""
    labels = XQUAD[language]
    return f"{labels[0]}: {context}\n\n{labels[1]}: {question}\n\n{labels[2]}:"


def xquad_stops(_: str) -> list[str]:
    """Where an answer of XQuAD ends."""
    return ["\n"]
