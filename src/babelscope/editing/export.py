"""An edit baked into a checkpoint that any engine can serve, read back and compared before it gets its name."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import babelscope
from babelscope.editing.edits import Edits, ablate, has_open_edits
from babelscope.editing.operations import ON_WEIGHTS, Operation, RecordedActivations
from babelscope.editing.weights import multiply, places
from babelscope.errors import ConfigError, RunFolderError, UnsupportedModelError
from babelscope.models.anatomy import Anatomy
from babelscope.models.interfaces import evaluation_mode
from babelscope.models.linear import dense_weight
from babelscope.models.load import ModelIdentity, fingerprint
from babelscope.models.slots import resolve_slots
from babelscope.neurons.neuronset import NeuronSet

if TYPE_CHECKING:
    from babelscope.detection.atlas import Atlas
    from babelscope.neurons.statistics import Statistics

NEURONS = "babelscope/neurons.safetensors"
"""The set, beside the weights but in a folder of its own: some engines load every safetensors file at the top."""

_TOKENS = (2, 16)
"""Rows and tokens that the self-check runs."""

_ROUNDING = 64
"""Logits may differ by so many times the dtype's epsilon of the largest: what a sum in another order does."""

_OF_THE_EDIT = 0.05
"""A constant put in by a bias is rounded once more than one put in by a hook; in half precision that may move logits
by this share of what the edit itself moves them. A bias in the wrong place moves them by as much as the edit."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote."""

    folder: Path
    operation: str
    neurons: int
    difference: float
    """Largest difference of a logit between the checkpoint, read back, and the edited model."""
    change: float
    """Largest difference of a logit between the edited model and the intact one, on the same tokens."""
    fingerprint: str
    """Of the checkpoint; neuron files of the intact model don't fit it."""
    switched: tuple[str, ...] = ()
    """Settings of the configuration that were turned on so that the architecture carries biases."""


def export(
    model: nn.Module | Anatomy,
    tokenizer: Any,
    neurons: NeuronSet,
    out: str | Path,
    *,
    op: str = "zero",
    factor: float | None = None,
    value: float | None = None,
    reference: Atlas | Statistics | RecordedActivations | None = None,
    max_shard_size: str = "5GB",
    force: bool = False,
) -> Exported:
    """Writes an edited model as a normal Hugging Face checkpoint.

    Weights in their dtype, configuration, generation configuration, tokenizer, a model card that states the edit, and
    the neurons. `zero` and `scale` change weights and nothing else. The others put a constant in a unit's place: for q,
    k and v in the bias of the projection, for o and ffn in the bias of W_O or W_down, as the unit's column times the
    constant. An architecture without that bias but with a setting for it (`attention_bias`, `mlp_bias`) has it turned
    on, with zeros for all the others.

    The checkpoint is then read back by transformers. Its weights must be those of the edited model bit for bit, its
    logits equal to 64 times the epsilon of the dtype (a constant: and 5 % of what the edit changes). Only then does it
    get its name. The model itself comes back bit for bit as it was. The check holds a second copy in memory.

    Args:
        model: a causal language model of transformers, or its `Anatomy`.
        tokenizer: of the model; saved along.
        neurons: the set.
        out: a folder that is new or empty.
        op: as in `ablate`: `zero`, `scale`, `clamp`, `mean` or `median`.
        factor: for `scale`.
        value: for `clamp`.
        reference: for `mean` and `median`.
        max_shard_size: of a weight file, as in `save_pretrained`.
        force: allow a set, or a reference, of another model with the same shapes.

    Raises:
        RunFolderError: `out` is a file or a folder with something in it.
        ConfigError: `resample`, whose values no weight can hold; and as in `ablate`.
        ProvenanceError: as in `ablate`.
        UnsupportedModelError: an open edit; quantised or offloaded weights, or an adapter; a weight that is tied to
            another; a constant where the architecture has no bias; a checkpoint that is not the edited model.
    """
    folder = Path(out).expanduser()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunFolderError(f"{folder} is there already and not an empty folder. Give a new one with --out.")
    if op == "resample":
        raise ConfigError(
            "op='resample' takes other values at each token, which no weight can hold. Export op='median' or 'mean'."
        )
    slots = resolve_slots(neurons.widths) if isinstance(neurons, NeuronSet) else None
    anatomy = model if isinstance(model, Anatomy) else Anatomy(model, slots, check=False)
    whole: Any = anatomy.model
    _refuse_unsavable(whole)
    intact = _logits(whole)
    identity = ModelIdentity.of(whole)
    with ExitStack() as stack:
        with ExitStack() as edited:
            edits = edited.enter_context(
                ablate(anatomy, neurons, op=op, factor=factor, value=value, reference=reference, force=force)
            )
            _refuse_unwritable(anatomy, edits)
            wanted = _logits(whole)
            constants = edits.operation.name not in ON_WEIGHTS
            if not constants:  # the weights are as they are to be saved, until the outer stack closes
                stack.enter_context(edited.pop_all())
        switched = _put_constants(anatomy, edits, stack) if constants else ()
        temporary = stack.enter_context(_becoming(folder))
        whole.save_pretrained(temporary, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(temporary)
        neurons.save(temporary / NEURONS)
        copied = _read_back(whole, temporary)
        found = _logits(copied)
        change, difference = _largest(wanted - intact), _largest(found - wanted)
        allowed = _ROUNDING * torch.finfo(whole.dtype).eps * _largest(wanted) + constants * _OF_THE_EDIT * change
        if not difference <= allowed:
            raise UnsupportedModelError(
                f"the exported checkpoint is not the edited model: logits differ by {difference:.3g}, wanted at most "
                f"{allowed:.3g}. Nothing was written. {_why(whole, copied)}"
            )
        exported = Exported(folder, str(edits.operation), len(edits), difference, change, fingerprint(whole), switched)
        card = _card(exported, identity, neurons, reference)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return exported


def _refuse_unsavable(model: nn.Module) -> None:
    if not hasattr(model, "save_pretrained") or any(hasattr(module, "base_layer") for module in model.modules()):
        raise UnsupportedModelError(
            f"{type(model).__name__} is under an adapter or no model of transformers, so it can't be saved as a "
            "checkpoint of its own. Merge the adapter first (merge_and_unload), or load the model with load_model."
        )
    if has_open_edits(model):
        raise UnsupportedModelError(
            "the model has an open edit, which would be exported along. Leave its ablate context first; to export "
            "both, export the union of the two sets."
        )


def _refuse_unwritable(anatomy: Anatomy, edits: Edits) -> None:
    """UnsupportedModelError unless every unit's weights can be written, and belong to that unit alone."""
    zero = Operation("zero")
    names: dict[int, list[str]] = {}
    for name, parameter in anatomy.model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for (slot, layer), (units, _) in edits.units.items():
        found = places(anatomy, slot, layer, units, zero)
        if isinstance(found, str):
            raise UnsupportedModelError(
                f"slot {slot}, layer {layer}: {found}, so the edit can't be written into them. Load the model on one "
                "device without quantization and offloading, and merge adapters."
            )
        tied = next((names[id(weight)] for weight, _ in found if len(names[id(weight)]) > 1), None)
        if tied:
            raise UnsupportedModelError(
                f"slot {slot}, layer {layer}: {' and '.join(tied)} are one weight, so the edit would act in all of "
                f"these places. Leave slot {slot} of this layer out with neurons.at(...)."
            )


# Constants as biases


def _put_constants(anatomy: Anatomy, edits: Edits, stack: ExitStack) -> tuple[str, ...]:
    """Writes an edit's constants into biases until the stack closes; returns the settings turned on."""
    homes = {place: _home(anatomy, *place) for place in edits.units}
    names = {id(module): name for name, module in anatomy.model.named_modules()}
    lacking = [f"{names[id(home)]}.bias" for home in homes.values() if getattr(home, "bias", None) is None]
    switched = _switch_biases_on(anatomy, list(dict.fromkeys(lacking)), edits.operation, stack)
    for (slot, layer), (units, _) in edits.units.items():
        home, target = homes[slot, layer], edits.operation.target(slot, layer, units)
        bias: Any = home.bias
        before = bias.data.clone()
        stack.callback(bias.data.copy_, before)
        here = units.to(bias.device)
        column = None if slot in "qkv" else dense_weight(home)[:, here].double()
        found = places(anatomy, slot, layer, units, Operation("zero"))
        assert isinstance(found, list)
        multiply(found, 0.0, stack)
        target = target.to(bias.device)
        if column is not None:
            bias.data.copy_(before.double() + column @ target)
        else:
            part = anatomy.layers[layer].attention
            channels = {"q": part.query, "k": part.key, "v": part.value}[slot].channels(units)
            bias.data[channels.to(bias.device)] = target.to(bias.dtype)
    return switched


def _home(anatomy: Anatomy, slot: str, layer: int) -> nn.Module:
    """The module whose bias can hold a constant of the slot."""
    attention, ffn = anatomy.layers[layer].attention, anatomy.layers[layer].ffn
    if slot == "ffn":
        if ffn.down is None:
            raise UnsupportedModelError(
                f"slot ffn, layer {layer}: experts have no bias, so a constant can't be written into the checkpoint. "
                "Leave ffn out with neurons.at(slots=...), or export op='zero'."
            )
        return ffn.down
    modules = {"q": attention.query.module, "k": attention.key.module, "v": attention.value.module}
    return modules.get(slot, attention.output)


def _switch_biases_on(anatomy: Anatomy, lacking: list[str], operation: Operation, stack: ExitStack) -> tuple[str, ...]:
    """Turns settings on that give these parameters, all new ones being biases of zero, until the stack closes."""
    if not lacking:
        return ()
    config: Any = anatomy.config
    text = config.get_text_config()
    offered = [name for name in text.to_dict() if name.endswith("bias") and getattr(text, name, None) is False]
    gained: dict[str, set[str]] = {}
    for name in offered:
        gained[name] = _gain(anatomy.model, name)
    chosen = tuple(name for name in offered if gained[name] & set(lacking))
    missing = [name for name in lacking if not any(name in gained[each] for each in chosen)]
    if missing:
        raise UnsupportedModelError(
            f"op={operation.name!r} needs {missing[0]}, but {type(anatomy.model).__name__} has no such bias, and its "
            f"configuration no setting that gives it (found {', '.join(offered) or 'none for biases'}). Leave "
            "those slots out with neurons.at(slots=...), or export op='zero' or 'scale'."
        )
    for setting in chosen:
        setattr(text, setting, True)
        stack.callback(setattr, text, setting, False)
    for name in sorted(set().union(*(gained[each] for each in chosen))):
        module: Any = anatomy.model.get_submodule(name.rpartition(".")[0])
        weight = module.weight
        zeros = torch.zeros(module.out_features, dtype=weight.dtype, device=weight.device)
        module.bias = nn.Parameter(zeros, requires_grad=False)
        stack.callback(setattr, module, "bias", None)
    return chosen


def _gain(model: nn.Module, setting: str) -> set[str]:
    """The biases of linear modules that a model has more with a setting turned on; none if it changes anything else."""
    config: Any = copy.deepcopy(model.config)
    setattr(config.get_text_config(), setting, True)
    with torch.device("meta"):
        other = type(model)(config)
    before = {name: parameter.shape for name, parameter in model.named_parameters()}
    after = {name: parameter.shape for name, parameter in other.named_parameters()}
    new = after.keys() - before.keys()
    if any(after.get(name) != shape for name, shape in before.items()):
        return set()
    owners = {name: other.get_submodule(name.rpartition(".")[0]) for name in new}
    linear = all(name.endswith(".bias") and isinstance(owner, nn.Linear) for name, owner in owners.items())
    return set(new) if linear else set()


# The checkpoint


@contextmanager
def _becoming(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when the block ends well, and vanishes otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        written = temporary / "model"
        written.mkdir()
        yield written
        written.replace(folder)
    finally:
        shutil.rmtree(temporary)


def _read_back(model: Any, folder: Path) -> Any:
    """The checkpoint, read by transformers; UnsupportedModelError unless its weights are the model's, bit for bit."""
    placed = getattr(model, "hf_device_map", None)
    copied = type(model).from_pretrained(folder, dtype="auto", device_map=placed)
    if placed is None:
        copied.to(model.device)
    for mine, theirs in (
        (model.config, copied.config),
        (model.config.get_text_config(), copied.config.get_text_config()),
    ):
        for name in ("_attn_implementation_internal", "_experts_implementation_internal"):
            if hasattr(mine, name):
                setattr(theirs, name, getattr(mine, name))
    found = dict(copied.named_parameters())
    for name, parameter in model.named_parameters():
        if name not in found or found[name].dtype != parameter.dtype or not torch.equal(found[name], parameter):
            raise UnsupportedModelError(
                f"the exported checkpoint does not give back {name} as it was saved. Nothing was written. Please "
                "report it with the model's name and the version of transformers."
            )
    return copied


def _why(model: nn.Module, copied: nn.Module) -> str:
    """What to do about logits that differ though the weights are the same."""
    theirs = dict(copied.named_buffers())
    moved = [
        name
        for name, buffer in model.named_buffers()
        if name in theirs and not torch.equal(buffer.double(), theirs[name].to(buffer.device).double())
    ]
    if not moved:
        return "Please report it with the model's name; op='zero' may still work."
    return (
        f"Buffers that no checkpoint holds differ ({', '.join(moved)}): the model was cast after it was loaded. Load "
        "it with load_model(..., dtype=...) instead."
    )


def _logits(model: Any) -> Tensor:
    """float64 [2, 16, V] on random tokens, on the CPU."""
    embeddings = model.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, embeddings.shape[0], _TOKENS, generator=generator)
    with ExitStack() as stack:
        evaluation_mode(model, stack)
        stack.enter_context(torch.no_grad())
        return model(input_ids=ids.to(embeddings.device), use_cache=False).logits.cpu().double()  # type: ignore[no-any-return]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _in_words(settings: Any) -> str:
    if isinstance(settings, dict):
        return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    return json.dumps(settings, ensure_ascii=False) if settings else ""


def _reference(reference: Any) -> str:
    if isinstance(reference, RecordedActivations):
        return f"{reference.tokens} recorded tokens"
    return ", ".join(getattr(reference, "languages", ()))


def _card(exported: Exported, base: ModelIdentity, neurons: NeuronSet, reference: Any) -> str:
    """README.md of the checkpoint."""
    local = Path(base.name).is_absolute() or Path(base.name).exists()
    name = Path(base.name).name if local else base.name
    counts = neurons.counts()
    rows = [
        f"| {slot} | {sum(layers)} | {', '.join(f'{layer}: {count}' for layer, count in enumerate(layers) if count)} |"
        for slot, layers in counts.items()
        if sum(layers)
    ]
    known = neurons.provenance
    facts = [
        ("base model", f"{name}{f', revision {base.revision}' if base.revision else ''}"),
        ("fingerprint of the base model", base.fingerprint),
        ("fingerprint of this model", exported.fingerprint),
        ("operation", exported.operation),
        ("reference", _reference(reference)),
        ("neurons", f"{exported.neurons} of {neurons.universe} units"),
        ("language", known.get("language")),
        ("detector", known.get("detector")),
        ("selection", _in_words(known.get("selection"))),
        ("derived", _in_words(known.get("derived"))),
        ("settings turned on", ", ".join(exported.switched)),
        ("made by", f"babelscope {babelscope.__version__}"),
    ]
    front = ["---", "library_name: transformers", "tags:", "- babelscope"]
    front += [] if local else [f"base_model: {base.name}"]
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {name}, edited",
            "",
            "A copy of the base model in which some neurons were changed for good. A neuron is a row or column of a",
            "parameter matrix; all other weights are those of the base model, bit for bit.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {str(fact).replace('|', '/')} |" for key, fact in facts if fact),
            "",
            "| slot | neurons | by layer |",
            "|---|---|---|",
            *rows,
            "",
            f"The neurons, with their provenance, are in `{NEURONS}`.",
            "",
            f"Checked when it was written: read back by transformers, its logits on {_TOKENS[0]} x {_TOKENS[1]} random",
            f"tokens differ from those of the model edited in memory by at most {exported.difference:.3g}; the edit",
            f"changes them by up to {exported.change:.3g}.",
            "",
        ]
    )
