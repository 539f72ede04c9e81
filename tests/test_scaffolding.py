"""What the repository promises: a light import, honest requirements, no trace of the machine it was made on."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]

MAX_IMPORT_SECONDS = 0.3
IMPORT_PROBE = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import babelscope
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


def canonical_name(requirement: str) -> str:
    """The project a requirement names: `lm_eval[hf]>=0.4` -> `lm-eval`."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    assert match, f"not a requirement: {requirement!r}"
    return re.sub(r"[-_.]+", "-", match.group()).lower()


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.fixture(scope="module")
def fresh_imports(tmp_path_factory) -> list[dict]:
    """Three imports of the package, each in a new interpreter that stands outside the repository."""
    outside = tmp_path_factory.mktemp("outside")
    reports = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT_PROBE], cwd=outside, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        reports.append(json.loads(done.stdout))
    return reports


def test_import_is_fast(fresh_imports):
    # The best of three: the promise is about the package, not about how busy the machine is.
    assert min(report["seconds"] for report in fresh_imports) < MAX_IMPORT_SECONDS


def test_import_loads_nothing_but_the_standard_library(fresh_imports):
    loaded = {module.partition(".")[0] for module in fresh_imports[0]["modules"]}
    assert "babelscope" in loaded
    assert loaded - sys.stdlib_module_names - {"babelscope"} == set()


def test_core_requirements_are_the_four():
    assert {canonical_name(requirement) for requirement in PROJECT["dependencies"]} == {
        "torch",
        "transformers",
        "safetensors",
        "numpy",
    }


def test_pyproject_holds_ranges_only():
    requirements = [*PROJECT["dependencies"], *(one for extra in EXTRAS.values() for one in extra)]
    pinned = [one for one in requirements if re.search(r"===?|~=", one.partition(";")[0])]
    assert pinned == []
    unbounded = [one for one in requirements if ">=" not in one and canonical_name(one) != PROJECT["name"]]
    assert unbounded == [], "every requirement has the lowest version that may work"


def test_extra_all_is_every_extra_for_users():
    (everything,) = EXTRAS["all"]
    match = re.fullmatch(r"babelscope\[([a-z,]+)\]", everything)
    assert match
    assert set(match.group(1).split(",")) == set(EXTRAS) - {"all", "dev", "docs"}


def test_constraints_pin_one_version_each():
    unpinned = [line for line in constraint_lines() if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)]
    assert unpinned == [], "exact versions without local suffixes, addresses or paths"
    names = [canonical_name(line) for line in constraint_lines()]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("requirement", [*PROJECT["dependencies"], *EXTRAS["dev"]])
def test_constraints_pin_what_setup_installs(requirement):
    assert canonical_name(requirement) in {canonical_name(line) for line in constraint_lines()}


# Written in pieces, or this file would be the first to be found.
MACHINE_PATH = re.compile(r"(?<![\w.~*/-])/(?:work|root|opt/(?:pypi|wheels)[\w-]*|home/\w[\w.-]*|Users/\w[\w.-]*)/")
PACKAGE_REGISTRY = re.compile(
    "|".join(["pypi" + r"\.org", "python" + "hosted", "pytorch" + r"\.org/whl", "index" + "-url"])
)


@pytest.mark.parametrize(
    ("pattern", "found", "passed"),
    [
        (MACHINE_PATH, ["cd /" + "work/main", "'/" + "home/ada/models'"], ["../work/main", "frame/work/", "~/work/x"]),
        (PACKAGE_REGISTRY, ["https://" + "pypi" + ".org/simple", "--extra-index" + "-url x"], ["pip install torch"]),
    ],
    ids=["paths", "registries"],
)
def test_patterns_find_what_they_should(pattern, found, passed):
    assert all(pattern.search(text) for text in found)
    assert not any(pattern.search(text) for text in passed)


def test_tracked_files_name_no_path_of_a_machine_and_no_registry():
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert listed.returncode == 0, listed.stderr
    offences = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if not path.is_file():  # deleted but not committed, or a submodule
            continue
        content = path.read_bytes()
        if b"\0" in content[:8192]:  # binary, by the rule that git itself uses
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if MACHINE_PATH.search(line) or PACKAGE_REGISTRY.search(line):
                offences.append(f"{name}:{number}: {line.strip()[:100]}")
    assert offences == []
