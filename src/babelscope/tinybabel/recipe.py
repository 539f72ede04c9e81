"""How the shipped model was made: its texts in their proportions, its tokenizer, and its training."""

import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from babelscope.artifacts import read_tensors, run_folder, update_run, write_tensors
from babelscope.errors import NumericsError
from babelscope.tinybabel.grammar import LANGUAGES, LOW_RESOURCE
from babelscope.tinybabel.tasks import TASKS, items
from babelscope.tinybabel.texts import document, parallel_document
from babelscope.tinybabel.world import SEED

logger = logging.getLogger(__name__)

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
_SHARES = {
    "en": 0.46,
    "de": 0.085,
    "fr": 0.09,
    "zh": 0.095,
    "es": 0.085,
    "ru": 0.11,
    **dict.fromkeys(LOW_RESOURCE, 0.01875),
}
"""Of all tokens. Chinese and Russian, which need more tokens to say the same, have a little more."""
_TASK_SHARES = {"reasoning": 0.08, "understanding": 0.28, "knowledge": 0.12, "generation": 0.06}
"""Of a language's documents; the rest are plain texts, some of them in two languages."""
_PARALLEL_SHARE = 0.05


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the model."""

    tokens: int = 22_000_000
    vocabulary: int = 4096
    layers: int = 8
    width: int = 256
    inner: int = 640
    heads: int = 8
    key_value_heads: int = 2
    length: int = 256
    """Tokens per row; documents are packed into rows."""
    batch: int = 16
    """Rows per step."""
    rate: float = 5e-3
    warmup: int = 200
    """Steps."""
    decay: float = 0.1
    seed: int = SEED
    checkpoint: int = 200
    """Steps between checkpoints."""
    compiled: bool = True

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.tokens // (self.length * self.batch)

    def rate_at(self, step: int) -> float:
        """Learning rate: warm-up, then a cosine to a fiftieth."""
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (step / self.warmup if step < self.warmup else 0.02 + 0.49 * (1 + math.cos(math.pi * done)))


FULL = Recipe()
QUICK = Recipe(
    tokens=120_000,
    vocabulary=1024,
    layers=2,
    width=64,
    inner=128,
    heads=4,
    key_value_heads=2,
    length=128,
    batch=16,
    warmup=10,
    checkpoint=20,
    compiled=False,
)
"""Much smaller, trained in well under a minute: for tests of the recipe."""


# Texts


def training_document(code: str, index: int, seed: int = SEED) -> str:
    """Document `index` of a language in the training: a text, a text in two languages, or a solved task."""
    rng = Random(f"{seed}:training:{code}:{index}")
    draw = rng.random()
    for task in TASKS:
        if draw < _TASK_SHARES[task]:
            item = next(items(task, code, "train", seed, start=index))
            return f"{item.prompt} {item.answer}"
        draw -= _TASK_SHARES[task]
    if draw < _PARALLEL_SHARE:
        other = rng.choice([language for language in LANGUAGES if language != code])
        return parallel_document((code, other), "train", index, seed)
    return document(code, "train", index, seed)


def train_tokenizer(recipe: Recipe) -> Any:
    """A BPE tokenizer with bytes to fall back on, trained on as many documents of every language.

    Digits are tokens of their own, and so are Chinese characters; a text begins with `<s>`.

    Returns:
        A `PreTrainedTokenizerFast`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None, fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{Nd}]|\p{Han}|\n"), "isolated"),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True),
            pre_tokenizers.Split(Regex(r"[.,:;!?¿·’'#。，：？！；、؟،]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[PAD, BOS, EOS, *bytes_], show_progress=False, max_token_length=12
    )
    count = 3000 if recipe.vocabulary > 2000 else 300
    texts = (training_document(code, index, recipe.seed) for index in range(count) for code in LANGUAGES)
    tokenizer.train_from_iterator(texts, trainer)
    # Bytes were special so that they came first; a special token could not be fallen back on.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in (PAD, BOS, EOS)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def training_rows(recipe: Recipe, tokenizer: Any) -> Tensor:
    """All documents of the training, packed.

    Returns:
        int16, [steps * batch, length]; every document begins with BOS and ends with EOS.
    """
    documents: list[list[int]] = []
    for code in LANGUAGES:
        budget, index, chunk = int(recipe.tokens * _SHARES[code]), 0, 1000
        while budget > 0:
            texts = [training_document(code, index + i, recipe.seed) for i in range(chunk)]
            for ids in tokenizer(texts, return_attention_mask=False)["input_ids"]:
                if budget > 0:
                    documents.append([*ids, tokenizer.eos_token_id])
                    budget -= len(ids) + 1
            index += chunk
        logger.info("%s: texts ready (%d documents so far)", code, len(documents))
    Random(f"{recipe.seed}:order").shuffle(documents)
    stream = torch.tensor([token for ids in documents for token in ids], dtype=torch.int16)
    rows = recipe.steps * recipe.batch
    return stream[: rows * recipe.length].view(rows, recipe.length)


# Training


def new_model(recipe: Recipe, tokenizer: Any) -> Any:
    """The model before training."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=recipe.vocabulary,
            hidden_size=recipe.width,
            intermediate_size=recipe.inner,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.key_value_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(out: Path, recipe: Recipe = FULL, device: str = "cpu", report: Callable[[str], None] = print) -> Path:
    """Trains the model and writes it to `out/model`, with the curve in `out/curve.jsonl`.

    The same recipe gives the same texts and the same order on every machine, and the same model up to the rounding of
    the machine's kernels. Stopped and started again, it goes on from the last checkpoint.

    Args:
        out: Run folder.
        recipe: What to make.
        device: Where to train.
        report: Called with a line of progress.

    Returns:
        The model folder: bfloat16 safetensors, configuration and tokenizer.

    Raises:
        RunFolderError: `out` holds something else, or a run of another recipe.
        NumericsError: The loss is not finite.
    """
    with run_folder(out, {"command": "tinybabel train", "recipe": asdict(recipe)}, {}) as folder:
        return _train(folder, recipe, device, report)


def _train(folder: Path, recipe: Recipe, device: str, report: Callable[[str], None]) -> Path:
    started = time.monotonic()
    tokenizer = train_tokenizer(recipe)
    rows = training_rows(recipe, tokenizer)
    report(f"{rows.numel():,} tokens in {len(rows):,} rows after {time.monotonic() - started:.0f} s")
    model = new_model(recipe, tokenizer).to(device).train()
    optimizers = _optimizers(model, recipe)
    state, curve = folder / "checkpoint.safetensors", folder / "curve.jsonl"
    first = _restore(state, model, optimizers) if state.exists() else 0
    kept = [line for line in curve.read_text().splitlines() if json.loads(line)["step"] < first] if first else []
    curve.write_text("".join(line + "\n" for line in kept))

    def loss_of(ids: Tensor) -> Tensor:
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    loss_fn = torch.compile(loss_of) if recipe.compiled else loss_of
    started, mean = time.monotonic(), 0.0
    for step in range(first, recipe.steps):
        ids = rows[step * recipe.batch : (step + 1) * recipe.batch].long().to(device)
        loss = loss_fn(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step + 1)
            optimizer.step()
            optimizer.zero_grad()
        value = loss.item()
        if not math.isfinite(value):
            raise NumericsError(f"the loss at step {step} is {value}; lower the rate ({recipe.rate})")
        mean = value if step == first else 0.95 * mean + 0.05 * value
        with curve.open("a") as stream:
            stream.write(json.dumps({"step": step, "loss": round(value, 4)}) + "\n")
        if (step + 1) % recipe.checkpoint == 0 or step + 1 == recipe.steps:
            _save(state, model, optimizers, step + 1)
            elapsed = time.monotonic() - started
            pace = (step + 1 - first) / elapsed
            left = (recipe.steps - step - 1) / pace / 60
            report(
                f"step {step + 1}/{recipe.steps}  loss {mean:.3f}  "
                f"{pace * recipe.length * recipe.batch:,.0f} tokens/s  {left:.0f} min left"
            )
    made = folder / "model"
    model.to(torch.bfloat16).save_pretrained(made)
    tokenizer.save_pretrained(made)
    update_run(folder, status="done", model=str(made))
    return made


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the embeddings and the norms."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed_tokens" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.rate, weight_decay=recipe.decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=recipe.rate, betas=(0.9, 0.98), weight_decay=recipe.decay),
    ]


def _save(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    tensors = {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            tensors |= {f"{key}.{names[parameter]}": value for key, value in state.items()}
    write_tensors(path, "tinybabel checkpoint", tensors, {"step": step})


def _restore(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    tensors, header = read_tensors(path, "tinybabel checkpoint")
    owner = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for full_name, tensor in tensors.items():
            key, name = full_name.split(".", 1)
            parameter = parameters[name]
            if key == "model":
                parameter.copy_(tensor)
            else:
                owner[parameter].state[parameter][key] = tensor.to(parameter.device if key != "step" else "cpu")
    return int(header["step"])
