"""What the lens saw, for people: what each layer speaks, and where one language gives way to another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.artifacts import read_json
from babelscope.show.terminal import Screen, human_bytes, label, wrapped

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve


def lens_content(curve: LanguageCurve, out: Path, peak: Mapping[str, int]) -> dict[str, Any]:
    """A curve as plain data: by prompt language, the mass of every language by layer; the suggested stages; words."""
    from babelscope.lens.tuned import closeness_rows

    words = out / "words.json"
    names = [*curve.languages, "unknown"]
    prompts = dict.fromkeys(curve.prompt_languages)
    return {
        "out": str(out),
        "files": sorted(path.name for path in out.iterdir() if path.is_file() and not path.name.startswith(".")),
        "peak_memory": dict(peak),
        "layers": curve.n_layers,
        "prompts": {code: curve.prompt_languages.count(code) for code in prompts},
        "mass": {
            code: {name: curve.of(code)[:, column].tolist() for column, name in enumerate(names)} for code in prompts
        },
        "stages": [{**vars(stage), "text": str(stage)} for stage in curve.stages()],
        "words": read_json(words)["rows"] if words.is_file() else [],
        "tuned": closeness_rows(curve.tuned),
    }


def draw_lens(content: Mapping[str, Any], screen: Screen) -> list[str]:
    """The strongest language of the first, middle and last layer by prompt language, the stages, and the files."""
    layers = content["layers"]
    shown = list(dict.fromkeys((0, layers // 2, layers)))
    rows = [
        [label(code), f"{content['prompts'][code]:,}", *(_strongest(masses, layer) for layer in shown)]
        for code, masses in content["mass"].items()
    ]
    lines = screen.heading(
        f"Language lens in {content['out']}", "shares of the probability; ? is shared or no language"
    )
    lines += screen.table(("prompts in", "number", *(f"layer {layer}" for layer in shown)), rows)
    if content["stages"]:
        lines += ["", *screen.heading("Where one language gives way to another")]
        texts = [stage["text"] for stage in content["stages"]]
        if not any(stage["pivot"] for stage in content["stages"]):
            texts = ["no pivot: in no language of the prompts does another language lead in between"]
        for text in texts:
            lines += ["  " + line for line in wrapped(text, screen.width - 2)]
    if content["words"]:
        lines += ["", *screen.heading("Translated words", "probability that the next token begins the word in ...")]
        lines += screen.table(("from, to", "word in", *(f"layer {layer}" for layer in shown)), _words(content, shown))
    if content["tuned"]:
        lines += ["", *screen.heading("Tuned lens", "divergence from the last layer in nats, on documents held out")]
        lines += screen.table(
            ("layer", "plain", "tuned"),
            [
                [str(row["layer"]), *(f"{row[f'divergence_{kind}']:.3f}" for kind in ("plain", "tuned"))]
                for row in content["tuned"]
            ],
        )
    memory = ", ".join(f"{human_bytes(count)} {where}" for where, count in content["peak_memory"].items())
    return [*lines, "", *screen.fields([("files", " ".join(content["files"])), ("peak memory", memory)])]


def _words(content: Mapping[str, Any], shown: list[int]) -> list[list[str]]:
    """A row per target language and language compared, with the probability in the shown layers."""
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in content["words"]:
        found.setdefault((row["source"], row["target"], row["language"]), {})[row["layer"]] = row["probability"]
    return [
        [f"{source}, {target}", label(language), *(f"{by_layer[layer]:.3f}" for layer in shown)]
        for (source, target, language), by_layer in found.items()
    ]


def _strongest(masses: Mapping[str, list[float]], layer: int) -> str:
    best = max((name for name in masses if name != "unknown"), key=lambda name: masses[name][layer])
    return f"{best} {masses[best][layer]:.2f} ? {masses['unknown'][layer]:.2f}"
