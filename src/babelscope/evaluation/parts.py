"""The parts of a language's set that the grid switches off: stages, structures, their complements, and variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import and_

from babelscope.editing.stages import STAGES, Stages
from babelscope.errors import ConfigError
from babelscope.neurons.neuronset import NeuronSet

Part = Callable[[NeuronSet], NeuronSet]
"""What of a language's set is switched off: `lambda neurons: Stages(8, 2).of(neurons, "solve", "ffn")`."""

PARTS = (
    "all", "understand", "solve", "generate", "attention", "ffn", "solve-attention", "solve-ffn",
    "understand-generate", "all-but-understand", "all-but-generate", "all-but-solve-attention",
    "all-minus-english", "all-minus-shared",
)  # fmt: skip
"""The complement of `solve` is `understand-generate`; those of `attention` and `ffn` are each other."""
EQUAL = ("understand-equal", "solve-equal", "generate-equal")
"""The strongest units of each stage, as many as the smallest of the three has: where two stages are to be compared."""
CLAIMED = ("all", "understand", "generate", "solve-attention", "solve-ffn", "all-but-solve-attention")
"""Those that the paper's claims are about."""


def standard_parts(
    stages: Stages, sets: Mapping[str, NeuronSet], english: str = "en", names: Sequence[str] = PARTS
) -> dict[str, Part]:
    """Parts by name.

    Args:
        stages: the split of the layers.
        sets: of all languages; `all-minus-english` needs English's and `all-minus-shared` at least two, and they are
            left out without.
        english: its code.
        names: of `PARTS` and `EQUAL`; the latter need sets with scores.

    Raises:
        ConfigError: an unknown name.
    """
    known = (*PARTS, *EQUAL)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"wanted parts among {', '.join(known)}, found {', '.join(unknown)}. Correct the name.")
    parts: dict[str, Part] = {
        "all": lambda neurons: neurons,
        "attention": lambda neurons: stages.of(neurons, None, "attention"),
        "ffn": lambda neurons: stages.of(neurons, None, "ffn"),
        "understand-generate": lambda neurons: stages.of(neurons, ("understand", "generate")),
        "all-but-understand": lambda neurons: stages.of(neurons, ("solve", "generate")),
        "all-but-generate": lambda neurons: stages.of(neurons, ("understand", "solve")),
        "all-but-solve-attention": lambda neurons: neurons - stages.of(neurons, "solve", "attention"),
    }
    for stage in STAGES:
        parts[stage] = lambda neurons, stage=stage: stages.of(neurons, stage)  # type: ignore[misc]
        parts[f"{stage}-equal"] = lambda neurons, stage=stage: stages.of(neurons, stage).top(  # type: ignore[misc]
            min(len(stages.of(neurons, each)) for each in STAGES)
        )
    for structure in ("attention", "ffn"):
        parts[f"solve-{structure}"] = lambda neurons, s=structure: stages.of(neurons, "solve", s)  # type: ignore[misc]
    if english in sets:
        parts["all-minus-english"] = lambda neurons: neurons - sets[english]
    if len(sets) > 1:
        shared = reduce(and_, sets.values())
        parts["all-minus-shared"] = lambda neurons: neurons - shared
    return {name: parts[name] for name in known if name in names and name in parts}
