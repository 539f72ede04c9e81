"""A YAML file as plain data beside the line of every key, so that a refusal can name it. Nothing is constructed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import yaml

from babelscope.errors import ConfigError

_STANDARD = "tag:yaml.org,2002:"
_TAGS = ("str", "int", "float", "bool", "null", "seq", "map", "timestamp", "merge", "value")
_SLIPS = {
    r"'\t'": "Indent with spaces, not with tabs.",
    "end of stream": "Close the quote or the bracket.",
    "another document": "Keep one study, and drop the line ---.",
    "expected ':'": "Write key: value.",
    "<block end>": "Give the keys of a section the same indentation.",
    "alias": "Write the value itself.",
}
"""Words of PyYAML's messages -> the remedy."""


@dataclass(frozen=True)
class YamlFile:
    """A file that holds keys and values."""

    content: dict[str, Any]
    """Mappings, lists, text, and None; numbers are text as they are written, so that `no` is Norwegian."""
    lines: dict[str, tuple[str, int]]
    """Dotted key -> file and line."""

    def refuse(self, key: str, wanted: str, found: str, remedy: str) -> NoReturn:
        """Raises ConfigError that names the file, the line of the key or of what holds it, and the key."""
        holder = key
        while holder not in self.lines:
            holder = holder.rpartition("[" if holder.endswith("]") else ".")[0]
        file, line = self.lines[holder]
        raise ConfigError(f"{file}, line {line}: {f'{key}: ' if key else ''}wanted {wanted}, found {found}. {remedy}")

    def over(self, parent: YamlFile) -> YamlFile:
        """This file over the one that it extends: sections key by key, every other value as a whole."""
        content = dict(parent.content)
        for key, value in self.content.items():
            below = content.get(key)
            content[key] = {**below, **value} if isinstance(below, dict) and isinstance(value, dict) else value
        return YamlFile(content, {**parent.lines, **self.lines})


def read_yaml(text: str, name: str) -> YamlFile:
    """The content of a file.

    Args:
        text: the content.
        name: the name of the file, for messages.

    Raises:
        ConfigError: the text is no YAML or no mapping, a key is given twice, or a tag would make an object.
    """
    try:
        loader = yaml.SafeLoader(text)
        loader.name = name
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{name}{_no_yaml(error)}") from None
    except yaml.reader.ReaderError as error:
        line, character = text.count("\n", 0, error.position) + 1, text[error.position]
        raise ConfigError(f"{name}, line {line}: wanted text, found the character {character!r}. Drop it.") from None
    except RecursionError:
        raise ConfigError(f"{name}: wanted a study, found brackets within brackets without end. Correct it.") from None
    if node is None:
        raise ConfigError(f"{name}, line 1: wanted a study, found an empty file. babelscope study --init writes one.")
    file = YamlFile({}, {})
    content = _plain(node, "", file)
    if not isinstance(content, dict):
        found = f"a list of {len(content)}" if isinstance(content, list) else repr(content)
        file.refuse("", "keys and values, such as languages: [en, fr]", found, "Correct it.")
    file.content.update(content)
    return file


DEEPEST = 4
"""Mappings and lists within each other, below the file itself, that a study can have: section, key, task, parts."""


def _plain(node: Any, key: str, file: YamlFile, depth: int = 0) -> Any:
    """The content of a node; notes the lines of everything in it.

    What lies deeper than any setting is not read: aliases of aliases could make it endless, and it is refused anyway.
    """
    file.lines[key] = (node.start_mark.name, node.start_mark.line + 1)
    if node.tag.removeprefix(_STANDARD) not in _TAGS:
        file.refuse(key, "plain YAML", f"the tag {node.tag!r}", "Drop the tag.")
    if isinstance(node, yaml.ScalarNode):
        return None if node.tag == f"{_STANDARD}null" else node.value
    if isinstance(node, yaml.SequenceNode):
        if depth > DEEPEST:
            return [None] * len(node.value)
        return [_plain(item, f"{key}[{at}]", file, depth + 1) for at, item in enumerate(node.value)]
    content: dict[str, Any] = {}
    for name, value in node.value if depth <= DEEPEST else ():
        if not isinstance(name, yaml.ScalarNode):
            file.lines[key] = (name.start_mark.name, name.start_mark.line + 1)
            file.refuse(key, "a word as a key", f"a list of {len(name.value)}", "Correct it.")
        inner = f"{key}.{name.value}" if key else name.value
        if name.value in content:
            first = file.lines[inner][1]
            file.lines[inner] = (name.start_mark.name, name.start_mark.line + 1)
            file.refuse(inner, "each key once", f"it again (first on line {first})", "Drop one.")
        content[name.value] = _plain(value, inner, file, depth + 1)
    return content


def _no_yaml(error: yaml.MarkedYAMLError) -> str:
    """The end of a message: the line at which a text is no YAML, and why."""
    mark, context = error.problem_mark or error.context_mark, error.context_mark
    found = str(error.problem).removeprefix("but ").removeprefix("found ")
    begins = f" (in what begins on line {context.line + 1})" if context and mark and context.line != mark.line else ""
    remedy = next((remedy for said, remedy in _SLIPS.items() if said in found), "Correct it.")
    line = f", line {mark.line + 1}" if mark else ""
    return f"{line}: wanted YAML, found something else: {found}{begins}. {remedy}"
