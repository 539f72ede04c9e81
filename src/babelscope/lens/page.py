"""A language curve as one HTML file that opens without a network: charts, stages, and the tokens of single prompts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope import tinybabel
from babelscope.languages import get_language
from babelscope.lens.curve import ANY, UNKNOWN
from babelscope.lens.tuned import closeness_rows
from babelscope.report.files import embedded
from babelscope.report.languages import language_colours, visible

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve, TokenGrid

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1f24; --soft: #565d67; --line: #dcdfe4; }
@media (prefers-color-scheme: dark) { :root { --paper: #15171c; --ink: #e8eaee; --soft: #a9b0bb; --line: #343943; } }
body { font: 16px/1.5 system-ui, "Noto Sans", sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem;
       color: var(--ink); background: var(--paper); }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
h1 { font-size: clamp(1.4rem, 5vw, 2rem); } h2 { font-size: 1.25rem; margin-top: 2rem; }
p, li { max-width: 45rem; overflow-wrap: anywhere; }
.key { position: sticky; top: 0; z-index: 1; max-width: none; margin: 0; padding: .4rem 0; background: var(--paper);
       display: flex; flex-wrap: wrap; gap: .1rem .8rem; font-size: .82rem; max-height: 25vh; overflow-y: auto; }
.key span::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-inline-end: .35em;
       background: var(--c); }
.scroll { overflow-x: auto; }
.tokens { border-collapse: separate; border-spacing: 1px; font-size: .8rem; }
.tokens th { font-weight: 500; color: var(--soft); padding: 1px .4rem; white-space: pre; }
.tokens th:first-child { position: sticky; inset-inline-start: 0; background: var(--paper); }
.tokens td { background: color-mix(in srgb, var(--c) var(--p), var(--paper)); padding: 1px .4rem; white-space: pre;
       text-align: center; max-width: 9em; overflow: hidden; text-overflow: ellipsis; }
.numbers { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.numbers th, .numbers td { padding: .15rem .7rem; border-bottom: 1px solid var(--line); text-align: end; }
.numbers th { font-weight: 500; color: var(--soft); }
#vg-tooltip-element { background: var(--paper); color: var(--ink); border: 1px solid var(--line); }
"""
_LETTERS = {"labelColor": "var(--soft)", "titleColor": "var(--soft)", "titleFontWeight": "normal"}
_THEME = {
    "background": "transparent",
    "font": "inherit",
    "view": {"stroke": None},
    "axis": {**_LETTERS, "gridColor": "var(--line)", "domainColor": "var(--line)", "tickColor": "var(--line)"},
    "title": {"color": "var(--ink)", "anchor": "start"},
}


def write_page(curve: LanguageCurve, path: str | Path) -> None:
    """Writes the page. Every text of a corpus or a tokenizer is escaped; languages carry their direction.

    Raises:
        MissingDependencyError: altair or vl-convert isn't installed.
    """
    name = str(dict(curve.about.get("model") or {}).get("name", "a model"))
    model = tinybabel.NAME if name == str(tinybabel.MODEL) else Path(name).name if Path(name).is_absolute() else name
    charts = {"area": curve.plot("area"), "heat": curve.plot("heat")}
    parts = [
        f"<h1>Which language does each layer of {escape(model)} speak?</h1>",
        "<p>Every layer's hidden states are decoded to the vocabulary; the mass of a language is the probability of "
        "its tokens, each token shared out among the languages of the texts it occurs in. Grey is what says nothing "
        "about a language: digits, punctuation, parts of characters, and tokens too rare to tell.</p>",
        _key(curve),
        '<h2>Mass by layer</h2><div class="scroll" id="area"></div>',
        '<h2>The same as a map</h2><p>The stronger the colour, the more mass.</p><div class="scroll" id="heat"></div>',
        "<h2>Where one language gives way to another</h2>",
        _stages(curve),
        *_closeness(curve.tuned),
    ]
    if curve.grids:
        parts.append(
            "<h2>What single prompts become</h2><p>Columns are positions, rows layers; the likeliest token, in the "
            "colour of its language, the stronger the likelier.</p>"
        )
        parts += [_tokens(curve, grid) for grid in curve.grids]
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing outside the page can be fetched, whatever a text holds.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'\">\n"
        f"<title>Language lens: {escape(model)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + f"\n{embedded(charts, _THEME)}\n</body></html>\n",
        encoding="utf-8",
    )


def _key(curve: LanguageCurve) -> str:
    chosen = language_colours([*curve.languages, UNKNOWN, ""])
    names = {code: get_language(code).name for code in curve.languages} | {UNKNOWN: UNKNOWN}
    spans = [f'<span style="--c: {chosen[code]}">{escape(name)}</span>' for code, name in names.items()]
    return f'<p class="key">{"".join(spans)}</p>'


def _stages(curve: LanguageCurve) -> str:
    found = curve.stages()
    if not found:
        return "<p>The prompts came without a language of the profile, so no stages can be suggested.</p>"
    if all(each.pivot is None for each in found):
        return "<p>Nowhere: in no language of the prompts does another language lead in between.</p>"
    return "<ul>" + "".join(f"<li>{escape(str(each))}</li>" for each in found) + "</ul>"


def _closeness(about: Mapping[str, Any]) -> list[str]:
    """The table of a tuned lens; nothing for a plain one."""
    rows = closeness_rows(about)
    if not rows:
        return []
    heads = ("layer", "nats, plain", "nats, tuned", "agreement, plain", "agreement, tuned")
    lines = [f"<tr>{''.join(f'<th>{each}</th>' for each in heads)}</tr>"]
    for layer, *values in (row.values() for row in rows):
        cells = "".join(f"<td>{value:.3f}</td>" for value in values)
        lines.append(f"<tr><th>{layer}</th>{cells}</tr>")
    return [
        "<h2>How near the layers come to the last one</h2><p>Seen through a tuned lens, an affine map per layer. On "
        f"{about['tuned']['documents']} documents that it didn't learn from: divergence from the last layer's "
        "distribution, and how often the likeliest token is the last layer's, beside the plain lens.</p>",
        f'<div class="scroll"><table class="numbers">{"".join(lines)}</table></div>',
    ]


def _tokens(curve: LanguageCurve, grid: TokenGrid) -> str:
    chosen = language_colours([*curve.languages, UNKNOWN, ""])
    rows = [f"<tr><th></th>{''.join(_cell('th', token, grid.prompt_language) for token in grid.tokens)}</tr>"]
    for layer in reversed(range(len(grid.top))):
        cells = [f"<th>{layer}</th>"]
        for best, chances, code in zip(grid.top[layer], grid.probability[layer], grid.language[layer], strict=True):
            hover = "\n".join(f"{visible(token)} {chance:.3f}" for token, chance in zip(best, chances, strict=True))
            paint = f"--c: {chosen[code]}; --p: {12 + 48 * chances[0]:.0f}%"
            cells.append(_cell("td", best[0], code, f' style="{paint}" title="{escape(hover)}"'))
        rows.append(f"<tr>{''.join(cells)}</tr>")
    name = "" if grid.prompt_language == ANY else get_language(grid.prompt_language).name
    direction = "ltr" if grid.prompt_language in (ANY, "") else get_language(grid.prompt_language).direction
    table = "\n".join(rows)
    return f'<h3>{escape(name)}</h3>\n<div class="scroll" dir="{direction}"><table class="tokens">{table}</table></div>'


def _cell(tag: str, token: str, code: str, attributes: str = "") -> str:
    """A token in its own language and direction, which choose its font and the end at which it is cut."""
    known = None if code in ("", ANY) else get_language(code)
    lang, direction = (known.code, known.direction) if known else ("", "auto")
    return f'<{tag} lang="{lang}" dir="{direction}"{attributes}>{escape(visible(token))}</{tag}>'
