"""Prompts and stops of the `_lm_eval` tasks against the task files of the installed harness."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from babelscope.evaluation.tasks.benchmarks import TABLE, Asked

jinja2 = pytest.importorskip("jinja2")
yaml = pytest.importorskip("yaml")
FILES = {
    "mgsm_lm_eval": "mgsm/native_cot/mgsm_native_cot_{}.yaml",
    "mgsm_direct_lm_eval": "mgsm/direct/mgsm_direct_{}.yaml",
    "xquad_lm_eval": "xquad/xquad_{}.yaml",
}
ROW = {"question": "Wie viele?\nZwei {{x}}", "context": "Ein Satz.", "answer": None, "answer_number": 2}


class Plain(yaml.SafeLoader):
    """Reads the harness's files without its functions."""


Plain.add_constructor("!function", lambda loader, node: str(node.value))


@pytest.mark.parametrize(("name", "language"), [(name, code) for name in FILES for code in TABLE[name].source.names])
def test_equal_to_the_harness(name, language):
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm-evaluation-harness is not installed")
    path = Path(spec.origin).parent / "tasks" / FILES[name].format(language)
    theirs = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    if name.startswith("xquad"):
        common = yaml.load((path.parent / "xquad_common_yaml").read_text(encoding="utf-8"), Loader=Plain)
        theirs = {**common, **theirs}
    ours = Asked(TABLE[name], language).config()
    assert ours["doc_to_text"](ROW) == jinja2.Template(theirs["doc_to_text"]).render(**ROW)
    assert ours["generation_kwargs"]["until"] == theirs["generation_kwargs"]["until"]
