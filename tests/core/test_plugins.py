"""Registries: the package's own things by name, and those of other installed packages."""

from __future__ import annotations

import sys

import pytest

from babelscope.errors import ConfigError
from babelscope.plugins import Registry

OWN = {"ordered": "collections:OrderedDict", "counter": "collections:Counter"}


def install(folder, monkeypatch, name: str, entries: str, source: str = "") -> None:
    """A package outside of the repository, as pip would lay it."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    about = folder / f"{name}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[babelscope.tests]\n{entries}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))


def registry() -> Registry[type]:
    return Registry("container", "babelscope.tests", OWN)


def test_own_things_are_listed_in_order_and_imported_when_asked_for():
    import collections

    assert registry().names() == ("ordered", "counter")
    assert list(registry()) == [collections.OrderedDict, collections.Counter]
    assert "ordered" in registry()
    assert "orderd" not in registry()


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match=r"wanted a container, found 'orderd'\. Did you mean ordered\?"):
        registry()["orderd"]


def test_another_package_brings_a_thing_by_an_entry_point(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "mini_container", "mine = mini_container:Mine", "class Mine:\n    about = 'mine'\n")
    assert registry().names() == ("ordered", "counter", "mine")
    assert "mini_container" not in sys.modules
    assert registry()["mine"].about == "mine"


def test_two_packages_of_one_name_are_refused(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "clash_container", "counter = clash_container:Mine", "class Mine: pass\n")
    with pytest.raises(ConfigError, match=r"two packages bring a container named 'counter'.*Remove one"):
        registry().names()


def test_a_thing_that_fails_on_import_is_told_by_name(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "broken_container", "broken = broken_container:Mine", "import no_such_module\n")
    with pytest.raises(ConfigError, match=r"'broken' of another package .*No module named 'no_such_module'"):
        registry()["broken"]
    assert registry()["ordered"]
