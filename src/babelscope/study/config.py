"""What a study file may say: sections and their keys, validated before anything runs; and the file to start from."""

# ruff: noqa: RUF009 (`key` makes a field of a dataclass)
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babelscope.errors import ConfigError, DataError, did_you_mean
from babelscope.study.contradictions import contradictions
from babelscope.study.reading import (
    Place,
    by_key,
    compose,
    either,
    flag,
    key,
    language,
    many,
    maybe,
    merged,
    number,
    one_of,
    section,
    share_or_count,
    text,
    whole,
)

TITLES = {
    "detect": "Which neurons each language needs",
    "select": "The neurons of each language",
    "lens": "Which language each layer speaks",
    "search": "Where understanding ends and generation begins",
    "damage": "What breaks without a language's neurons",
    "grid": "What breaks, by stage and structure",
    "evaluation": "Tasks, intact and without neurons",
    "steering": "Turning one language into another",
    "tuning": "Training only a language's neurons",
}
"""Every stage in the order of the argument, with its heading."""
STAGES = tuple(TITLES)
"""In the order in which they run."""
NEEDS: Mapping[str, tuple[str, ...]] = {
    "select": ("detect",), "search": ("select",), "damage": ("select",), "grid": ("select",),
    "evaluation": ("select",), "steering": ("detect",), "tuning": ("select",),
}  # fmt: skip
"""The stages whose results a stage reads; `grid` reads `search` too where the split is searched."""
RULES = ("contrast", "minimum", "released", "lape")
PARTS = (
    "all", "understand", "solve", "generate", "attention", "ffn", "solve-attention", "solve-ffn",
    "understand-generate", "all-but-understand", "all-but-generate", "all-but-solve-attention",
    "all-minus-english", "all-minus-shared", "understand-equal", "solve-equal", "generate-equal",
)  # fmt: skip
"""What of a language's set the grid can switch off. As in the library, where these can't be had without torch; a test
compares."""
ARMS = ("neurons", "random", "lora", "full")
SEARCHED = "searched"
PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Model:
    """A model of the study."""

    name: str = key(text("a model's folder, its name on the Hub, or tinybabel"), "a folder, a Hub name, or tinybabel")
    dtype: str = key(one_of(("auto", "float32", "bfloat16", "float16", "float64")), "of the loaded weights", "auto")
    device_map: str | None = key(maybe(text("auto, cpu, cuda")), "null: the first GPU, else the CPU", None)
    revision: str | None = key(maybe(text("a branch, tag or commit")), "on the Hub", None)
    trust_remote_code: bool = key(flag, "run code that the model brings along", False)

    @classmethod
    def take(cls, place: Place) -> Model:
        """Reads a name, or a mapping."""
        return either(lambda each: Model(text("a model's name")(each)), section(Model))(place)  # type: ignore[no-any-return]


_sources = either(
    text("a source for all languages, with {} for the code"), by_key(language, text("a source, such as fr.txt"))
)
_limit = maybe(either(whole(1), by_key(text("a task"), whole(1))))


@dataclass(frozen=True)
class Corpora:
    """Texts: one source with {} for the language's code, or one per language."""

    detect: str | dict[str, str] = key(_sources, "to find neurons on and to build the lens's profile from")
    held_out: str | dict[str, str] = key(_sources, "other texts, to measure on")
    validation: str | dict[str, str] | None = key(maybe(_sources), "others again, for search and tuning", None)

    def of(self, kind: str, languages: tuple[str, ...]) -> dict[str, str]:
        """Sources by language."""
        found = getattr(self, kind) or self.held_out
        return {code: found.replace("{}", code) if isinstance(found, str) else found[code] for code in languages}


@dataclass(frozen=True)
class Detect:
    """Which neurons each language needs."""

    documents: int | dict[str, int] = key(
        either(whole(1), by_key(language, whole(1))), "per language, or by language", 1000
    )
    max_tokens: int = key(whole(2), "documents are cut to this length", 256)
    min_tokens: int = key(whole(1), "shorter documents are skipped", 8)
    preset: str = key(one_of(("default", "paper", "released")), "how impacts are measured", "default")
    kernel: str = key(
        one_of(("auto", "triton", "compiled", "eager", "reference")), "that computes attention impacts", "auto"
    )
    token_budget: int | None = key(maybe(whole(2)), "tokens of a batch; null: by device", None)


@dataclass(frozen=True)
class Select:
    """The set of each language."""

    rule: str = key(one_of(RULES), "contrast, minimum (the paper's), released or lape", "contrast")
    budget: int | float = key(share_or_count, "neurons per language, a share of all units or a number", 0.01)
    exclude: str | None = key(maybe(text("shared, others or a language")), "shared, others or a language", None)
    compare: tuple[str, ...] = key(many(one_of(RULES), 0), "other rules of the same budget beside it in damage", ())


@dataclass(frozen=True)
class Split:
    """Layers of the first and of the last stage."""

    understand: int = key(whole(0), "first layers")
    generate: int = key(whole(0), "last layers")


_SPLIT = "searched, or understand: N and generate: N"


def _searched(place: Place) -> str:
    if place.text(_SPLIT) != SEARCHED:
        place.refuse(_SPLIT)
    return SEARCHED


@dataclass(frozen=True)
class Lens:
    """Which language each layer speaks."""

    documents: int = key(whole(2), "prompts per language, of the held-out texts", 40)
    profile_documents: int = key(whole(1), "per language, for the vocabulary's languages", 2000)
    max_tokens: int = key(whole(1), "prompts are cut to this length", 128)
    new_tokens: int = key(whole(0), "0: the prompt is read; else the positions that choose so many new tokens", 0)
    final_norm: bool = key(flag, "decode inner layers through the final norm", True)
    identifier: str | None = key(maybe(one_of(("lingua", "cld3"))), "names tokens as in the paper; null: profile", None)
    grids: int = key(whole(0), "prompts per language whose tokens are shown", 1)


@dataclass(frozen=True)
class Search:
    """The split that hurts a language most and English least, on validation texts."""

    understand: tuple[int, ...] = key(many(whole(0)), "sizes of the first stage to try", (8, 6, 4))
    generate: tuple[int, ...] = key(many(whole(0)), "sizes of the last", (4, 3, 2))
    language: str | None = key(maybe(language), "whose neurons are off; null: the first that isn't English", None)
    stages: tuple[str, ...] = key(
        many(one_of(("understand", "solve", "generate"))), "what is off", ("understand", "generate")
    )
    texts: int = key(whole(1), "per language", 20)
    max_tokens: int = key(whole(2), "texts are cut to this length", 256)


@dataclass(frozen=True)
class Damage:
    """Bits per byte of every language's texts without each language's neurons."""

    texts: int = key(whole(2), "held-out texts per language", 20)
    max_tokens: int = key(whole(2), "texts are cut to this length", 256)
    controls: int = key(whole(0), "random sets per language; 0 or at least 2", 5)


@dataclass(frozen=True)
class Grid:
    """Tasks with parts of each set off, beside random sets, in the language and in English."""

    tasks: dict[str, tuple[str, ...]] = key(
        by_key(text("a task"), many(one_of(PARTS))), "task: [parts to switch off]", dict
    )
    languages: tuple[str, ...] | None = key(maybe(many(language)), "whose sets; null: all but English", None)
    limit: int | dict[str, int] | None = key(_limit, "first items of each task, or by task; null: all", None)
    controls: int = key(whole(0), "random sets per part; 0 or at least 2", 5)
    batch_size: int = key(whole(1), "prompts at once", 8)


@dataclass(frozen=True)
class Evaluation:
    """Tasks in each language: the intact model, and without that language's neurons."""

    tasks: tuple[str, ...] = key(many(text("a task"), 0), "of babelscope or of lm-evaluation-harness", ())
    languages: tuple[str, ...] | None = key(maybe(many(language)), "null: all", None)
    limit: int | dict[str, int] | None = key(_limit, "first items of each task, or by task; null: all", None)
    batch_size: int = key(whole(1), "prompts at once", 8)


@dataclass(frozen=True)
class Steering:
    """English prompts continued with a language amplified and English off."""

    to: tuple[str, ...] = key(many(language, 0), "wanted languages", ())
    prompts: int = key(whole(2), "first words of English held-out texts", 20)
    words: int = key(whole(1), "of a prompt", 4)
    new_tokens: int = key(whole(1), "of a continuation", 24)
    budget: int | float = key(share_or_count, "neurons per language", 0.02)
    factors: tuple[float, ...] = key(many(number()), "of the amplified neurons", (2.0, 4.0))
    alphas: tuple[float, ...] = key(many(number(), 0), "of the baseline that adds a difference of means", (1.0,))


@dataclass(frozen=True)
class Tuning:
    """Chosen neurons trained on documents of their language."""

    languages: tuple[str, ...] = key(many(language, 0), "one tuned model each", ())
    arms: tuple[str, ...] = key(many(one_of(ARMS)), "neurons, random, lora, full", ("neurons", "random"))
    random: int = key(whole(1), "random sets, each trained with every seed", 1)
    documents: tuple[int, ...] = key(many(whole(2)), "to train on; the detection corpus", (100, 400))
    seeds: tuple[int, ...] = key(many(whole(0)), "one training each", (0,))
    learning_rates: tuple[float, ...] | None = key(
        maybe(many(number())), "to try for neurons, random and lora; null: 3e-4, 1e-3, 3e-3", None
    )
    epochs: float = key(number(), "passes over the documents", 3.0)
    batch_size: int = key(whole(1), "blocks per step", 8)
    max_tokens: int = key(whole(2), "length of a block", 256)
    evaluations: int = key(whole(1), "on validation texts, over a training", 10)
    texts: int = key(whole(2), "validation texts that choose rate and step, held-out texts that are told", 20)
    tasks: tuple[str, ...] = key(many(text("a task"), 0), "scored before and after", ())
    limit: int | None = key(maybe(whole(1)), "first items of each task; null: all", None)


@dataclass(frozen=True)
class Study:
    """A whole study."""

    models: tuple[Model, ...] = key(many(Model.take), "what is looked at; several are compared")
    languages: tuple[str, ...] = key(many(language, 2), "codes")
    corpora: Corpora = key(section(Corpora), "texts by language")
    stages: tuple[str, ...] = key(many(one_of(STAGES)), "what is done", STAGES)
    name: str = key(text("a name"), "of the study", "study")
    english: str = key(language, "the language that is compared with, and that edits should spare", "en")
    seed: int = key(whole(0), "of every draw", 0)
    data: str | None = key(maybe(text("a folder")), "folder with the benchmarks' files; null: the Hub", None)
    split: str | Split = key(either(_searched, section(Split)), _SPLIT, SEARCHED)
    detect: Detect = key(section(Detect), "", Detect)
    select: Select = key(section(Select), "", Select)
    lens: Lens = key(section(Lens), "", Lens)
    search: Search = key(section(Search), "", Search)
    damage: Damage = key(section(Damage), "", Damage)
    grid: Grid = key(section(Grid), "", Grid)
    evaluation: Evaluation = key(section(Evaluation), "", Evaluation)
    steering: Steering = key(section(Steering), "", Steering)
    tuning: Tuning = key(section(Tuning), "", Tuning)

    def corpus(self, kind: str) -> dict[str, str]:
        """Sources by language."""
        return self.corpora.of(kind, self.languages)

    def needs(self, stage: str) -> tuple[str, ...]:
        """The stages that a stage reads."""
        searched = ("search",) if stage == "grid" and self.split == SEARCHED else ()
        return (*NEEDS.get(stage, ()), *searched)


def presets() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_study(source: str | Path) -> Study:
    """Reads and checks a study.

    Args:
        source: a file, or the name of a preset. A file may say `extends: PRESET` and only what differs.

    Raises:
        ConfigError: no such file or preset, or something in it that can't be; names the line, the key, what was
            wanted, what was found and what to do.
    """
    root = _root(str(source), ())
    study: Study = section(Study)(root)
    for at, remedy in contradictions(study):
        near = root.known.get(at) or root.known.get("languages" if at == "english" else at.partition(".")[0], root)
        Place(near.node, at, {}).refuse(*remedy)
    return study


def _root(source: str, above: tuple[str, ...]) -> Place:
    if source in above:
        raise ConfigError(f"{above[-1]}: wanted a study that ends somewhere, found itself. Drop extends.")
    path = PRESETS / f"{source}.yaml" if source in presets() else Path(source).expanduser()
    if not path.is_file():
        raise ConfigError(
            f"wanted a study file or the name of a preset, found {source!r}. {did_you_mean(source, presets())} "
            "babelscope study --init writes a file to start from."
        )
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: wanted UTF-8 text, found {error.reason} at byte {error.start}. Save it as such."
        ) from None
    root = compose(content, source if source in presets() else str(path))
    place = root.entries("a study").get("extends")
    if place is None:
        return root
    wanted = "the name of a preset or a file"
    parent = place.text(wanted)
    if parent not in presets() and not Path(parent).expanduser().is_file():
        place.refuse(wanted, remedy=did_you_mean(parent, presets()))
    root.node.value = [(name, node) for name, node in root.node.value if name.value != "extends"]
    return merged(root, _root(parent, (*above, source)))


def as_json(study: Study) -> dict[str, Any]:
    """Everything that a study says, defaults included."""
    return dataclasses.asdict(study)


START = """\
# A study of babelscope. Run it:        babelscope study THIS-FILE --out runs/my-study
# See what it would do:                 babelscope study THIS-FILE --dry-run
# What is commented out has the value that stands there; `extends: PRESET` takes everything else from a preset.
"""


def write_template(path: Path) -> Path:
    """Writes `template()` to a new file; ConfigError if it is there already."""
    if path.exists():
        raise ConfigError(f"wanted a new file to write a study to, found that {path} is there. Name another one.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template(), encoding="utf-8")
    return path


def template() -> str:
    """A commented study file: what has to be said is said for Tinybabel, everything else is there with its default."""
    given = {
        "models": "[tinybabel]", "languages": "[en, fr, zh, sw]", "name": "my-study",
        "stages": "[detect, select, lens, damage]",
    }  # fmt: skip
    lines = [START]
    for each in dataclasses.fields(Study):
        about = each.metadata["about"]
        kind = each.default_factory
        if each.name == "corpora":
            sources = {
                "detect": "tinybabel:{}",
                "held_out": "tinybabel:{}:test",
                "validation": "tinybabel:{}:validation",
            }
            lines.append("corpora:  # files, folders, globs, hub:NAME:CONFIG:FIELD; {} is the language's code")
            inner = {field.name: field.metadata["about"] for field in dataclasses.fields(Corpora)}
            lines += [f'  {name}: "{source}"  # {inner[name]}' for name, source in sources.items()]
        elif each.name in given:
            lines.append(f"{each.name}: {given[each.name]}  # {about}")
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            lines += ["", f"# {each.name}:  # {str(kind.__doc__).splitlines()[0]}"]
            lines += [
                f"#   {field.name}: {_written(field)}  # {field.metadata['about']}"
                for field in dataclasses.fields(kind)
            ]
        else:
            lines.append(f"# {each.name}: {_written(each)}  # {about}")
    return "\n".join(lines) + "\n"


def _written(field: Any) -> str:
    value = {} if field.default is dataclasses.MISSING else field.default
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
