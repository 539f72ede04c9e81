"""Babelscope: find, test and train the parts of a language model that carry a language."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Anatomy": "babelscope.models.anatomy",
    "Atlas": "babelscope.detection.atlas",
    "NeuronAdapterConfig": "babelscope.tuning.peft_method",
    "NeuronSet": "babelscope.neurons.neuronset",
    "VocabularyProfile": "babelscope.lens.vocabulary",
    "Stages": "babelscope.editing.stages",
    "TunedLens": "babelscope.lens.tuned",
    "ablate": "babelscope.editing.edits",
    "damage_matrix": "babelscope.evaluation.likelihood",
    "detect": "babelscope.detection.detect",
    "evaluate": "babelscope.evaluation.evaluate",
    "export": "babelscope.editing.export",
    "find_stages": "babelscope.evaluation.stages",
    "language_lens": "babelscope.lens.measure",
    "latent_language": "babelscope.lens.words",
    "load_model": "babelscope.models.load",
    "neuron_impacts": "babelscope.models.scoring",
    "tune": "babelscope.tuning.train",
}
"""Each public name and the module that holds it. Modules load when a name is first used: torch takes seconds."""

__all__ = ["__version__", *_PUBLIC]

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas as Atlas
    from babelscope.detection.detect import detect as detect
    from babelscope.editing.edits import ablate as ablate
    from babelscope.editing.export import export as export
    from babelscope.editing.stages import Stages as Stages
    from babelscope.evaluation.evaluate import evaluate as evaluate
    from babelscope.evaluation.likelihood import damage_matrix as damage_matrix
    from babelscope.evaluation.stages import find_stages as find_stages
    from babelscope.lens.measure import language_lens as language_lens
    from babelscope.lens.tuned import TunedLens as TunedLens
    from babelscope.lens.vocabulary import VocabularyProfile as VocabularyProfile
    from babelscope.lens.words import latent_language as latent_language
    from babelscope.models.anatomy import Anatomy as Anatomy
    from babelscope.models.load import load_model as load_model
    from babelscope.models.scoring import neuron_impacts as neuron_impacts
    from babelscope.neurons.neuronset import NeuronSet as NeuronSet
    from babelscope.tuning.peft_method import NeuronAdapterConfig as NeuronAdapterConfig
    from babelscope.tuning.train import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'babelscope' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
