"""The guide keeps its word: all its blocks run, in the order of the navigation; the site builds, strict and offline."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import babelscope as bs
from babelscope import cli
from babelscope.detection import detect as detection
from test_docs import ROOT, parsers

torch.set_num_threads(1)

DOCS = ROOT / "docs"
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
GUIDE = re.findall(r"^ +- [^:\n]+: (guide/.+\.md)$", NAVIGATION, re.MULTILINE)
FENCE = re.compile(r"""^( *)```(\w+)(?: title="([^"]+)")?\n(.*?)^\1```""", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    place: str
    """Page and line, for messages."""
    language: str
    file: str | None
    """The name of the file that the block is."""
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return [
        Block(f"{page}:{text[: found.start()].count(chr(10)) + 2}", found[2], found[3], found[4])
        for found in FENCE.finditer(text)
    ]


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every command of a shell block."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def run(block: Block, names: dict[str, Any]) -> None:
    """What a reader would do with a block; blocks of output are left alone."""
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
    if block.language == "python":
        exec(compile(block.text, block.place, "exec"), names)
    if block.language == "sh":
        for words in command_lines(block.text):
            if words[0] == "babelscope":
                try:
                    code: object = cli.main(words[1:])
                except SystemExit as stopped:
                    code = stopped.code
                assert code == 0, f"{block.place}: {shlex.join(words)}"
            else:
                assert words[0] in ("pip", "make"), f"{block.place}: {words[0]} is not run by this test"


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody followed the whole guide. Python names live as long as their page."""
    folder = tmp_path_factory.mktemp("guide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_OFFLINE", "1")
        # Both kernels are held to be equal elsewhere; compiling takes longer than all the rest.
        patch.setattr(detection, "choose_kernel", lambda requested, operations: "eager")
        for page in GUIDE:
            names: dict[str, Any] = {}
            for block in blocks(page):
                try:
                    run(block, names)
                except Exception as error:
                    error.add_note(f"in {block.place}")
                    raise
    return folder


def test_the_guide_is_every_page_of_its_folder() -> None:
    assert sorted(GUIDE) == sorted(page.relative_to(DOCS).as_posix() for page in (DOCS / "guide").glob("*.md"))
    assert [page for page in GUIDE if not any(block.language in ("sh", "python") for block in blocks(page))] == []


def test_every_block_runs_in_order(walked: Path) -> None:
    shell = [block.text for page in GUIDE for block in blocks(page) if block.language == "sh"]
    lines = [words for text in shell for words in command_lines(text) if "--out" in words and "--dry-run" not in words]
    folders = {words[words.index("--out") + 1] for words in lines}
    assert len(folders) > 12
    assert [folder for folder in sorted(folders) if not any((walked / folder).iterdir())] == []


def test_what_the_guide_says_of_its_runs(walked: Path) -> None:
    """Sentences of the pages that a change of the code could make untrue."""
    runs = walked / "runs"
    french, english = (bs.NeuronSet.load(runs / "first" / "neurons" / f"{code}.safetensors") for code in ("fr", "en"))
    assert len(french) == round(0.01 * french.universe)
    assert len(french & english) == 0, "contrast sets are disjoint"
    minimum = [bs.NeuronSet.load(runs / "first" / "minimum" / f"{code}.safetensors") for code in ("fr", "en")]
    assert len(minimum[0] & minimum[1]) > 0, "minimum sets overlap"
    half = bs.NeuronSet.load(runs / "first" / "half" / "fr.safetensors")
    assert half <= french
    assert len(half) == round(0.005 * french.universe)
    assert (runs / "lens" / "report.html").is_file()
    assert (runs / "lens" / "report").is_dir()
    assert (runs / "tuned" / "adapter").is_dir()
    assert (runs / "tuned" / "merged" / "config.json").is_file()
    whole, shards = bs.Atlas.load(runs / "whole"), [bs.Atlas.load(runs / f"shard{n}") for n in range(2)]
    assert int(whole.of("fr").documents.sum()) == sum(int(shard.of("fr").documents.sum()) for shard in shards) == 12


def test_scripts_for_a_cluster_are_scripts() -> None:
    scripts = [block for page in GUIDE for block in blocks(page) if block.language == "bash"]
    assert scripts
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script.text, text=True, check=True)
        for words in command_lines(script.text):
            if words[0] == "babelscope":
                parsers()[words[1]].parse_args([word.replace("$SLURM_ARRAY_TASK_ID", "0") for word in words[2:]])


@pytest.mark.parametrize("page", sorted(path.name for path in (DOCS / "extend").glob("*.md")))
def test_pages_on_extending_name_files_and_tests_that_exist(page: str) -> None:
    text = (DOCS / "extend" / page).read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    files = [span for span in spans if re.fullmatch(r"(src|tests|experiments|docs)/[\w./]*\w\.\w+", span)]
    assert [file for file in files if "CODE" not in file and not (ROOT / file).is_file()] == []
    tests = [file for file in files if file.startswith("tests/")]
    assert tests
    sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in dict.fromkeys(files) if "CODE" not in file)
    names = [span for span in spans if re.fullmatch(r"test_\w+|_?[A-Z][A-Z_]{3,}", span)]
    assert [name for name in names if not re.search(rf"\b{name}\b", sources)] == []


# The site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    pytest.importorskip("mkdocs", reason="the site needs the docs extra")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference").glob("*.html"))
    public = {f"{module}.{name}" for name, module in bs._PUBLIC.items()}
    assert [name for name in sorted(public) if f'id="{name}"' not in pages] == []


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|source)[^>]*\ssrc=["']?((?:https?:)?//[^"' >]+)"""
        r"""|<link(?=[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon))[^>]*href=["']?((?:https?:)?//[^"' >]+)"""
    )
    assert loads.search('<link rel="stylesheet" href="https://elsewhere/a.css">')
    assert loads.search("<script src=https://elsewhere/a.js></script>")
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    assert {name for page in pages for name in loads.findall(page.read_text(encoding="utf-8"))} == set()
