"""The atlas: what one pass over several languages found, from which every detector and threshold is answered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import babelscope
from babelscope.artifacts import read_tensors, write_tensors
from babelscope.errors import ConfigError, DataError, ProvenanceError
from babelscope.languages import get_language
from babelscope.neurons.files import ATLAS
from babelscope.neurons.neuronset import NeuronSet
from babelscope.neurons.statistics import Layout, Statistics, layout_from_json, layout_to_json
from babelscope.rules.contract import options_of
from babelscope.rules.selecting import select, usual_rule

if TYPE_CHECKING:
    from torch import Tensor

KIND = "atlas"
FILE = ATLAS


@dataclass
class Atlas:
    """Statistics of every neuron for several languages, of one model and one way of measuring.

    `atlas | other` merges shards: the same language from other documents, or other languages.
    """

    statistics: dict[str, Statistics]
    """By language code."""
    model: dict[str, Any]
    """Identity of the model: name, revision, model_type, fingerprint."""
    settings: dict[str, Any]
    """What decides the numbers: preset, measure, norm, special tokens, lengths, slots."""
    corpora: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Language -> one record per shard: name, identity, shard, documents, tokens, what was skipped and why."""

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages, in order of detection."""
        return tuple(self.statistics)

    @property
    def layout(self) -> Layout:
        """Units by slot and layer, and what is counted."""
        return next(iter(self.statistics.values())).layout

    @property
    def slots(self) -> tuple[str, ...]:
        """Slots that were scored."""
        return tuple(self.layout.widths)

    def of(self, language: str) -> Statistics:
        """Statistics of one language; ConfigError when the atlas lacks it."""
        code = get_language(language).code
        if code not in self.statistics:
            raise ConfigError(
                f"the atlas holds {', '.join(self.languages)}, not {code!r}. Detect it too and merge the atlases."
            )
        return self.statistics[code]

    def select(self, language: str, *, rule: str | None = None, **options: Any) -> NeuronSet:
        """The neurons of a language.

        Args:
            language: its code.
            rule: the name of a rule in `babelscope.rules`: `contrast` (what the language needs more than any other
                does), `minimum` (the paper's: needed in every document, Eq. 2), `released` (top k per layer in every
                document, as the published code), `lape` (Tang et al. 2024), or one of another package. None: the rule
                that the atlas's preset stands for.
            **options: the settings of the rule. Every rule takes `slots` (only these) and `exclude` (`shared`, `others`
                or the code of a language whose set is taken away); nearly every rule takes `budget` (a share of all
                units below 1, or a number; the paper's share is 0.0013). `babelscope select --help` lists them all.

        Returns:
            The set, with the rule's score beside every neuron.

        Raises:
            ConfigError: an unknown rule or language, a setting that the rule has no use for, or settings that
                contradict; says what to do.
        """
        code = get_language(language).code
        self.of(code)
        name = rule or usual_rule(self.settings)
        slots = options.get("slots")
        if slots is not None:
            options["slots"] = (slots,) if isinstance(slots, str) else tuple(slots)
        return select(self, code, name, options_of(name, options))

    def provenance(self, language: str, detector: str, selected: Mapping[str, Any]) -> dict[str, Any]:
        """The header of a neuron file selected from this atlas."""
        return {
            "model": self.model,
            "language": language,
            "detector": detector,
            "selection": dict(selected),
            "measurement": self.settings,
            "languages": list(self.languages),
            "corpus": self.corpora.get(language, []),
            "version": babelscope.__version__,
        }

    def __or__(self, other: Atlas) -> Atlas:
        if not isinstance(other, Atlas):
            return NotImplemented
        if self.model.get("fingerprint") != other.model.get("fingerprint"):
            raise ProvenanceError(
                f"wanted atlases of one model, found {self.model.get('name')} ({self.model.get('fingerprint')}) and "
                f"{other.model.get('name')} ({other.model.get('fingerprint')}). Merge atlases of one model only."
            )
        names = dict.fromkeys((*self.settings, *other.settings))
        different = [name for name in names if self.settings.get(name) != other.settings.get(name)]
        if different or self.layout != other.layout:
            details = "; ".join(
                f"{name}: {self.settings.get(name)!r} and {other.settings.get(name)!r}" for name in different
            )
            raise ProvenanceError(
                f"the atlases were measured differently ({details or 'other slots, folds or counts'}). "
                "Detect both with the same settings."
            )
        statistics = dict(self.statistics)
        corpora = {language: list(records) for language, records in self.corpora.items()}
        for language, theirs in other.statistics.items():
            records = other.corpora.get(language, [])
            if language in statistics:
                _refuse_twice(language, corpora.get(language, []), records)
                statistics[language] = statistics[language].merge(theirs)
                corpora[language] = [*corpora.get(language, []), *records]
            else:
                statistics[language] = theirs
                corpora[language] = list(records)
        return Atlas(statistics, self.model, self.settings, corpora)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file (a folder gets `atlas.safetensors`)."""
        tensors: dict[str, Tensor] = {}
        for language, statistics in self.statistics.items():
            tensors |= statistics.tensors(language)
        write_tensors(_file(path), KIND, tensors, self.header())

    def header(self) -> dict[str, Any]:
        """Everything but the numbers."""
        return {
            "languages": list(self.languages),
            "model": self.model,
            "settings": self.settings,
            "corpora": self.corpora,
            "layout": layout_to_json(self.layout),
            "version": babelscope.__version__,
        }

    @classmethod
    def load(cls, path: str | Path) -> Atlas:
        """Reads an atlas: its file, or the run folder that holds it. DataError when it is missing or damaged."""
        file = _file(path)
        _refuse_unfinished(file)
        tensors, header = read_tensors(file, KIND)
        try:
            layout = layout_from_json(header["layout"])
            names = list(header["languages"])
            model, settings, corpora = header["model"], header["settings"], header["corpora"]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{file}: the atlas's header is damaged ({error!r}). Detect again.") from None
        broken = sorted(name for name, each in tensors.items() if each.is_floating_point() and bool(each.isnan().any()))
        if broken:
            raise DataError(f"{file}: {broken[0]} holds NaN, which no detection writes. Detect again.")
        statistics = {name: Statistics.from_tensors(layout, tensors, name, file) for name in names}
        return cls(statistics, model, settings, corpora)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / FILE if path.is_dir() else path


def _refuse_unfinished(path: Path) -> None:
    if not path.exists() and (path.parent / "run.json").exists() and path.name == FILE:
        raise DataError(f"{path.parent} is a run that has not finished. Repeat its detect command to finish it.")


def _refuse_twice(language: str, mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """ProvenanceError when two records are of one corpus and not of different shards of one sample of it."""
    for one, other in itertools.product(mine, theirs):
        if one.get("identity") == "unknown" or one.get("identity") != other.get("identity"):
            continue
        same_sample = all(one.get(name) == other.get(name) for name in ("seed", "asked"))
        (first, parts), (second, others) = one.get("shard", (0, 1)), other.get("shard", (0, 1))
        if not same_sample or (first - second) % math.gcd(parts, others) == 0:
            raise ProvenanceError(
                f"{language}: both atlases counted the same documents, or some of them, of {one.get('name')} "
                f"({_sample(one)}; {_sample(other)}). Merge shards of one sample, detected with --shard 0/2 and "
                "--shard 1/2, or atlases of other files."
            )


def _sample(record: Mapping[str, Any]) -> str:
    first, parts = record.get("shard", (0, 1))
    asked = record.get("asked")
    return f"{'all' if asked is None else asked} documents, seed {record.get('seed')}, shard {first}/{parts}"
