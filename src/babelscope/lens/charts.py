"""Charts of a language curve as altair objects; charts as files (PNG, SVG, PDF, HTML) and as parts of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.languages import get_language
from babelscope.lens.curve import ANY, UNKNOWN

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve

COLOURS = (
    "#246dce", "#ceb618", "#860c61", "#61ce9e", "#793100", "#b6b6f3",
    "#796d00", "#3d3d9e", "#c28655", "#619eaa", "#866186", "#6d92ff",
)  # fmt: skip
"""Of languages, here and in the report; made to be told apart on white and on black, and by people who don't see all
hues."""
GREY = "#9aa0a8"
FORMATS = (".png", ".svg", ".pdf", ".html", ".json")
_PANEL = 190
_LAYERS = "layer (0 = embeddings)"


def colours(languages: Sequence[str]) -> dict[str, str]:
    """A colour for each language; what is unknown is grey."""
    return {code: COLOURS[place % len(COLOURS)] for place, code in enumerate(languages)} | {UNKNOWN: GREY, "": GREY}


def panels(curve: LanguageCurve, kind: str = "area", *, key: bool = True) -> dict[str, Any]:
    """Mass by layer, a chart per prompt language; not over a data frame, which altair cuts at 5,000 rows.

    Args:
        curve: what is drawn.
        kind: `area`, stacked to 1, the unknown as the grey on top; or `heat`, a row per decoded language, its mass the
            strength of its colour.
        key: False leaves out the key to the colours, for a page that has one.

    Raises:
        ConfigError: another kind.
    """
    if kind not in ("area", "heat"):
        raise ConfigError(f"wanted a kind of chart among area, heat, found {kind!r}. Correct the name.")
    alt, codes = _altair(), (*curve.languages, UNKNOWN)
    tooltip = ["layer:Q", "decoded:N", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mass", "low", "high"))]
    values: dict[str, list[dict[str, Any]]] = {}
    for row in curve.rows():
        shown = {"decoded": _name(row["decoded_language"]), "order": codes.index(row["decoded_language"])}
        numbers = {name: round(row[name], 5) for name in ("layer", "mass", "low", "high")}
        values.setdefault(row["prompt_language"], []).append(numbers | shown)
    found = {}
    for code, rows in values.items():
        base = alt.Chart(alt.InlineData(values=rows), title=f"prompts: {_name(code)}", width=_PANEL).encode(
            color=_colour(curve, key), tooltip=tooltip
        )
        if kind == "area":
            found[code] = base.mark_area().encode(
                x=alt.X("layer:Q", title=_LAYERS, axis=alt.Axis(tickMinStep=1, format="d", tickCount=5)),
                y=alt.Y("mass:Q", stack="zero", title="share of probability", scale=alt.Scale(domain=[0, 1])),
                order=alt.Order("order:Q", sort="ascending"),
            ).properties(height=_PANEL * 0.75)  # fmt: skip
        else:
            found[code] = base.mark_rect().encode(
                x=alt.X("layer:O", title=_LAYERS, axis=alt.Axis(labelAngle=0, labelOverlap=True)),
                y=alt.Y("decoded:N", title=None, sort=[_name(each) for each in codes]),
                opacity=alt.Opacity("mass:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.03, 1])),
            ).properties(height=alt.Step(14))  # fmt: skip
    return found


def side_by_side(charts: Mapping[str, Any]) -> Any:
    """Panels as one chart, four to a row."""
    return _altair().concat(*charts.values(), columns=4)


def token_grid(curve: LanguageCurve, prompt: int = 0) -> Any:
    """The likeliest token of each layer and position of a kept prompt, coloured by its language.

    Columns run from right to left for a prompt whose script does.

    Args:
        curve: with `grids`.
        prompt: which of the kept prompts.

    Raises:
        DataError: no such prompt was kept.
    """
    alt = _altair()
    if not 0 <= prompt < len(curve.grids):
        raise DataError(f"{len(curve.grids)} prompts were kept for display, not number {prompt}. Raise grids=.")
    grid = curve.grids[prompt]
    names = [f"{place} {visible(token)}" for place, token in enumerate(grid.tokens)]
    values = [
        {"layer": layer, "position": names[place], "token": visible(grid.top[layer][place][0]),
         "probability": grid.probability[layer][place][0], "language": _name(grid.language[layer][place] or UNKNOWN)}
        for layer in range(len(grid.top))
        for place in range(len(names))
    ]  # fmt: skip
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X(
            "position:N",
            sort=names[::-1] if right_to_left(grid.prompt_language) else names,
            title="position",
            axis=alt.Axis(labelAngle=-60),
        ),
        y=alt.Y("layer:O", sort="descending", title=_LAYERS),
        tooltip=["layer:O", "position:N", "token:N", alt.Tooltip("probability:Q", format=".3f"), "language:N"],
    )
    strength = alt.Opacity("probability:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.12, 0.6]))
    boxes = base.mark_rect().encode(color=_colour(curve, True, "language:N"), opacity=strength)
    words = base.mark_text(fontSize=10, limit=54, clip=True).encode(text="token:N")
    return (boxes + words).properties(width=alt.Step(56), height=alt.Step(18))


def save_chart(chart: Any, path: str | Path) -> None:
    """Writes a chart as `.png`, `.svg`, `.pdf`, self-contained `.html` or `.json` (the Vega-Lite specification).

    Raises:
        ConfigError: another ending.
        MissingDependencyError: vl-convert isn't installed.
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise ConfigError(
            f"wanted a chart file that ends in one of {', '.join(FORMATS)}, found {path.name}. Rename it."
        )
    if path.suffix == ".json":
        path.write_text(chart.to_json(), encoding="utf-8")
        return
    convert, spec = vl_convert(), chart.to_dict()
    if path.suffix == ".html":
        path.write_text(convert.vegalite_to_html(spec, bundle=True), encoding="utf-8")
    elif path.suffix == ".svg":
        path.write_text(convert.vegalite_to_svg(spec), encoding="utf-8")
    else:
        made = convert.vegalite_to_png(spec, scale=2) if path.suffix == ".png" else convert.vegalite_to_pdf(spec)
        path.write_bytes(made)


def embedded(charts: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> str:
    """A script element that draws altair charts into elements of a page, without a network.

    It holds the library once (0.9 MB), whatever the number of charts; texts in the charts can't end it.

    Args:
        charts: by id of the element that shall hold it.
        config: of Vega-Lite; colours may be `var(--name)`, since charts are drawn as SVG.

    Raises:
        MissingDependencyError: vl-convert isn't installed.
    """
    specs = {place: chart.to_dict() for place, chart in charts.items()}
    # "<" would end the script element early in </script>; as an escape it is the same JSON.
    data = json.dumps([specs, dict(config or {})], ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<script type="module">{vl_convert().javascript_bundle()}\nconst [specs, config] = {data};\n'
        "for (const [id, spec] of Object.entries(specs))\n"
        "  vegaEmbed(document.getElementById(id), spec, {config, renderer: 'svg', actions: false, ast: true});</script>"
    )


def right_to_left(code: str) -> bool:
    """Whether a language is written from right to left."""
    return code not in (ANY, "") and get_language(code).direction == "rtl"


def visible(token: str) -> str:
    """A token on one line: line breaks and tabs as symbols, a leading space as a dot, control characters as U+FFFD.

    Those are no XML, on which vl-convert ends the process, and could turn the direction of what is around them.
    """
    for character, shown in (("\n", "⏎"), ("\t", "⇥"), ("\r", "␍")):
        token = token.replace(character, shown)
    token = "·" + token[1:] if token.startswith(" ") else token
    return "".join(each if each.isprintable() else "\ufffd" for each in token)


def vl_convert() -> Any:
    """The module vl_convert."""
    try:
        import vl_convert as module
    except ImportError as error:
        raise MissingDependencyError('chart files need vl-convert: pip install "babelscope[report]"') from error
    return module


def _altair() -> Any:
    try:
        import altair
    except ImportError as error:
        raise MissingDependencyError('charts need altair: pip install "babelscope[report]"') from error
    return altair


def _name(code: str) -> str:
    return code if code in (ANY, UNKNOWN) else get_language(code).name


def _colour(curve: LanguageCurve, key: bool, field: str = "decoded:N") -> Any:
    alt, codes, chosen = _altair(), (*curve.languages, UNKNOWN), colours(curve.languages)
    scale = alt.Scale(domain=[_name(code) for code in codes], range=[chosen[code] for code in codes])
    legend = alt.Legend(symbolLimit=0, symbolOpacity=1) if key else None
    return alt.Color(field, title="decoded language", scale=scale, legend=legend)
