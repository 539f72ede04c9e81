"""A model's name and a kind of corpus of another package: docs/extend/source.md, and Tinybabel, which is one."""

from __future__ import annotations

import subprocess
import sys

import pytest

import babelscope as bs
from babelscope.corpora.sources import CORPORA, open_corpus
from babelscope.errors import ConfigError, DataError
from babelscope.models.named import MODELS, model_folder
from babelscope.stages.size import Size
from babelscope.stages.study import Model
from babelscope.study.keys import model_identity
from babelscope.tinybabel import MODEL
from study_worlds import save_model


@pytest.fixture
def sources(install, tmp_path):
    """The package of docs/extend/source.md, with a tiny model in its folder."""
    install("source.md", MODELS, CORPORA)
    save_model(tmp_path / "site" / "my_model", "llama")


def test_a_model_and_a_corpus_of_another_package_go_by_their_names(sources, tmp_path):
    model, tokenizer = bs.load_model("greeter")
    atlas = bs.detect(model, tokenizer, {"en": "greetings:en", "fr": "greetings:fr"}, min_tokens=2)
    assert {code: int(atlas.of(code).documents.sum()) for code in atlas.languages} == {"en": 2, "fr": 2}
    assert [record["name"] for record in atlas.corpora["fr"]] == ["greetings:fr"]
    spec = Model(name="greeter")
    assert model_identity(spec) == model_identity(Model(name=str(tmp_path / "site" / "my_model")))
    assert Size.of(spec).layers == model.config.num_hidden_layers


def test_the_misspelt_name_of_another_package_is_told(sources, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("not on the Hub")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(DataError, match=r"did you mean greeter\?"):
        bs.load_model("greetr")


def test_a_registered_model_whose_folder_is_missing(install):
    install("source.md", MODELS, CORPORA)
    with pytest.raises(DataError, match=r"wanted the folder of the model 'greeter', found nothing at .*my_model"):
        bs.load_model("greeter")


def test_a_kind_of_corpus_that_can_not_be_loaded(install, tmp_path):
    install("source.md", MODELS, CORPORA)
    (tmp_path / "site" / "my_sources.py").write_text("import no_such_package\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"the kind of corpus 'greetings' of another package .* can't be loaded"):
        open_corpus("greetings:fr")


def test_a_file_with_a_colon_in_its_name_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "part:one.txt").write_text("a text\n", encoding="utf-8")
    assert open_corpus("part:one.txt").kind == "file"


def test_a_folder_comes_before_a_registered_model_everywhere(tmp_path, monkeypatch):
    """What is loaded is what a study's key and a dry run are about."""
    assert model_folder("tinybabel") == MODEL
    registered = model_identity(Model(name="tinybabel"))
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "tinybabel", "llama")
    model, _ = bs.load_model("tinybabel")
    assert Size.of(Model(name="tinybabel")).layers == model.config.num_hidden_layers
    assert model_identity(Model(name="tinybabel")) != registered


def test_the_core_does_without_tinybabel():
    probe = (
        "import sys, babelscope.models.load, babelscope.corpora.sources, babelscope.detection.detect, babelscope.rules,"
        " babelscope.editing, babelscope.lens; print([name for name in sys.modules if 'tinybabel' in name])"
    )
    assert subprocess.check_output([sys.executable, "-c", probe], text=True).strip() == "[]"
