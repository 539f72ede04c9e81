"""The documents keep their word: every command and snippet of the README runs, every name and link in them exists."""

from __future__ import annotations

import argparse
import random
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import babelscope as bs
from babelscope import cli, demo
from babelscope.detection import detect as detection
from babelscope.study import config
from builders import byte_llama, byte_tokenizer

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if path.is_file()
)

SENTENCES = {
    "en": "the river runs past the old house where the children play in the long evenings of summer",
    "fr": "la rivière coule devant la vieille maison où les enfants jouent pendant les longues soirées d'été",
    "zh": "夏天 漫长 的 傍晚 孩子们 在 老 房子 前面 的 河边 玩耍 直到 天黑 才 回家",
}
"""Words to make documents of."""


short_demo = demo.demo
whole_study = config.load_study


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """The words of every command line in the shell blocks."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.strip() and not line.startswith("#")]


def code_spans(text: str) -> list[str]:
    """What stands between backticks outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def table_commands() -> list[str]:
    """The commands of the README's table, in its order."""
    section = README.partition("## Which question, which command")[2].partition("\n## ")[0]
    return [span for span in code_spans(section) if span.startswith("babelscope ")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that the README names: MODEL, texts to detect on, and texts held out."""
    folder = tmp_path_factory.mktemp("readme")
    byte_llama(max_position_embeddings=512).save_pretrained(folder / "MODEL")
    byte_tokenizer().save_pretrained(folder / "MODEL")
    (folder / "held-out").mkdir()
    for language, words in SENTENCES.items():
        draw = random.Random(language)
        lines = [" ".join(draw.sample(words.split(), 6)) for _ in range(12)]
        (folder / f"{language}.txt").write_text("\n".join(lines[:8]) + "\n", encoding="utf-8")
        (folder / "held-out" / f"{language}.txt").write_text("\n".join(lines[8:]) + "\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Both kernels are held to be equal elsewhere; for a thousand documents it would compile.
        patch.setattr(detection, "choose_kernel", lambda requested, operations: "eager")
        patch.setattr(
            demo,
            "demo",
            lambda out, documents: short_demo(
                out, documents=3, texts=2, draws=2, stages=("detect", "select", "damage")
            ),
        )
        patch.setattr(config, "load_study", lambda name: shortened(whole_study(name)))
        yield folder


def shortened(study: config.Study) -> config.Study:
    """A study of seconds: two stages on three documents."""
    return study.changed(stages=("detect", "select"), detect=study.detect.changed(documents=3))


@pytest.fixture(scope="module")
def started(place: Path) -> list[list[str]]:
    """The shell commands of the README, run in order."""
    run = [words for words in commands(README) if words[0] == "babelscope"]
    for words in run:
        assert cli.main(words[1:]) == 0, words
    return run


# What a reader types


def test_shell_commands_run(started: list[list[str]], place: Path) -> None:
    assert [words[1] for words in started] == ["demo", *["study"] * 3, "detect", "select", "show"]
    assert len(bs.NeuronSet.load(place / "runs" / "first" / "neurons" / "fr.safetensors")) > 0


def test_commands_of_the_table_run(started: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    listed = table_commands()
    (detect,) = (words for words in started if words[1] == "detect")
    for index in range(2):  # the table says: with --shard
        words = [*detect[1 : detect.index("--out")], "--out", f"runs/part{index}", "--shard", f"{index}/2"]
        assert cli.main(words) == 0
    for command in listed:
        assert cli.main(shlex.split(command)[1:]) == 0, f"{command}\n{capsys.readouterr().err}"
    named = {shlex.split(command)[1] for command in listed}
    assert named == set(parsers()), "the table names every command that exists, and no other"


def test_python_runs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (snippet,) = blocks(README, "python")
    assert 12 <= len([line for line in snippet.splitlines() if line.strip()]) <= 22
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert names["impacts"]["q"][0].shape == (1, 32)
    assert len(names["french"]) > 0
    assert set(names["ffn_only"].counts()["q"]) == {0}
    assert bs.NeuronSet.load(place / "either.safetensors", names["model"]) == names["either"]
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("intact", "fr", "zh", "random"))


def test_the_snippet_shows_every_public_name_or_says_why_not() -> None:
    (snippet,) = blocks(README, "python")
    used = set(re.findall(r"\bbs\.(\w+)", snippet))
    assert used <= set(bs.__all__)
    promised = {"load_model", "Anatomy", "neuron_impacts", "detect", "ablate", "damage_matrix"}
    assert promised <= used


def test_the_sample_of_show_has_the_headings_of_show(
    started: list[list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["select", "runs/first"]) == 0
    capsys.readouterr()
    assert cli.main(["show", "runs/first"]) == 0
    sample = next(block for block in blocks(README, "text") if block.startswith("Run runs/first"))
    assert headings(sample) == headings(capsys.readouterr().out)


def headings(shown: str) -> list[str]:
    """Lines that begin at the margin."""
    return [line for line in shown.splitlines() if line.strip() and not line.startswith(" ")]


def test_pip_and_make_lines_name_what_there_is() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [shlex.join(words) for words in commands(README) if words[0] != "babelscope"]
    for line in lines + [span for span in code_spans(README) if re.match(r"(pip|make) ", span)]:
        words = shlex.split(line)
        if words[0] == "pip":
            assert words[1] == "install"
            assert words[2].startswith("."), "it is on no package index"
            assert set(re.findall(r"[a-z]+", words[2])) <= set(extras), line
        else:
            assert words[0] == "make", line
            assert words[1] in targets, line
            for argument in words[2:]:
                assert argument.startswith("TEST_ARGS="), line
                assert (ROOT / argument.removeprefix("TEST_ARGS=")).is_file(), line
    table = README.partition("| extra |")[2].partition("\n\n")[0]
    listed = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert set(listed) == set(extras)


# What the documents name


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    found = (each for each in cli.build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    return dict(next(found).choices)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_and_flags_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    known = parsers()
    every_flag = {flag for parser in known.values() for flag in parser._option_string_actions}
    for span in (*code_spans(text), *(shlex.join(words) for words in commands(text))):
        words = span.split()
        if words[0].endswith("babelscope") and len(words) > 1 and re.fullmatch("[a-z]+", words[1]):
            assert words[1] in known, f"{name}: {span}"
            for flag in re.findall(r"(?<!\S)--[a-z-]+", span):
                assert flag in known[words[1]]._option_string_actions, f"{name}: {span}"
        elif words[0].startswith("--"):
            assert words[0] in every_flag, f"{name}: {span}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_names_of_the_library_exist(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for used in re.findall(r"\bbs\.(\w+)", text):
        assert used in bs.__all__, f"{name}: bs.{used}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    """Within the repository; addresses elsewhere are not followed."""
    path = ROOT / name
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    dead = []
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there.read_text(encoding="utf-8"))):
            dead.append(target)
    assert dead == []


def anchors(text: str) -> set[str]:
    """The anchors that a forge makes of headings."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_tree_is_the_tree() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = next(block for block in blocks(page, "text") if block.startswith("src/babelscope/"))
    stack: list[tuple[int, Path]] = []
    listed = set()
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        name, comment = re.split(r"\s{2,}", line.strip(), maxsplit=1)
        while stack and stack[-1][0] >= indent:
            stack.pop()
        path = (stack[-1][1] if stack else ROOT) / name
        assert path.exists(), f"{path.relative_to(ROOT)} is in the tree and nowhere else"
        assert comment
        listed.add(path)
        if name.endswith("/"):
            stack.append((indent, path))
    modules = {
        path for path in tracked("src/babelscope") if path.name != "__init__.py" or path.parent.name == "babelscope"
    }
    assert sorted(path.relative_to(ROOT).as_posix() for path in modules - listed) == [], "give it a line in the tree"


def tracked(folder: str) -> list[Path]:
    """The Python files that git knows, so that one at work on a new module need not describe it yet."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return list((ROOT / folder).rglob("*.py"))
    listed = subprocess.run(["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name.endswith(".py") and (ROOT / name).exists()]


def test_every_decision_is_in_the_index_under_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+) \| [\w ]+ \|$", index, re.MULTILINE)
    pages = sorted(folder.glob("[0-9]*.md"))
    assert [file for _, file, _ in rows] == [page.name for page in pages]
    for number, file, title in rows:
        text = (folder / file).read_text(encoding="utf-8")
        assert text.startswith(f"# {number}: {title}\n")
        assert file.startswith(f"{number}-")
        sections = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert sections == ["Context", "Decision", "Alternatives", "Consequences"], file
