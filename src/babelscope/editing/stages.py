"""The paper's schedule: which layers understand, solve and generate, and the part of a set that lies there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from babelscope.errors import ConfigError
from babelscope.neurons.neuronset import NeuronSet

STAGES = ("understand", "solve", "generate")
"""In the order of the layers."""
STRUCTURES: dict[str, tuple[str, ...]] = {"attention": ("q", "k", "v", "o"), "ffn": ("ffn",)}
"""Each structure and its slots."""


@dataclass(frozen=True)
class Stages:
    """A split of a model's layers: the first ones understand, the last ones generate, those between solve the task.

    The paper has 8 and 2 for Vicuna-7b, 6 and 3 for Mistral-7b; `find_stages` searches for another model's.

        stages = Stages(understand=8, generate=2)
        fr - stages.of(fr, "solve", "attention")       everything but task-solving attention

    Source: paper, section 3 (the three stages of the workflow).
    """

    understand: int = 8
    """Layers of the first stage."""
    generate: int = 2
    """Layers of the last."""

    def __post_init__(self) -> None:
        for name in ("understand", "generate"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise ConfigError(f"wanted {name} as a number of layers, 0 or more, found {count!r}. Correct it.")

    @classmethod
    def usual(cls, n_layers: int) -> Stages:
        """The paper's proportions for Vicuna (8 and 2 of 32 layers), for a model of any depth."""
        return cls(round(n_layers / 4), max(1, round(n_layers / 16)))

    def layers(self, n_layers: int) -> dict[str, range]:
        """The layers of each stage of a model; ConfigError when the stages overlap or exceed its layers."""
        for name in ("understand", "generate"):
            if getattr(self, name) > n_layers:
                raise ConfigError(
                    f"the stage {name} has {getattr(self, name)} layers, the model only {n_layers}. Lower it."
                )
        if self.understand + self.generate > n_layers:
            raise ConfigError(
                f"the stages understand ({self.understand} layers) and generate ({self.generate}) overlap: the model "
                f"has {n_layers} layers. Lower one of them."
            )
        last = n_layers - self.generate
        return {
            "understand": range(self.understand),
            "solve": range(self.understand, last),
            "generate": range(last, n_layers),
        }

    def of(
        self,
        neurons: NeuronSet,
        stages: str | Iterable[str] | None = None,
        structures: str | Iterable[str] | None = None,
    ) -> NeuronSet:
        """The part of a set that lies in these stages and structures.

        Args:
            neurons: the set.
            stages: of `understand`, `solve`, `generate`, one or several; None: all.
            structures: of `attention` (slots q, k, v, o) and `ffn`, one or several; None: both.

        Raises:
            ConfigError: an unknown name; stages that are asked for and don't fit the model's layers.
        """
        layers: list[int] | None = None
        if stages is not None:
            ranges = self.layers(neurons.n_layers)
            layers = [layer for name in _named("stage", stages, ranges) for layer in ranges[name]]
        chosen = STRUCTURES if structures is None else _named("structure", structures, STRUCTURES)
        return neurons.at(layers=layers, slots=[slot for name in chosen for slot in STRUCTURES[name]])


def _named(what: str, names: str | Iterable[str], known: Iterable[str]) -> list[str]:
    known = list(known)
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise ConfigError(f"wanted a {what} among {', '.join(known)}, found {unknown or 'none'}. Correct the name.")
    return wanted
