"""A language curve as one HTML file that opens without a network: charts, stages, and the tokens of single prompts."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from babelscope import tinybabel
from babelscope.languages import get_language
from babelscope.lens import charts
from babelscope.lens.curve import ANY, UNKNOWN

if TYPE_CHECKING:
    from babelscope.lens.curve import LanguageCurve, TokenGrid

_STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans", sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
       color: #222; background: #fff; }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table.tokens { border-collapse: collapse; font-size: 12px; }
table.tokens td, table.tokens th { border: 1px solid #fff; padding: 1px 5px; white-space: pre; text-align: center;
       max-width: 9em; overflow: hidden; text-overflow: ellipsis; font-weight: normal; }
table.tokens th { background: #eee; }
.key span { display: inline-block; padding: 0 .5em; margin: 0 .3em .3em 0; }
"""


def write_page(curve: LanguageCurve, path: str | Path) -> None:
    """Writes the page. Every text of a corpus or a tokenizer is escaped; languages carry their direction.

    Raises:
        MissingDependencyError: altair or vl-convert isn't installed.
    """
    scripts = charts.vl_convert().javascript_bundle()
    specs = {"area": charts.stacked_area(curve).to_dict(), "heat": charts.heat_map(curve).to_dict()}
    name = str(dict(curve.about.get("model") or {}).get("name", "a model"))
    model = Path(name).name if Path(name).is_absolute() else name
    model = tinybabel.NAME if name == str(tinybabel.MODEL) else model
    parts = [
        f"<h1>Which language does each layer of {escape(model)} speak?</h1>",
        "<p>Every layer's hidden states are decoded to the vocabulary; the mass of a language is the probability of "
        "its tokens, each token shared out among the languages of the texts it occurs in. Grey is what says nothing "
        "about a language: digits, punctuation, parts of characters, and tokens too rare to tell.</p>",
        _key(curve),
        '<h2>Mass by layer</h2><div class="scroll" id="area"></div>',
        '<h2>The same as a map</h2><div class="scroll" id="heat"></div>',
        "<h2>Where one language gives way to another</h2>",
        _stages(curve),
    ]
    if curve.grids:
        parts.append("<h2>What single prompts become</h2>")
        parts += [_tokens(curve, grid) for grid in curve.grids]
    # "<" would end the script element early in </script>; as an escape it is the same JSON.
    data = json.dumps(specs, ensure_ascii=False).replace("<", "\\u003c")
    embed = f"const specs = {data};\nfor (const [id, spec] of Object.entries(specs)) vegaEmbed('#' + id, spec);"
    Path(path).write_text(
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Language lens: {escape(model)}</title>\n"
        f'<style>{_STYLE}</style>\n<script type="module">{scripts}\n{embed}</script></head>\n<body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n",
        encoding="utf-8",
    )


def _stages(curve: LanguageCurve) -> str:
    found = curve.stages()
    if not found:
        return "<p>The prompts came without a language of the profile, so no stages can be suggested.</p>"
    if all(each.pivot is None for each in found):
        return "<p>Nowhere: in no language of the prompts does another language lead in between.</p>"
    return "<ul>" + "".join(f"<li>{escape(str(each))}</li>" for each in found) + "</ul>"


def _key(curve: LanguageCurve) -> str:
    chosen = charts.colours(curve.languages)
    names = {code: get_language(code).name for code in curve.languages} | {UNKNOWN: UNKNOWN}
    spans = [f'<span style="{_paint(chosen[code], 1.0)}">{escape(name)}</span>' for code, name in names.items()]
    return f'<p class="key">{"".join(spans)}</p>'


def _tokens(curve: LanguageCurve, grid: TokenGrid) -> str:
    direction = "rtl" if charts.right_to_left(grid.prompt_language) else "ltr"
    chosen = charts.colours(curve.languages)
    rows = []
    for layer in reversed(range(len(grid.top))):
        cells = [f"<th>{layer}</th>"]
        for best, chances, language in zip(grid.top[layer], grid.probability[layer], grid.language[layer], strict=True):
            hover = "\n".join(f"{charts.visible(t)} {p:.3f}" for t, p in zip(best, chances, strict=True))
            style = _paint(chosen[language], chances[0])
            cells.append(f'<td style="{style}" title="{escape(hover)}">{_text(best[0], language)}</td>')
        rows.append("<tr>" + "".join(cells) + "</tr>")
    head = "".join(f"<th>{_text(token, grid.prompt_language)}</th>" for token in grid.tokens)
    name = "" if grid.prompt_language == ANY else get_language(grid.prompt_language).name
    return (
        f"<h3>{escape(name)}</h3>\n<div class='scroll' dir='{direction}'><table class='tokens'>\n"
        f"<tr><th></th>{head}</tr>\n" + "\n".join(rows) + "\n</table></div>"
    )


def _text(token: str, language: str) -> str:
    """A token, isolated from the direction of what is around it."""
    code: dict[str, Any] = {"lang": "", "dir": "auto"}
    if language not in ("", ANY):
        known = get_language(language)
        code = {"lang": known.code, "dir": known.direction}
    return f'<bdi lang="{code["lang"]}" dir="{code["dir"]}">{escape(charts.visible(token))}</bdi>'


def _paint(colour: str, share: float) -> str:
    """Background, as strong as the token is likely, with letters that can be read on it."""
    strength = 0.15 + 0.85 * share
    parts = [round(255 - strength * (255 - int(colour[at : at + 2], 16))) for at in (1, 3, 5)]
    bright = 0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]
    return f"background: rgb({parts[0]}, {parts[1]}, {parts[2]}); color: {'#000' if bright > 140 else '#fff'}"
