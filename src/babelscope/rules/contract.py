"""The contract of a selection rule, and the registry of rules.

A rule is one file with one class: its settings, and how it chooses the neurons of a language from the statistics of an
atlas. It runs no model. Everything else (`Atlas.select`, the flags of `babelscope select`, the study file, the report)
finds rules by name in `RULES`. Another package adds a rule by the entry point group `babelscope.rules`
(docs/extend/rule.md). Settings are read for help texts, so a rule's module imports torch only inside its functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from babelscope.errors import ConfigError
from babelscope.options import Options, fields_of, help_of
from babelscope.plugins import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from babelscope.detection.atlas import Atlas


class RuleOptions(Options):
    """The settings that every rule has."""

    slots: tuple[str, ...] | None = None
    """Only these slots of q, k, v, o and ffn. Null: those that the rule usually takes."""
    exclude: str | None = None
    """Neurons to take away: `shared` (selected by every language), `others` (by any other), or a language's code."""


Settings = TypeVar("Settings", bound=RuleOptions)


class Rule(ABC, Generic[Settings]):
    """A way to choose the neurons of a language. A subclass has no state."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it takes for a language's neurons, in a line."""
    source: ClassVar[str]
    """The publication that it comes from, and where it differs."""
    options: ClassVar[type[RuleOptions]]
    detector: ClassVar[str]
    """The family that the file of a set names beside the rule: `plnd`, `lape`."""
    overlapping: ClassVar[bool] = True
    """Whether a unit can be in the sets of several languages."""
    compares: ClassVar[bool] = False
    """Whether it needs at least two languages."""
    measures: ClassVar[tuple[str, ...]] = ()
    """Names of what detection must gather beside the statistics of every atlas."""

    def usual_slots(self, atlas: Atlas) -> tuple[str, ...]:
        """The slots that it chooses from unless told.

        Where heads are not grouped, `o` is the same unit as `v` and would be counted twice: it is left out.
        """
        widths = atlas.layout.widths
        return tuple(slot for slot in atlas.slots if slot != "o" or widths.get("v") != widths["o"])

    def settled(self, atlas: Atlas, options: Settings) -> Settings:
        """The settings with what depends on the atlas filled in.

        Raises:
            ConfigError: the atlas lacks what the settings need.
        """
        return options

    @abstractmethod
    def choose(
        self, atlas: Atlas, language: str, options: Settings, slots: tuple[str, ...]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The units of a language.

        Args:
            atlas: statistics of several languages.
            language: its code, which the atlas has.
            options: from `settled`.
            slots: the slots to choose from.

        Returns:
            By slot: scores, float [N] over the units of all layers one behind the other, and masks, bool [N].
        """


RULES: Registry[type[Rule[Any]]] = Registry(
    "rule",
    "babelscope.rules",
    {
        "contrast": "babelscope.rules.contrast:Contrast",
        "minimum": "babelscope.rules.minimum:Minimum",
        "released": "babelscope.rules.released:Released",
        "lape": "babelscope.rules.lape:Lape",
    },
)


def options_of(name: str, given: Mapping[str, Any], *, text: bool = False) -> RuleOptions:
    """The settings of a rule; those that are None count as not given.

    Raises:
        ConfigError: an unknown rule, a setting that the rule would ignore, or a value that can't be.
    """
    kind = RULES[name].options
    wanted = {setting: value for setting, value in given.items() if value is not None}
    useless = sorted(set(wanted) - set(fields_of(kind)))
    if useless:
        raise ConfigError(
            f"rule {name!r} has no use for {', '.join(useless)}; it takes {', '.join(fields_of(kind))}. "
            "Leave them out or choose another rule."
        )
    return kind.of(wanted, text=text)


def all_settings() -> dict[str, tuple[Any, str]]:
    """Every setting of any rule: its type, and its help with the rules that take it in front."""
    takers: dict[str, list[str]] = {}
    settings: dict[str, tuple[Any, str]] = {}
    for rule in RULES:
        for name, annotation in fields_of(rule.options).items():
            takers.setdefault(name, []).append(rule.name)
            settings.setdefault(name, (annotation, help_of(rule.options)[name]))
    several = len(RULES.names())
    return {
        name: (annotation, about if len(takers[name]) == several else f"{', '.join(takers[name])}: {about}")
        for name, (annotation, about) in settings.items()
    }
