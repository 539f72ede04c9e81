"""Charts of a language curve, as altair objects; and their files (PNG, SVG, PDF, HTML) without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope.errors import ConfigError, DataError, MissingDependencyError
from babelscope.languages import get_language
from babelscope.lens.curve import ANY, UNKNOWN

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve, TokenGrid

# Paul Tol's "muted" and "bright" schemes, told apart by people who don't see all colours; grey is never a language.
COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#AA4499", "#999933", "#882255", "#44AA99", "#EE7733",
    "#0077BB", "#33BBEE", "#EE3377", "#CC3311", "#009988", "#4477AA", "#228833", "#CCBB44", "#66CCEE", "#AA3377",
)  # fmt: skip
GREY = "#BBBBBB"
FORMATS = (".png", ".svg", ".pdf", ".html", ".json")
_PANEL = 180


def colours(languages: tuple[str, ...]) -> dict[str, str]:
    """A colour for each language; the unknown is grey."""
    return {code: COLOURS[place % len(COLOURS)] for place, code in enumerate(languages)} | {UNKNOWN: GREY, "": GREY}


def stacked_area(curve: LanguageCurve) -> Any:
    """Mass by layer, stacked to 1, a panel per prompt language; the unknown is the grey on top."""
    alt = _altair()
    return (
        alt.Chart(_values(curve))
        .mark_area()
        .encode(
            x=alt.X("layer:Q", title="layer (0 = embeddings)", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y("mass:Q", stack="zero", title="share of the probability", scale=alt.Scale(domain=[0, 1])),
            color=_colour(alt, curve),
            order=alt.Order("order:Q", sort="ascending"),
            tooltip=_tooltip(),
        )
        .properties(width=_PANEL, height=_PANEL * 0.75)
        .facet(facet=alt.Facet("prompt:N", title="language of the prompts", sort=_prompt_names(curve)), columns=4)
        .resolve_axis(x="independent")
    )


def heat_map(curve: LanguageCurve) -> Any:
    """Mass by layer and decoded language, a panel per prompt language."""
    alt = _altair()
    return (
        alt.Chart(_values(curve))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer (0 = embeddings)", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("decoded:N", title="decoded language", sort=[_name(code) for code in (*curve.languages, UNKNOWN)]),
            color=alt.Color("mass:Q", title="mass", scale=alt.Scale(scheme="viridis", domain=[0, 1])),
            tooltip=_tooltip(),
        )
        .properties(width=_PANEL, height=13 * (len(curve.languages) + 1))
        .facet(facet=alt.Facet("prompt:N", title="language of the prompts", sort=_prompt_names(curve)), columns=4)
        .resolve_axis(x="independent")
    )


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
    grid = kept(curve, prompt)
    names = [f"{place} {visible(token)}" for place, token in enumerate(grid.tokens)]
    values = [
        {
            "layer": layer,
            "position": names[place],
            "token": visible(best[0]),
            "probability": chances[0],
            "language": _name(language or UNKNOWN),
        }
        for layer, (row, row_chances, row_languages) in enumerate(
            zip(grid.top, grid.probability, grid.language, strict=True)
        )
        for place, (best, chances, language) in enumerate(zip(row, row_chances, row_languages, strict=True))
    ]
    base = alt.Chart(alt.InlineData(values=values)).encode(
        x=alt.X(
            "position:N",
            sort=names[::-1] if right_to_left(grid.prompt_language) else names,
            title="position",
            axis=alt.Axis(labelAngle=-60),
        ),
        y=alt.Y("layer:O", sort="descending", title="layer (0 = embeddings)"),
        tooltip=["layer:O", "position:N", "token:N", alt.Tooltip("probability:Q", format=".3f"), "language:N"],
    )
    boxes = base.mark_rect().encode(
        color=_colour(alt, curve, "language:N"), opacity=alt.Opacity("probability:Q", legend=None)
    )
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
    convert = vl_convert()
    spec = chart.to_dict()
    if path.suffix == ".html":
        path.write_text(convert.vegalite_to_html(spec, bundle=True), encoding="utf-8")
    elif path.suffix == ".svg":
        path.write_text(convert.vegalite_to_svg(spec), encoding="utf-8")
    else:
        made = convert.vegalite_to_png(spec, scale=2) if path.suffix == ".png" else convert.vegalite_to_pdf(spec)
        path.write_bytes(made)


def kept(curve: LanguageCurve, prompt: int) -> TokenGrid:
    """The grid of a kept prompt; DataError if there is none."""
    if not 0 <= prompt < len(curve.grids):
        raise DataError(f"{len(curve.grids)} prompts were kept for display, not number {prompt}. Raise grids=.")
    return curve.grids[prompt]


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


def _values(curve: LanguageCurve) -> Any:
    """The tidy table as data of a chart, with names for people; not a data frame, which altair cuts at 5,000 rows."""
    order = {code: place for place, code in enumerate((UNKNOWN, *reversed(curve.languages)))}
    rows = [
        {
            "layer": row["layer"],
            "prompt": _name(row["prompt_language"]),
            "decoded": _name(row["decoded_language"]),
            "order": -order[row["decoded_language"]],
            **{name: round(row[name], 5) for name in ("mass", "low", "high")},
        }
        for row in curve.rows()
    ]
    return _altair().InlineData(values=rows)


def _name(code: str) -> str:
    return code if code in (ANY, UNKNOWN) else get_language(code).name


def _prompt_names(curve: LanguageCurve) -> list[str]:
    return [_name(code) for code in dict.fromkeys(curve.prompt_languages)]


def _colour(alt: Any, curve: LanguageCurve, field: str = "decoded:N") -> Any:
    codes = (*curve.languages, UNKNOWN)
    chosen = colours(curve.languages)
    scale = alt.Scale(domain=[_name(code) for code in codes], range=[chosen[code] for code in codes])
    return alt.Color(field, title="decoded language", scale=scale, legend=alt.Legend(symbolLimit=0))


def _tooltip() -> list[Any]:
    alt = _altair()
    numbers = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mass", "low", "high")]
    return ["prompt:N", "layer:Q", "decoded:N", *numbers]
