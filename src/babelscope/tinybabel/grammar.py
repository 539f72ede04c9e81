"""Language files of Tinybabel: read, checked against the schema, and rendered to text with the place of every slot.

A file holds words and templates. In a template, `{city}` is the base form of the word in the slot `city`, `{city.in}`
another form of it, `{n.plural}` the plural category of a number, and `{person.gender: m=he|f=she}` a choice by a
feature. Braces nest, inner ones first, which is all that agreement needs: `{object.{n.plural}}` is the form of the
object that the number asks for. How to write a language file: docs/tinybabel.md.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from babelscope.errors import DataError

LANGUAGES = ("en", "de", "fr", "zh", "es", "ru", "vi", "th", "ar", "sw")
"""The ten languages of the paper: six of high resource, then four of low resource."""
HIGH_RESOURCE, LOW_RESOURCE = LANGUAGES[:6], LANGUAGES[6:]

_FOLDER = Path(__file__).parent / "languages"
_GENDERED = {"person": 12, "kin": 1}  # the first so many words of the schema are feminine (kin: they alternate)
_DEPTH = 12  # templates within forms within templates: deeper is a form that is defined by itself


class _Form(str):
    """The form of a word: a template over the word's other forms."""


@dataclass(frozen=True)
class Span:
    """Where a slot was rendered in a text: `text[start:end]`, counted in characters."""

    slot: str
    start: int
    end: int


@dataclass(frozen=True)
class Text:
    """A rendered template."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Word:
    """A word of a language: its forms, which may be templates over its other forms and over `parts`."""

    key: str
    forms: Mapping[str, str]
    parts: Mapping[str, "Word"] = field(default_factory=dict)
    rendered: dict[str, str] = field(default_factory=dict)
    """Forms already worked out."""

    def __str__(self) -> str:
        return self.key


class Grammar:
    """One language of Tinybabel.

    Args:
        code: Language code; the file is `languages/CODE.toml` beside this module, or `path`.
        path: A file to read instead.

    Raises:
        DataError: The file doesn't parse or doesn't cover the schema; every fault found is listed.
    """

    def __init__(self, code: str, path: Path | None = None) -> None:
        self.code = code
        path = path or _FOLDER / f"{code}.toml"
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: expected a language file of Tinybabel in TOML: {error}") from error
        faults = list(_shape_faults(content, schema()))
        if not faults:
            self.name: str = content["name"]
            self.join: str = content["join"]
            self.prompts: Mapping[str, str] = content["prompts"]
            self.relations: Mapping[str, Any] = content["relations"]
            self.problems: Mapping[str, list[str]] = content["problems"]
            self._plural = {category: _plural_rule(rule) for category, rule in content["plural"].items()}
            self._fullname = _forms(content["fullname"])
            self._defaults = {name: _forms(content[name].get("_", {})) for name in schema()["classes"]}
            self.words = {
                name: {
                    key: Word(key, self._defaults[name] | _gender(name, index) | _forms(content[name][key]))
                    for index, key in enumerate(keys)
                }
                for name, keys in schema()["classes"].items()
            }
            faults = list(self._rendering_faults())
        if faults:
            shown = "".join(f"\n  {fault}" for fault in faults[:40])
            more = f"\n  ... and {len(faults) - 40} more" if len(faults) > 40 else ""
            raise DataError(f"{path}: {len(faults)} fault(s) in this language file:{shown}{more}")

    def full_name(self, first: str, surname: str) -> Word:
        """A person by first name and surname; its forms are those of a person, made by the table `fullname`."""
        parts = {"first": self.words["person"][first], "surname": self.words["surname"][surname]}
        forms = self._defaults["person"] | {"gender": parts["first"].forms["gender"]} | self._fullname
        return Word(f"{first}_{surname}", forms, parts)

    def render(self, template: str, values: Mapping[str, Any], *, sentence: bool = True) -> Text:
        """Fill a template.

        Args:
            template: A template of this language.
            values: Word, number or ready text by slot.
            sentence: Whether to begin with a capital, where the script has them.

        Raises:
            DataError: A slot, form or choice that doesn't exist; the message has the template.
        """
        try:
            text, spans = self._fill(template, values, 0)
        except DataError as error:
            raise DataError(f"{self.code}: {error} (in the template {template!r})") from None
        if sentence:
            first = next((i for i, character in enumerate(text) if character.isalnum()), 0)
            text = text[:first] + text[first : first + 1].upper() + text[first + 1 :]
        return Text(text, tuple(spans))

    def _fill(self, template: str, values: Mapping[str, Any], depth: int) -> tuple[str, list[Span]]:
        if depth > _DEPTH:
            raise DataError("a form is defined by itself")
        text, spans = "", []
        for literal, slot in _pieces(template):
            text += literal
            if slot is not None:
                expression = self._fill(slot, values, depth + 1)[0] if "{" in slot else slot
                value = self._resolve(expression, values, depth + 1)
                if ":" not in expression:  # a choice is an ending or a verb that agrees, not the slot itself
                    spans.append(Span(expression.split(".")[0], len(text), len(text) + len(value)))
                text += value
        return text, spans

    def _resolve(self, expression: str, values: Mapping[str, Any], depth: int) -> str:
        path, colon, choices = expression.partition(":")
        slot, *features = path.strip().split(".")
        if slot not in values:
            raise DataError(f"there is no slot or form {slot!r} here; there are: {', '.join(sorted(values))}")
        value: Any = values[slot]
        if isinstance(value, _Form):
            value = self._fill(value, values, depth + 1)[0]
        for feature in features or ["base"]:
            value = self._feature(value, feature, depth)
        if not colon:
            return str(value)
        options = dict(option.strip().split("=", 1) for option in choices.split("|"))
        if value not in options:
            raise DataError(f"{{{expression}}} has no choice for {value!r}")
        return options[value]

    def _feature(self, value: Any, feature: str, depth: int) -> Any:
        if isinstance(value, Word):
            if feature not in value.forms:
                raise DataError(f"{value} has no form {feature!r}; it has: {', '.join(sorted(value.forms))}")
            if feature not in value.rendered:
                value.rendered[feature] = self._fill(value.forms[feature], {**value.forms, **value.parts}, depth + 1)[0]
            return value.rendered[feature]
        if feature == "plural" and isinstance(value, int):
            return next((category for category, rule in self._plural.items() if rule(value)), "other")
        if feature == "base":
            return value
        raise DataError(f"{value!r} has no form {feature!r}")

    def _rendering_faults(self) -> Iterator[str]:
        """Every template with every word of every slot at least once: what is missing shows here, not in training."""
        samples = {name: list(words.values()) for name, words in self.words.items()}
        samples["person"] += [self.full_name("anna", "weber"), self.full_name("leo", "rossi")]
        samples["number"] = [3, 4, 5, 11, 12, 21, 22, 25, 100, 101, 103, 111]  # type: ignore[list-item]
        samples["equation"] = ["5 + 3 = 8"]  # type: ignore[list-item]
        seen = set()
        for template, slots, used, unused in self._templates():
            values = {slot: samples[kind] for slot, kind in slots.items()}
            longest = max(map(len, values.values()))
            for row in range(longest):
                chosen = {slot: words[row % len(words)] for slot, words in values.items()}
                try:
                    spans = self.render(template, chosen).spans
                except (DataError, ValueError) as error:
                    if str(error) not in seen:
                        seen.add(str(error))
                        yield str(error)
                    continue
                missing, wrong = used - {span.slot for span in spans}, unused & {span.slot for span in spans}
                if row == 0 and (missing or wrong):
                    yield f"{template!r} " + (
                        f"has to name {sorted(missing)}" if missing else f"gives its answer {sorted(wrong)} away"
                    )

    def _templates(self) -> Iterator[tuple[str, dict[str, str], set[str], set[str]]]:
        """Templates with the classes of their slots, the slots they must name and those they must not."""
        for name, wanted in schema()["relations"].items():
            slots, mine = wanted["args"], self.relations[name]
            first = next(iter(slots))
            for kind in ("say", "then", "summary", "title"):
                for template in mine.get(kind, ()):
                    used = {"say": set(slots), "then": set(slots) - {first}, "summary": set(slots), "title": set()}
                    yield template, slots, used[kind], set()
            for slot, templates in mine.get("ask", {}).items():
                for template in templates:
                    yield template, slots, set(), {slot}
            for slot, template in mine.get("answer", {}).items():
                yield template, slots, {slot}, set()
        for name, slots in schema()["problems"].items():
            for template in self.problems[name]:
                yield template, slots, {slot for slot in slots if slot in ("n", "m", "sum")} & _printed(name), set()
        for name, slots in schema()["prompts"].items():
            yield self.prompts[name], dict.fromkeys(slots, "equation"), set(slots), set()


@cache
def schema() -> Mapping[str, Any]:
    """What a language file must cover: `languages/schema.toml`."""
    return tomllib.loads((_FOLDER / "schema.toml").read_text(encoding="utf-8"))


@cache
def grammar(code: str) -> Grammar:
    """The grammar of a language of Tinybabel, read once.

    Raises:
        DataError: Tinybabel doesn't speak it; the message lists what it speaks.
    """
    if code not in LANGUAGES:
        raise DataError(f"Tinybabel speaks {', '.join(LANGUAGES)}; asked for {code!r}")
    return Grammar(code)


def gender(person: str) -> str:
    """`f` or `m` of a person or of a kinship in the schema."""
    name = "person" if person in schema()["classes"]["person"] else "kin"
    return _gender(name, schema()["classes"][name].index(person))["gender"]


def _gender(name: str, index: int) -> dict[str, str]:
    if name == "person":
        return {"gender": _Form("f" if index < _GENDERED[name] else "m")}
    return {"gender": _Form("mf"[index % 2 == 0])} if name == "kin" else {}


def _printed(problem: str) -> set[str]:
    # In a solution the result is part of the printed equation; elsewhere every number has to be named.
    return {"sum"} if problem.startswith("solve_") else {"n", "m"}


def _forms(word: str | Mapping[str, str]) -> dict[str, str]:
    forms = {"base": word} if isinstance(word, str) else word
    return {name: _Form(form) for name, form in forms.items()}


@cache
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """Literal text and the inside of the outermost braces that follows it."""
    pieces: list[tuple[str, str | None]] = []
    literal, depth, start = "", 0, 0
    for position, character in enumerate(template):
        if character == "{":
            if depth == 0:
                start = position + 1
            depth += 1
        elif character == "}":
            depth -= 1
            if depth < 0:
                break
            if depth == 0:
                pieces.append((literal, template[start:position]))
                literal = ""
        elif depth == 0:
            literal += character
    if depth:
        raise DataError("braces that don't match")
    return (*pieces, (literal, None))


def _plural_rule(rule: str) -> Any:
    """A rule in CLDR's notation, `n % 10 = 2..4 and n % 100 != 12..14`, as a function of a number."""

    def condition(text: str) -> Any:
        match = re.fullmatch(r"\s*n(?:\s*%\s*(\d+))?\s*(!?=)\s*([\d., ]+?)\s*", text)
        if not match:
            raise DataError(
                f"plural rule {rule!r}: expected conditions such as 'n % 10 = 2..4 and n != 12', found {text!r}"
            )
        modulus, equal = int(match[1] or 0), match[2] == "="
        numbers = {
            n
            for part in match[3].split(",")
            for low, high in [map(int, (part.split("..") * 2)[:2])]
            for n in range(low, high + 1)
        }
        return lambda n: ((n % modulus if modulus else n) in numbers) == equal

    clauses = [[condition(text) for text in clause.split(" and ")] for clause in rule.split(" or ")]
    return lambda n: any(all(test(n) for test in clause) for clause in clauses)


def _shape_faults(content: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """What is missing, unknown or too short, before any template is tried."""
    top = {"name", "join", "plural", "fullname", "relations", "problems", "prompts", *wanted["classes"]}
    yield from _keys("", content, top)
    for name, keys in wanted["classes"].items():
        yield from _keys(f"[{name}]", content.get(name, {}), {*keys}, optional={"_"})
        for key, word in content.get(name, {}).items():
            if key != "_" and "base" not in _forms(word) and "base" not in _forms(content[name].get("_", {})):
                yield f"[{name}] {key}: a word needs a form `base`"
    yield from _keys("[relations]", content.get("relations", {}), {*wanted["relations"]})
    for name, relation in wanted["relations"].items():
        mine = content.get("relations", {}).get(name, {})
        counts = {kind: relation[kind] for kind in ("say", "then", "title", "summary") if kind in relation}
        extra = {kind for kind in ("ask", "answer") if kind in relation}
        yield from _keys(f"[relations.{name}]", mine, {*counts, *extra})
        for kind, count in counts.items():
            yield from _enough(f"[relations.{name}] {kind}", mine.get(kind, []), count)
        yield from _keys(f"[relations.{name}] ask", mine.get("ask", {}), {*relation.get("ask", {})})
        for slot, count in relation.get("ask", {}).items():
            yield from _enough(f"[relations.{name}] ask.{slot}", mine.get("ask", {}).get(slot, []), count)
        yield from _keys(f"[relations.{name}] answer", mine.get("answer", {}), {*relation.get("answer", ())})
    yield from _keys("[problems]", content.get("problems", {}), {*wanted["problems"]})
    for name, templates in content.get("problems", {}).items():
        yield from _enough(f"[problems] {name}", templates, 1)
    yield from _keys("[prompts]", content.get("prompts", {}), {*wanted["prompts"]})


def _keys(
    where: str, found: Mapping[str, Any], wanted: set[str], optional: frozenset[str] | set[str] = frozenset()
) -> Iterator[str]:
    for missing, unknown in zip_longest(sorted(wanted - set(found)), sorted(set(found) - wanted - optional)):
        if missing:
            yield f"{where} {missing}: missing".strip()
        if unknown:
            yield f"{where} {unknown}: not in the schema".strip()


def _enough(where: str, templates: Any, count: int) -> Iterator[str]:
    if not isinstance(templates, list) or not all(isinstance(template, str) for template in templates):
        yield f"{where}: expected a list of templates, found {templates!r}"
    elif len(set(templates)) < count:
        yield f"{where}: at least {count} different phrasings are needed, found {len(set(templates))}"
