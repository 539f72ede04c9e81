"""What every command may be told: one function per command, and one per group of flags that several have."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from babelscope.cli.settings import add_options, add_setting
from babelscope.cli.stages import stage_flags
from babelscope.cli.values import corpus, count, layers, names, real, shard, stages, whole
from babelscope.detection.options import DetectOptions
from babelscope.rules.contract import RULES, all_settings
from babelscope.tinybabel.grammar import LANGUAGES

NEURONS = "neuron files that babelscope select wrote, a folder of them, or a run folder; several are joined"


# Flags that several commands have


def _model(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    parser.add_argument(
        "model",
        nargs=nargs,
        metavar="MODEL",
        help="a folder, a GGUF file, a name on the Hugging Face Hub, or tinybabel",
    )


def _loading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--dtype", default="auto", metavar="NAME", help="of the loaded weights: float32, bfloat16, ... (as saved)")
    add("--device", metavar="DEVICE", help="where the model goes: cpu, cuda:1, mps (the first GPU, else the CPU)")
    add("--device-map", metavar="MAP", help="auto shares the model out over all GPUs; needs accelerate")
    add("--revision", metavar="R", help="branch, tag or commit on the Hub")
    add("--trust-remote-code", action="store_true", help="run code that the model brings along")
    add("--strip-prefix", metavar="TEXT", help="take this off the names of the checkpoint's tensors: _orig_mod.")
    add("--adapter", action="store_true", help="apply the adapter of PEFT that lies in the model's folder")


def _forced_loading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="accept neurons that were found in another model of the same shape"
    )
    _loading(parser)


def _reading(parser: argparse.ArgumentParser, drawn: str) -> None:
    add = parser.add_argument
    add("--field", default="text", metavar="NAME", help="of jsonl and parquet that holds the text (%(default)s)")
    add("--seed", type=whole, default=0, metavar="N", help=f"of the {drawn} (%(default)s)")


def _operation(parser: argparse.ArgumentParser, operations: str) -> None:
    add = parser.add_argument
    add("--op", default="zero", metavar="OP", help=f"{operations} (%(default)s)")
    add("--factor", type=real, metavar="X", help="scale: multiply by this; above 1 amplifies")
    add("--value", type=real, metavar="X", help="clamp: to this activation")


def _means(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--reference", type=Path, metavar="RUN", help="mean: over the tokens of this run of detect, or of this atlas"
    )


def _edit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add("--neurons", type=Path, nargs="+", required=True, metavar="NEURONS", help=NEURONS)
    _operation(parser, "zero, scale, clamp, mean, median or resample")
    add(
        "--reference", metavar="SOURCE",
        help="mean: over the tokens of this run or atlas; median, resample: of this text, such as french.txt",
    )  # fmt: skip
    add("--documents", type=whole, default=100, metavar="N", help="of the text, drawn at random (%(default)s)")
    usual = "for --stage: first and last layers (a quarter and a sixteenth: 8,2 of 32)"
    add("--stages", type=stages, metavar="N,N", help=usual)
    add("--stage", type=names, metavar="NAMES", help="only layers that understand, solve or generate (all)")
    add("--structure", type=names, metavar="NAMES", help="only attention or ffn (both)")


def _prompts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--prompt", action="append", required=True, metavar="TEXT", help="to continue, as it is; may be repeated")
    add("--max-new-tokens", type=count, default=40, metavar="N", help="of a continuation (%(default)s)")


def _items(parser: argparse.ArgumentParser, at_once: int) -> None:
    add = parser.add_argument
    add("--limit", type=whole, metavar="N", help="the first N items of each task and language (all)")
    add("--data", type=Path, metavar="DIR", help="the benchmarks' files: mgsm/, xquad/, xcsqa/, xlsum/ (the Hub)")
    add("--batch-size", type=whole, default=at_once, metavar="N", help="prompts at once (%(default)s)")
    add("--chat-template", action="store_true", help="ask a chat model in its template; a base model has none")


# Commands


def _detect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add(
        "--corpus", action="append", required=True, type=corpus, metavar="LANGUAGE=SOURCE",
        help="text of a language, such as fr=french.txt: txt, jsonl or parquet (also .gz, .zst), a folder, a glob, "
        "- for standard input, hub:NAME:CONFIG:FIELD, or tinybabel:fr; several files of a language each with its own "
        "--corpus",
    )  # fmt: skip
    add_options(parser, DetectOptions, leave_out=("seed", "field", "shard"))
    _reading(parser, "draw")
    add("--shard", type=shard, default=(0, 1), metavar="I/N", help="every N-th document from the I-th; see merge")
    _loading(parser)
    add("--tensor-parallel", action="store_true", help="share one model out over all processes of torchrun")
    add("--out", type=Path, required=True, metavar="DIR", help="the run folder; the same command again resumes it")
    add("--dry-run", action="store_true", help="print what would be done and write nothing")


def _select(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="RUN", help="a run folder or an atlas file")
    add("--language", nargs="+", action="extend", metavar="LANGUAGE", help="only these (all)")
    titles = "; ".join(f"{rule.name}, {rule.title}" for rule in RULES)
    add("--rule", metavar="RULE", default=argparse.SUPPRESS, help=f"{titles} (that of the preset)")
    for name, (annotation, about) in all_settings().items():
        add_setting(parser, name, annotation, about)
    add("--out", type=Path, metavar="DIR", help="where the neuron files go (RUN/neurons)")


def _tune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser, nargs="?")
    add("--neurons", type=Path, nargs="+", metavar="NEURONS", help=NEURONS)
    add(
        "--corpus", action="append", default=[], type=corpus, metavar="LANGUAGE=SOURCE",
        help="documents to train on, such as sw=swahili.txt; sources as of detect",
    )  # fmt: skip
    add(
        "--held-out", action="append", default=[], type=corpus, metavar="LANGUAGE=SOURCE",
        help="texts to measure bits per byte on, also of other languages (the last tenth of the corpus)",
    )  # fmt: skip
    add(
        "--keep", action="append", default=[], type=corpus, metavar="LANGUAGE=SOURCE",
        help="texts of other languages, trained on beside the target so that they do not get worse",
    )  # fmt: skip
    add("--keep-share", type=real, default=1.0, metavar="X", help="blocks of these for one of the target (%(default)s)")
    add(
        "--others-at-most", type=real, metavar="PERCENT",
        help="by which any other held-out language may get worse; the changes are scaled down to that (no limit)",
    )  # fmt: skip
    add("--documents", type=whole, default=400, metavar="N", help="drawn at random (%(default)s)")
    add("--max-tokens", type=whole, default=256, metavar="N", help="length of a packed block (%(default)s)")
    add("--batch-size", type=whole, default=8, metavar="N", help="blocks per step, over all processes (%(default)s)")
    add("--epochs", type=real, default=3.0, metavar="X", help="stops earlier when nothing gets better (%(default)s)")
    add("--learning-rate", type=real, metavar="X", help="at its top, after warm-up and before the cosine (1e-3)")
    _reading(parser, "draw and of the order")
    add("--merge", action="store_true", help="also write the merged model, and prove that nothing else has changed")
    _forced_loading(parser)
    add("--dry-run", action="store_true", help="print steps, parameters and time, and write nothing")
    add("--out", type=Path, required=True, metavar="DIR", help="the run folder; the same command again resumes it")


def _ablate(parser: argparse.ArgumentParser) -> None:
    _edit(parser)
    _prompts(parser)
    _forced_loading(parser)


def _steer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add(
        "--by", choices=("neurons", "means"), default="neurons",
        help="amplify neurons and silence others, or add the difference of two languages' mean states (%(default)s)",
    )  # fmt: skip
    add("--to", required=True, metavar="SOURCE", help="neurons to amplify, except those of --away; means: a text")
    add("--away", required=True, metavar="SOURCE", help="neurons to silence, except those of --to; means: a text")
    add("--factor", type=real, metavar="X", help="of the amplified neurons (2), or of the difference (1)")
    add("--layers", type=layers, metavar="N,N", help="means: behind which the difference is added (the middle half)")
    add("--documents", type=whole, default=100, metavar="N", help="means: of each text, drawn at random (%(default)s)")
    _prompts(parser)
    _forced_loading(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    _edit(parser)
    _forced_loading(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _evaluate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _model(parser)
    add(
        "--tasks", type=names, required=True, metavar="TASKS",
        help="mgsm, xquad, xcsqa, xlsum or variants of them, tinybabel, or any of lm-evaluation-harness",
    )  # fmt: skip
    add("--languages", type=names, metavar="LANGUAGES", help="such as en,fr (all that the task has)")
    add("--neurons", type=Path, nargs="+", metavar="NEURONS", help=f"to be switched off: {NEURONS} (none)")
    _operation(parser, "zero, scale, clamp or mean")
    _means(parser)
    _items(parser, at_once=8)
    _forced_loading(parser)
    add("--out", type=Path, metavar="DIR", help="the run folder; the same command again resumes it (nothing is kept)")


def _show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder or a file of Babelscope, or a model folder")
    add("--top", type=whole, default=10, metavar="N", help="list the best N of a neuron file (%(default)s)")


def _merge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="new: a folder, or a file that ends in .safetensors")
    add("first", type=Path, metavar="PATH", help="a run folder or an atlas file")
    add("more", type=Path, nargs="+", metavar="PATH", help="one more, or several")


def _demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--documents", type=whole, metavar="N", help="per language (those of the study tinybabel-quick)")
    add("--out", type=Path, default=Path("runs/demo"), metavar="DIR", help="the run folder (%(default)s)")


def _report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", type=Path, metavar="RUN", help="of a study, finished or not; figures and tables go to RUN/report")
    add("other", type=Path, nargs="?", metavar="RUN_B", help="another, to be set beside it (none)")
    add("--out", type=Path, metavar="FILE", help="the page (RUN/report.html, or RUN/report-and-B.html)")


def _study(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("study", nargs="?", metavar="FILE", help="a study file, or one of tinybabel, tinybabel-quick, paper-vicuna-7b, "
        "paper-mistral-7b, paper-bloomz-7b, paper-chinese-llama, paper-enhance-mistral")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="the run folder; the same command again goes on where it stopped")
    add("--dry-run", action="store_true", help="print stages, cells, time and memory; needs no model and no network")
    add("--only", metavar="STAGE", help="this stage, and before it what it reads if that is missing")
    add("--from", dest="start", metavar="STAGE", help="this stage and all later ones anew")
    add("--init", action="store_true", help="write a commented study file (study.yaml, or FILE)")


def _tinybabel(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("action", choices=("export",), metavar="export", help="the only thing to do so far")
    add("out", type=Path, metavar="DIR", help="a new folder")
    add("--items", type=count, default=200, metavar="N", help="per task, language and split (%(default)s)")
    add("--language", nargs="+", default=LANGUAGES, choices=LANGUAGES, metavar="LANGUAGE", help="only these (all)")


def _models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")


COMMANDS: tuple[tuple[str, str, Callable[[argparse.ArgumentParser], None], str], ...] = (
    (
        "detect", "score every neuron on the documents of every language", _detect,
        "tinybabel --corpus fr=tinybabel:fr --corpus en=tinybabel:en --out runs/first",
    ),
    (
        "select", "choose the neurons of each language from a run", _select,
        "runs/first --budget 0.01",
    ),
    (
        "tune", "train only the chosen neurons on a few hundred documents of a language", _tune,
        "tinybabel --neurons runs/first/neurons/fr.safetensors --corpus fr=tinybabel:fr --out runs/tuned",
    ),
    (
        "ablate", "continue prompts with neurons switched off, beside the intact model", _ablate,
        "tinybabel --neurons runs/first/neurons/fr.safetensors --prompt 'Le marché'",
    ),
    (
        "steer", "continue prompts with one language amplified and another silenced", _steer,
        "tinybabel --to runs/first/neurons/fr.safetensors --away runs/first/neurons/en.safetensors --prompt Once",
    ),
    (
        "export", "write an edited model as a Hugging Face checkpoint and check it", _export,
        "tinybabel --neurons runs/first/neurons/fr.safetensors --out runs/without-french",
    ),
    (
        "evaluate", "score a model on benchmarks, as it is or with neurons switched off", _evaluate,
        "tinybabel --tasks tinybabel --languages fr,en --limit 20",
    ),
    (
        "lens", "show which language each layer speaks", stage_flags("lens"),
        "tinybabel --corpus fr=tinybabel:fr --corpus en=tinybabel:en --prompts corpus --out runs/lens",
    ),
    (
        "damage", "measure every language's texts without each language's neurons, beside random ones",
        stage_flags("damage"),
        "tinybabel --neurons runs/first/neurons --held-out tinybabel:{}:test --out runs/damage",
    ),
    (
        "search", "search the layers that understand and generate, on validation texts", stage_flags("search"),
        "tinybabel --neurons runs/first/neurons --validation tinybabel:{}:validation --understand 1,2 --generate 1 "
        "--out runs/search",
    ),
    (
        "grid", "switch off parts of every language's neurons beside random ones; judge the claims",
        stage_flags("grid"),
        "tinybabel --neurons runs/first/neurons --tasks tinybabel_knowledge --limit 10 --out runs/grid",
    ),
    (
        "steering", "continue English prompts in other languages, beside random neurons; count what came out",
        stage_flags("steering"),
        "tinybabel --atlas runs/first --corpus tinybabel:{} --held-out tinybabel:{}:test --languages en,fr --to fr "
        "--out runs/steering",
    ),
    (
        "evaluation", "score tasks in each language, intact and without its neurons", stage_flags("evaluation"),
        "tinybabel --neurons runs/first/neurons --tasks tinybabel_knowledge --limit 10 --out runs/tasks",
    ),
    (
        "tuning", "compare trainings: a language's neurons, random ones, LoRA, everything", stage_flags("tuning"),
        "tinybabel --neurons runs/first/neurons --corpus tinybabel:{} --validation tinybabel:{}:validation "
        "--held-out tinybabel:{}:test --languages fr --out runs/arms",
    ),
    (
        "show", "look at a run, an atlas, neuron files or a model folder", _show,
        "runs/first",
    ),
    (
        "merge", "join atlases of shards or of languages into one", _merge,
        "runs/both runs/first runs/second",
    ),
    (
        "demo", "run the argument of the paper on the embedded model: a quick study with its report", _demo,
        "",
    ),
    (
        "report", "make the report of a study again, or compare two studies", _report,
        "runs/demo",
    ),
    (
        "study", "run a whole study from one file: resumable stages, ending in one report", _study,
        "tinybabel --dry-run",
    ),
    (
        "tinybabel", "write the tasks of the embedded model in the layouts of the benchmarks", _tinybabel,
        "export tasks",
    ),
    (
        "models", "list the supported models", _models,
        "",
    ),
)  # fmt: skip
"""Name, what it does, its flags and an example of its words; in the order of --help."""
