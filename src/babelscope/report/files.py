"""Charts as files (PNG, SVG, PDF, HTML, JSON) and as parts of a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from babelscope.errors import ConfigError, MissingDependencyError

FORMATS = (".png", ".svg", ".pdf", ".html", ".json")


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


def vl_convert() -> Any:
    """The module vl_convert."""
    try:
        import vl_convert as module
    except ImportError as error:
        raise MissingDependencyError('chart files need vl-convert: pip install "babelscope[report]"') from error
    return module
