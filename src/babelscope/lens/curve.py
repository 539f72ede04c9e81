"""What a lens saw: language mass by layer, with intervals over prompts; and where one language gives way to another.

Axes: `P` prompts, `L` decoder layers, `K` languages, `R` resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from babelscope.artifacts import read_tensors, write_tensors
from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.languages import get_language

KIND = "language curve"
UNKNOWN = "shared or not language"
ANY = "any"
"""The prompt language of prompts that came without one."""
MARGIN = 0.05
"""Mass by which a pivot must be ahead: with prompts enough, a lead of 0.01 (words shared by two languages) is sure."""
_LEVEL = 0.95
"""Of intervals; and the share of resamples in which a pivot must be seen."""


@dataclass(frozen=True)
class TokenGrid:
    """The likeliest tokens of one prompt: rows layers (0 = embeddings), columns positions."""

    prompt_language: str
    tokens: list[str]
    """[T] the prompt's tokens, as text."""
    top: list[list[list[str]]]
    """[L + 1, T, k] the likeliest tokens, best first."""
    probability: list[list[list[float]]]
    """[L + 1, T, k]"""
    language: list[list[str]]
    """[L + 1, T] the language of the likeliest token, empty if none is more likely than not."""

    def records(self, title: str = "") -> list[dict[str, Any]]:
        """Records of the figure `tokens`, the likeliest token of each layer and position; `title` names the prompt."""
        return [
            {
                "prompt": title,
                "layer": layer,
                "position": position,
                "token": choices[0],
                "probability": self.probability[layer][position][0],
                "language": get_language(code).name if (code := self.language[layer][position]) else UNKNOWN,
                "language_code": code,
            }
            for layer, row in enumerate(self.top)
            for position, choices in enumerate(row)
        ]


@dataclass(frozen=True)
class StageSuggestion:
    """Where a prompt's language gives way to another, and where it returns.

    Layer numbers are blocks, from 0: understand `[0, start)`, solve `[start, stop)`, generate `[stop, L)`.
    """

    prompt_language: str
    pivot: str | None
    """The language that leads in between; None: there is no pivot, and no stages are suggested."""
    start: int | None = None
    stop: int | None = None
    start_interval: tuple[int, int] | None = None
    """95 % interval over resampled prompts."""
    stop_interval: tuple[int, int] | None = None
    support: float = 0.0
    """Share of resamples in which the best candidate leads and the prompt's language returns."""
    mass: float = 0.0
    """The best candidate's largest mass where it leads."""
    candidate: str | None = None
    """The language that came nearest to being a pivot."""

    def __str__(self) -> str:
        if self.pivot is None:
            near = f" (nearest: {self.candidate}, in {self.support:.0%} of resamples)" if self.candidate else ""
            return f"{self.prompt_language}: no pivot{near}"
        return (
            f"{self.prompt_language}: {self.pivot} leads in blocks {self.start}..{(self.stop or 0) - 1} "
            f"(start {_span(self.start_interval)}, stop {_span(self.stop_interval)}; in {self.support:.0%} of "
            f"resamples, up to {self.mass:.2f} of the mass)"
        )


def _span(interval: tuple[int, int] | None) -> str:
    return "?" if interval is None else f"{interval[0]} to {interval[1]}"


@dataclass(frozen=True, eq=False)
class LanguageCurve:
    """Language mass of every prompt and layer, as `language_lens` measured it."""

    languages: tuple[str, ...]
    prompt_languages: tuple[str, ...]
    """[P] the language of each prompt; `any` if it came without."""
    masses: Tensor
    """[P, L + 1, K + 1] float32, mean over the prompt's positions; index 0 = embeddings, last column unknown."""
    entropy: Tensor
    """[P, L + 1] float32, bits, mean over positions."""
    agreement: Tensor
    """[P, L + 1] float32, share of positions whose likeliest token is that of the last layer."""
    control: Tensor | None = None
    """[P, L + 1, K + 1] float32: the same with the languages shuffled among the tokens; None with an identifier."""
    grids: tuple[TokenGrid, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    """Model, profile, settings."""

    @property
    def n_layers(self) -> int:
        """Decoder layers: one less than there are rows."""
        return self.masses.shape[1] - 1

    @property
    def tuned(self) -> Mapping[str, Any]:
        """What the tuned lens says about itself through which the layers were read (`TunedLens.about`); empty: none."""
        return dict(dict(self.about.get("settings") or {}).get("tuned") or {})

    @property
    def mass(self) -> Tensor:
        """[L + 1, K + 1] float32, mean over all prompts, each of the same weight."""
        return self.masses.mean(0)

    def of(self, prompt_language: str) -> Tensor:
        """[L + 1, K + 1] float32, mean over the prompts of one language."""
        return self.masses[self._prompts(prompt_language)].mean(0)

    def interval(
        self, prompt_language: str | None = None, *, resamples: int = 1000, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """95 % bootstrap interval of the mass over prompts: low and high, each [L + 1, K + 1] float32."""
        return bootstrap_interval(self.masses[self._prompts(prompt_language)], resamples, seed)

    def rows(self, *, resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
        """The tidy table: layer, prompt language, decoded language, mass, low, high."""
        table = []
        for code in dict.fromkeys(self.prompt_languages):
            numbers = torch.stack([self.of(code), *self.interval(code, resamples=resamples, seed=seed)], -1).tolist()
            for layer, by_language in enumerate(numbers):
                for decoded, (mass, low, high) in zip((*self.languages, UNKNOWN), by_language, strict=True):
                    where = {"layer": layer, "prompt_language": code, "decoded_language": decoded}
                    table.append({**where, "mass": mass, "low": low, "high": high})
        return table

    def to_frame(self, *, resamples: int = 1000, seed: int = 0) -> Any:
        """`rows` as a pandas data frame; MissingDependencyError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise MissingDependencyError('to_frame needs pandas: pip install "babelscope[report]"') from error
        return pandas.DataFrame(self.rows(resamples=resamples, seed=seed))

    def plot(self, kind: Literal["area", "heat"] = "area") -> Any:
        """Draws the mass by layer as an altair chart, a panel per prompt language.

        Args:
            kind: `area`, stacked to 1, what is no language as the grey on top; or `heat`, a row per decoded language,
                its mass the strength of its colour.

        Raises:
            ConfigError: another kind.
            MissingDependencyError: altair isn't installed.
        """
        if kind not in ("area", "heat"):
            raise ConfigError(f"wanted a kind of chart among area, heat, found {kind!r}. Correct the name.")
        from babelscope.report.lens_charts import heat, layers

        return (layers if kind == "area" else heat)(self.mass_records())

    def plot_tokens(self, prompt: int = 0) -> Any:
        """Draws the likeliest token of each layer and position of a kept prompt, coloured by its language.

        Columns run from right to left for a prompt whose script does.

        Args:
            prompt: number of the kept prompt in `grids`.

        Raises:
            DataError: no such prompt was kept.
            MissingDependencyError: altair isn't installed.
        """
        if not 0 <= prompt < len(self.grids):
            raise DataError(f"{len(self.grids)} prompts were kept for display, not number {prompt}. Raise grids=.")
        from babelscope.report.lens_charts import tokens

        return tokens(self.grids[prompt].records())

    def mass_records(self) -> list[dict[str, Any]]:
        """The rows of `rows` as records of the figures `layers` and `heat`; probabilities to five digits."""
        return [
            {
                "model": "",
                "language": row["prompt_language"],
                "layer": row["layer"],
                "spoken": row["decoded_language"],
                **{name: round(row[name], 5) for name in ("mass", "low", "high")},
            }
            for row in self.rows()
        ]

    def stages(
        self, *, pivot: str | None = None, margin: float = MARGIN, resamples: int = 1000, seed: int = 0
    ) -> list[StageSuggestion]:
        """For each prompt language, where it gives way to another language and where it returns.

        A pivot is a language that is ahead of the prompt's language, and of itself with languages shuffled among
        tokens, by more than `margin` in some layers, while the prompt's language is ahead in the last layer; all that
        in 95 % of resamples of the prompts. The stretch of layers with the largest lead counts.

        Args:
            pivot: look for this language only; None: the one with the largest lead.
            margin: mass by which it must be ahead.
            resamples: of the bootstrap.
            seed: of the bootstrap.

        Raises:
            ConfigError: `pivot` is none of the languages.
        """
        if pivot is not None and pivot not in self.languages:
            raise ConfigError(f"wanted a pivot among {', '.join(self.languages)}, found {pivot!r}. Correct the code.")
        known = [code for code in dict.fromkeys(self.prompt_languages) if code in self.languages]
        return [self._stages_of(code, pivot, margin, resamples, seed) for code in known]

    def _stages_of(self, own: str, pivot: str | None, margin: float, resamples: int, seed: int) -> StageSuggestion:
        chosen = self._prompts(own)
        masses = self.masses[chosen]
        control = torch.zeros_like(masses) if self.control is None else self.control[chosen]
        # The first "resample" is the prompts as they are.
        mass_RLC, control_RLC = (
            np.concatenate([each.double().mean(0, keepdim=True).numpy(), bootstrap_means(each, resamples, seed)])
            for each in (masses, control)
        )
        home = self.languages.index(own)
        best: tuple[float, str] | None = None
        for code in (pivot,) if pivot else self.languages:
            if code != own:
                found = _stretch(mass_RLC[0], control_RLC[0], home, self.languages.index(code), margin)
                if found is not None and (best is None or found[2] > best[0]):
                    best = found[2], code
        if best is None:
            return StageSuggestion(own, None)
        place = self.languages.index(best[1])
        stretches = [
            _stretch(mass, shuffled, home, place, margin) for mass, shuffled in zip(mass_RLC, control_RLC, strict=True)
        ]
        whole, seen = stretches[0], [each for each in stretches[1:] if each is not None]
        assert whole is not None
        support = len(seen) / max(1, resamples)
        start, stop, _ = whole
        top = float(mass_RLC[0, start:stop, place].max())
        if support < _LEVEL:
            return StageSuggestion(own, None, support=support, mass=top, candidate=best[1])
        # Row i of the masses is the output of block i - 1; the embeddings belong to no block.
        starts = _quantiles([max(0, first - 1) for first, _, _ in seen])
        stops = _quantiles([last - 1 for _, last, _ in seen])
        return StageSuggestion(own, best[1], max(0, start - 1), stop - 1, starts, stops, support, top, best[1])

    def _prompts(self, prompt_language: str | None) -> list[int]:
        if prompt_language is None:
            return list(range(len(self.prompt_languages)))
        code = prompt_language if prompt_language == ANY else get_language(prompt_language).code
        chosen = [place for place, each in enumerate(self.prompt_languages) if each == code]
        if not chosen:
            raise ConfigError(
                f"no prompt of language {code!r}; there are {', '.join(dict.fromkeys(self.prompt_languages))}."
            )
        return chosen

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file."""
        tensors = {"masses": self.masses, "entropy": self.entropy, "agreement": self.agreement}
        if self.control is not None:
            tensors["control"] = self.control
        header = {
            "languages": self.languages,
            "prompt_languages": self.prompt_languages,
            "grids": [vars(grid) for grid in self.grids],
            "about": self.about,
        }
        write_tensors(Path(path), KIND, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> LanguageCurve:
        """Reads what `save` wrote; DataError as in `babelscope.artifacts.read_header`."""
        tensors, header = read_tensors(Path(path), KIND)
        return cls(
            tuple(header["languages"]),
            tuple(header["prompt_languages"]),
            tensors["masses"],
            tensors["entropy"],
            tensors["agreement"],
            tensors.get("control"),
            tuple(TokenGrid(**grid) for grid in header["grids"]),
            header["about"],
        )


def bootstrap_means(values: Tensor, resamples: int, seed: int) -> NDArray[np.float64]:
    """[R, ...], means of values [P, ...] over the prompts of each resample; the same resamples for the same seed."""
    count = len(values)
    share_RP = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=resamples) / count
    flat = share_RP @ values.double().numpy().reshape(count, -1)
    return np.asarray(flat, dtype=np.float64).reshape(-1, *values.shape[1:])


def bootstrap_interval(values: Tensor, resamples: int, seed: int) -> tuple[Tensor, Tensor]:
    """95 % interval of the mean over prompts of values [P, ...]: low and high, each [...] float32."""
    low, high = np.quantile(bootstrap_means(values, resamples, seed), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return torch.as_tensor(low).float(), torch.as_tensor(high).float()


def _stretch(
    mass_LC: NDArray[np.float64], control_LC: NDArray[np.float64], home: int, other: int, margin: float
) -> tuple[int, int, float] | None:
    """The rows [start, stop) where a language is furthest ahead, and by how much in sum.

    Ahead of the prompt's language and of its own shuffled control, whichever is less, by more than the margin. None if
    it is ahead nowhere behind the embeddings, or if the prompt's language doesn't return in the last row.
    """
    mass = mass_LC[:, other]
    lead = np.minimum(mass - mass_LC[:, home], mass - control_LC[:, other])
    if mass[-1] >= mass_LC[-1, home]:
        return None
    edges = np.flatnonzero(np.diff(np.concatenate([[False], lead > margin, [False]])))
    runs = [(int(a), int(b), float(lead[a:b].sum())) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    runs = [run for run in runs if run[1] > 1]  # the embeddings alone are no layer that could think in a language
    return max(runs, key=lambda run: run[2]) if runs else None


def _quantiles(values: list[int]) -> tuple[int, int]:
    low, high = np.quantile(values, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], method="nearest")
    return int(low), int(high)
