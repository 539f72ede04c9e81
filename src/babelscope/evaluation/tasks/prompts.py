"""What a model is asked, in ten languages: words and sentences by language, put together in one way for all."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What prompts are made of, in one language."""

    question: str
    answer: str
    steps: str
    """Let's think step by step."""
    final: str
    """The last line is #### and the number."""
    letter: str
    """Answer with the letter of the right choice."""
    summarize: str
    """Summarize the text in one sentence."""
    title: str
    text: str
    summary: str
    summarize_context: str
    """Summarize the context in one sentence: the paper's wording."""
    context: str
    colon: str = ": "
    space: str = " "
    """Between sentences, and between a colon and an answer."""


WORDS: Mapping[str, Words] = {
    "en": Words(
        "Question", "Answer", "Let's think step by step.", "The last line is #### and the number.",
        "Answer with the letter of the right choice.", "Summarize the text in one sentence.",
        "Title", "Text", "Summary", "Summarize the context in one sentence.", "Context",
    ),
    "de": Words(
        "Frage", "Antwort", "Denken wir Schritt für Schritt nach.", "Die letzte Zeile besteht aus #### und der Zahl.",
        "Antworte mit dem Buchstaben der richtigen Möglichkeit.", "Fasse den Text in einem Satz zusammen.",
        "Titel", "Text", "Zusammenfassung", "Fasse den Kontext in einem Satz zusammen.", "Kontext",
    ),
    "fr": Words(
        "Question", "Réponse", "Réfléchissons étape par étape.", "La dernière ligne contient #### et le nombre.",
        "Réponds par la lettre de la bonne proposition.", "Résume le texte en une phrase.",
        "Titre", "Texte", "Résumé", "Résume le contexte en une phrase.", "Contexte", colon=" : ",
    ),
    "zh": Words(
        "问题", "答案", "让我们一步一步地思考。", "最后一行写 #### 和数字。",
        "请用正确选项的字母回答。", "请用一句话概括这段文字。",
        "标题", "正文", "摘要", "请用一句话概括上下文。", "上下文", colon="：", space="",
    ),
    "es": Words(
        "Pregunta", "Respuesta", "Pensemos paso a paso.", "La última línea contiene #### y el número.",
        "Responde con la letra de la opción correcta.", "Resume el texto en una frase.",
        "Título", "Texto", "Resumen", "Resume el contexto en una frase.", "Contexto",
    ),
    "ru": Words(
        "Вопрос", "Ответ", "Давайте думать шаг за шагом.", "В последней строке напишите #### и число.",
        "Ответьте буквой правильного варианта.", "Кратко изложите текст одним предложением.",
        "Заголовок", "Текст", "Краткое содержание", "Кратко изложите контекст одним предложением.", "Контекст",
    ),
    "vi": Words(
        "Câu hỏi", "Trả lời", "Hãy suy nghĩ từng bước một.", "Dòng cuối cùng gồm #### và con số.",
        "Hãy trả lời bằng chữ cái của lựa chọn đúng.", "Hãy tóm tắt văn bản bằng một câu.",
        "Tiêu đề", "Văn bản", "Tóm tắt", "Hãy tóm tắt ngữ cảnh bằng một câu.", "Ngữ cảnh",
    ),
    "th": Words(
        "คำถาม", "คำตอบ", "มาคิดทีละขั้นตอนกัน", "บรรทัดสุดท้ายคือ #### และตัวเลข",
        "ตอบด้วยตัวอักษรของตัวเลือกที่ถูกต้อง", "สรุปข้อความเป็นหนึ่งประโยค",
        "หัวข้อ", "ข้อความ", "สรุป", "สรุปบริบทเป็นหนึ่งประโยค", "บริบท",
    ),
    "ar": Words(
        "السؤال", "الإجابة", "لنفكر خطوة بخطوة.", "السطر الأخير هو #### ثم العدد.",
        "أجب بحرف الخيار الصحيح.", "لخص النص في جملة واحدة.",
        "العنوان", "النص", "الملخص", "لخص السياق في جملة واحدة.", "السياق",
    ),
    "sw": Words(
        "Swali", "Jibu", "Tufikirie hatua kwa hatua.", "Mstari wa mwisho ni #### na nambari.",
        "Jibu kwa herufi ya chaguo sahihi.", "Fupisha habari hii kwa sentensi moja.",
        "Kichwa", "Habari", "Muhtasari", "Fupisha muktadha huu kwa sentensi moja.", "Muktadha",
    ),
}  # fmt: skip


def labelled(words: Words, label: str, content: str = "") -> str:
    """`Question: content`, as the language sets it; without content it ends with the colon."""
    return f"{label}{words.colon}{content}".rstrip()
