"""Loading a model, and telling models apart."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.models import parallel
from babelscope.models.complete import check_loaded
from babelscope.models.gguf import QUANTIZATION, gguf_file, quantization_type
from babelscope.models.named import MODELS, model_folder

ADAPTER_CONFIG = "adapter_config.json"
_SAMPLES = 1024
"""Values read per tensor for the fingerprint: a 70B model costs a few megabytes of reading."""


@dataclass(frozen=True)
class ModelIdentity:
    """Which model an artefact belongs to."""

    name: str
    """Hub name or folder, as it was loaded."""
    revision: str | None
    model_type: str
    fingerprint: str
    """Of the weights; see `fingerprint`."""
    quantization: str | None = None
    """Quantization type of the GGUF file that the weights come from, such as Q4_K_M; else None."""

    @classmethod
    def of(cls, model: nn.Module) -> ModelIdentity:
        """The identity of a loaded model."""
        config: Any = model.config
        return cls(
            name=str(getattr(config, "_name_or_path", "") or type(model).__name__),
            revision=getattr(config, "_commit_hash", None),
            model_type=str(getattr(config, "model_type", "")),
            fingerprint=fingerprint(model),
            quantization=getattr(config, QUANTIZATION, None),
        )

    def as_json(self) -> dict[str, Any]:
        """For a file's header; the quantization only where there is one."""
        return {key: value for key, value in asdict(self).items() if key != "quantization" or value is not None}


def load_model(
    name: str | Path,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    quantization_config: Any = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    tensor_parallel: bool = False,
    strip_prefix: str | None = None,
    adapter: bool = False,
    **options: Any,
) -> tuple[Any, Any]:
    """Loads a causal language model and its tokenizer, ready for observation.

    Args:
        name: a folder, a GGUF file or a folder that holds one, a name on the Hugging Face Hub, or `tinybabel`, the
            model that comes with the package. Weights of a GGUF file are dequantised.
        dtype: "auto" (as saved), or a torch dtype or its name ("bfloat16").
        device_map: passed on; "auto" needs accelerate.
        quantization_config: passed on.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that the model brings along. Off unless you ask.
        tensor_parallel: share one model out over all processes of torchrun, by the plan that transformers has for it.
        strip_prefix: taken off the names of the checkpoint's tensors, such as `_orig_mod.`.
        adapter: apply the adapter of PEFT that lies in the folder.
        **options: anything else that `from_pretrained` takes.

    Returns:
        The model in evaluation mode, and its tokenizer.

    Raises:
        DataError: no such folder, not a model folder, not found on the Hub, or weights that are not those that the
            configuration asks for (missing, unexpected, of another shape, all zero).
        ConfigError: an adapter in the folder that is not asked for, or asked for and not there; an unknown dtype, a GPU
            that is not there, or tensor_parallel in a single process.
        MissingDependencyError: device_map without accelerate, or a GGUF file without gguf.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = _dtype(dtype)
    folder = model_folder(name)
    file = gguf_file(folder)
    if file is not None:
        options["gguf_file"] = file.name
        quantization = quantization_type(file)
        folder = file.parent
    elif folder.is_dir():
        _decide_adapter(folder, adapter)
        if not adapter and not (folder / "config.json").is_file():
            raise DataError(
                f"{folder} is not a model folder: it has no config.json, but {_listing(folder)}. Give the folder that "
                "save_pretrained wrote."
            )
    elif _looks_like_path(str(name)):
        raise DataError(f"no model folder {folder}{_near(folder)}. Check the path, or give a name on the Hub.")
    source = str(folder) if folder.is_dir() else str(name)
    common: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    if device_map is not None:
        _need_accelerate()
        _need_device(device_map)
        options["device_map"] = device_map
    if file is not None:
        if quantization_config is not None:
            raise ConfigError(f"{file} is a GGUF file, whose weights are dequantised. Leave quantization_config out.")
        from transformers import GgufConfig

        quantization_config = GgufConfig(dequantize=True)  # else linear layers would stay packed
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    if tensor_parallel:
        from transformers.distributed.configuration_utils import DistributedConfig

        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            raise ConfigError(
                "tensor_parallel shares a model out over several processes, found one. Start them with torchrun "
                "--nproc-per-node 2 or more, or leave it out."
            )
        options["distributed_config"] = DistributedConfig(tp_plan="auto")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **common, gguf_file=options.get("gguf_file"))
        if strip_prefix is not None:
            options["key_mapping"] = {f"^{re.escape(strip_prefix)}": ""}
        options.setdefault("ignore_mismatched_sizes", True)  # they are named below, and refused
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=wanted, output_loading_info=True, **common, **options
        )
        model, info = loaded
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        meant = difflib.get_close_matches(str(name), MODELS.names())
        raise DataError(
            f"could not load {source!r}{f' (did you mean {meant[0]}?)' if meant else ''}: {str(error).strip()}\n"
            "Check the name, log in for a gated model (hf auth login), or give a local folder."
        ) from error
    if not adapter:  # PEFT tells of its own tensors
        check_loaded(source, model, info)
    if file is not None:
        model.config.name_or_path = str(file)
        setattr(model.config, QUANTIZATION, quantization)
    model.eval()
    return model, tokenizer


def _decide_adapter(folder: Path, adapter: bool) -> None:
    """ConfigError where a folder holds an adapter that is not asked for, or none that is."""
    there = (folder / ADAPTER_CONFIG).is_file()
    if there and not adapter and (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds a model and an adapter ({ADAPTER_CONFIG}), which would be applied on top of it. Ask for "
            "that with adapter=True (--adapter), or take the files of the adapter away."
        )
    if adapter and not there:
        raise ConfigError(f"{folder} holds no adapter: it has no {ADAPTER_CONFIG}. Leave adapter (--adapter) out.")


def load_and_place(
    name: str | Path, *, device: str | None = None, device_map: str | None = None, **options: Any
) -> tuple[Any, Any]:
    """As `load_model`; without a device or a device_map, the model goes to this process's GPU where there is one.

    device_map="cuda" would do that too, but needs accelerate. torchrun and accelerate launch start a process per GPU
    and number them in LOCAL_RANK.

    Args:
        name: as of `load_model`.
        device: where the whole model goes, such as cpu or cuda:1; needs no other package.
        device_map: as of `load_model`; not beside a device.
        **options: as of `load_model`.

    Raises:
        ConfigError: a device that this machine lacks, or both settings; before anything is loaded.
    """
    if device is not None and device_map is not None:
        raise ConfigError(f"wanted a device or a device_map, found {device} and {device_map}. Leave one out.")
    if device is not None:
        _need_device(device, "device")
    model, tokenizer = load_model(name, device_map=device_map, **options)
    if device is not None:
        model.to(device)
    elif device_map is None and torch.cuda.is_available() and model.device.type == "cpu":
        model.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return model, tokenizer


def fingerprint(model: nn.Module) -> str:
    """A hash of a model's weights, from names, shapes and evenly spaced values of every floating-point tensor.

    Values are compared after rounding to bfloat16, so that a model and its bfloat16 copy are the same model.
    Quantised tensors don't take part, so a quantised copy is another one. A few changed values may go unseen: this
    tells models and checkpoints apart, it doesn't guard against tampering.
    """
    total = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.is_floating_point() or parameter.element_size() < 2:
            continue
        total.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type == "meta":
            continue
        flat = parallel.whole(parameter.detach()).reshape(-1)
        count = min(_SAMPLES, flat.numel())
        at = torch.linspace(0, flat.numel() - 1, count, dtype=torch.float64).round().long()
        values = flat[at.to(flat.device)].to("cpu", torch.bfloat16)
        total.update(values.view(torch.int16).numpy().tobytes())
    return total.hexdigest()[:32]


def _need_accelerate() -> None:
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError('device_map needs accelerate: pip install "babelscope[tune]"') from error


def _need_device(wanted: str | dict[str, Any], setting: str = "device_map") -> None:
    """ConfigError for a GPU that this machine lacks; PyTorch would fail an assertion."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    there = ["cpu", *(["cuda"] if gpus else []), *gpus, *(["mps"] if torch.backends.mps.is_available() else [])]
    if setting == "device_map":
        if not isinstance(wanted, str) or not wanted.startswith("cuda"):
            return
        there = ["auto", *there]
    if wanted not in there:
        raise ConfigError(f"wanted a {setting} such as {', '.join(there)}, found {wanted!r}. Name one that is there.")


def _dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(
            f"wanted a dtype such as auto, float32, bfloat16 or float16, found {dtype!r}. Correct the name."
        )
    return found


def _looks_like_path(name: str) -> bool:
    """Whether a name that is no folder was meant as one.

    Hub names have at most one slash and no leading dot; "models/llama" beside a local folder "models" is a slip.
    """
    shape = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name
    return shape or ("/" in name and Path(name).parent.is_dir())


def _near(folder: Path) -> str:
    if not folder.parent.is_dir():
        return f" (nor its parent {folder.parent})"
    names = [item.name for item in folder.parent.iterdir() if item.is_dir()]
    close = difflib.get_close_matches(folder.name, names, n=3)
    return f" (did you mean {', '.join(close)}?)" if close else ""


def _listing(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing at all"
