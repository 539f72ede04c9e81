"""Packages outside of the repository's tree, made from the pages of docs/extend, installed as pip would lay them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from babelscope.plugins import Registry
from babelscope.rules.contract import RULES
from babelscope.stages.contract import STAGES

DOCS = Path(__file__).parents[2] / "docs" / "extend"


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs the package of a page, and makes registries look again."""

    def installed(page: str, *registries: Registry[Any]) -> None:
        code, entries = re.findall(
            r"```(?:python|toml) title=[^\n]*\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S
        )
        folder = tmp_path / "site"
        module = re.search(r'= "(\w+):', entries).group(1)  # type: ignore[union-attr]
        about = folder / f"{module}-1.0.dist-info"
        about.mkdir(parents=True)
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        points = entries.replace("[project.entry-points.", "[").replace('"', "")
        (about / "entry_points.txt").write_text(points, encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.delitem(sys.modules, module, raising=False)
        for registry in registries:
            fresh: Registry[Any] = Registry(registry.kind, registry.group, registry._own)
            monkeypatch.setitem(registry.__dict__, "_entries", fresh._entries)

    return installed


@pytest.fixture
def spread(install):
    """The rule of docs/extend/rule.md."""
    install("rule.md", RULES)


@pytest.fixture
def tokens(install):
    """The stage of docs/extend/stage.md."""
    install("stage.md", STAGES)
