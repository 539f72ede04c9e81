"""What a study file may say: every slip is refused before any work, with its line and the remedy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from babelscope.errors import BabelscopeError, ConfigError
from babelscope.options import fields_of
from babelscope.stages.contract import STAGES
from babelscope.stages.study import Common
from babelscope.study.config import Split, Study, load_study, presets, template, write_template
from babelscope.study.plan import dry_run

GOOD = """\
models: [tinybabel]
languages: [en, fr, zh]
corpora:
  detect: "tinybabel:{}"
  held_out: "tinybabel:{}:test"
stages: [detect, select]
"""


def load(folder: Path, text: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path)


MALFORMED = {
    "unknown key": (
        GOOD + "langauges: [en]\n", 7,
        "langauges: wanted a key of a study, found 'langauges'. Did you mean languages?",
    ),
    "unknown inner key": (
        GOOD + "detect:\n  document: 5\n", 8,
        "detect.document: wanted a key of detect, found 'document'. Did you mean documents?",
    ),
    "key twice": (
        GOOD + "seed: 1\nseed: 2\n", 8,
        "seed: wanted each key once, found it again (first on line 7). Drop one.",
    ),
    "key missing": (
        GOOD.replace("models: [tinybabel]\n", ""), 1,
        "wanted the key models (what is looked at; several are compared), found none. Add a line models: ...",
    ),
    "no language": (
        GOOD.replace("fr", "frx"), 2,
        "languages[1]: wanted a language's code, such as fr, found 'frx'. Unknown language",
    ),
    "one language": (
        GOOD.replace("[en, fr, zh]", "[en]"), 2,
        "languages: wanted a list of 2 or more, found 1. Add more.",
    ),
    "language twice": (GOOD.replace("zh", "fr"), 2, "languages[2]: wanted each once, found 'fr' again. Drop one."),
    "English missing": (
        GOOD.replace("[en, fr, zh]", "[de, fr, zh]"), 2,
        "english: wanted one of the languages (de, fr, zh), found 'en'. Add it to languages, or name another.",
    ),
    "unknown stage": (
        GOOD.replace("select]", "selekt]"), 6,
        f"stages[1]: wanted one of {', '.join(STAGES.names())}, found 'selekt'. Did you mean select?",
    ),
    "stage without what it reads": (
        GOOD.replace("[detect, select]", "[detect, damage]"), 6,
        "stages: wanted select, which damage reads, found detect, damage. Add select to stages, or drop damage.",
    ),
    "grid without a split": (
        GOOD.replace("select]", "select, grid]") + "grid: {tasks: {mgsm: [all]}}\n", 6,
        "stages: wanted search, which grid reads, found detect, select, grid. Add search to stages, or give split: "
        "{understand: N, generate: N}.",
    ),
    "no number": (
        GOOD + "detect:\n  documents: many\n", 8,
        "detect.documents: wanted a whole number of 1 or more, found 'many'. Correct it.",
    ),
    "too small": (
        GOOD + "detect:\n  max_tokens: 1\n", 8,
        "detect.max_tokens: wanted a whole number of 2 or more, found '1'. Correct it.",
    ),
    "nothing": (GOOD + "seed:\n", 7, "seed: wanted a whole number of 0 or more, found nothing. Correct it."),
    "budget": (
        GOOD + "select:\n  budget: 1.5\n", 8,
        "select.budget: wanted a share of all units between 0 and 1 (0.01), or a whole number of units (500), "
        "found '1.5'.",
    ),
    "word": (
        GOOD + "select:\n  rule: contrst\n", 8,
        "select.rule: wanted one of contrast, minimum, released, lape, found 'contrst'. Did you mean contrast?",
    ),
    "list for a section": (
        GOOD + "lens: [1, 2]\n", 7,
        "lens: wanted keys and values, found a list of 2. Write it as keys and values",
    ),
    "template without {}": (
        GOOD.replace('"tinybabel:{}"', "texts.txt"), 4,
        "corpora.detect: wanted {} where the language's code goes, found 'texts.txt'. Or give a source per language.",
    ),
    "source missing": (
        GOOD.replace('"tinybabel:{}"', "{en: en.txt, fr: fr.txt}"), 4,
        "corpora.detect: wanted a source for each of en, fr, zh, found none for zh. Add it.",
    ),
    "same texts": (
        GOOD.replace("{}:test", "{}"), 5,
        "corpora.held_out: wanted other texts than corpora.detect, found tinybabel:en. Measure on texts not "
        "detected on.",
    ),
    "one control": (
        GOOD + "damage:\n  controls: 1\n", 8,
        "damage.controls: wanted 0 or at least 2: one draw is no control, found '1'. Correct it.",
    ),
    "unknown task": (
        GOOD + "evaluation:\n  tasks: [mgms]\n", 8,
        "evaluation.tasks: wanted a task with languages, found 'mgms'. unknown task 'mgms': did you mean mgsm?",
    ),
    "unknown part": (
        GOOD + "grid:\n  tasks:\n    mgsm: [solving]\n", 9,
        "grid.tasks.mgsm[0]: wanted one of all, understand, solve",
    ),
    "stage without content": (
        GOOD.replace("select]", "select, evaluation]"), 6,
        "stages: wanted evaluation.tasks for the stage evaluation, found none. Add it, or drop evaluation from "
        "stages.",
    ),
    "stranger": (
        GOOD.replace("select]", "select, steering]") + "steering:\n  to: [sw]\n", 8,
        "steering.to: wanted some of the study's languages (en, fr, zh), found sw. Add it to languages, or drop "
        "it here.",
    ),
    "broken YAML": (
        GOOD + "detect: {documents: 5\nseed: 1\n", 8,
        "wanted YAML, found something else: expected ',' or '}', but got ':' (in what begins on line 7). Correct it.",
    ),
    "tab": (
        GOOD + "detect:\n\tdocuments: 5\n", 8,
        "wanted YAML, found something else: character '\\t' that cannot start any token. Indent with spaces, not with "
        "tabs.",
    ),
    "open quote": (
        GOOD + 'name: "mine\n', 8,
        "found something else: unexpected end of stream (in what begins on line 7). Close the quote or the bracket.",
    ),
    "no colon": (
        GOOD + "seed 5\n", 8, "could not find expected ':' (in what begins on line 7). Write key: value.",
    ),
    "no character": (GOOD + "name: a\0b\n", 7, "wanted text, found the character '\\x00'. Drop it."),
    "two studies": (GOOD + "---\n" + GOOD, 7, "another document (in what begins on line 1). Keep one study, and drop"),
    "wrong type within lists": (
        GOOD + "search: {understand: [1, [2]]}\n", 7,
        "search.understand[1]: wanted a whole number of 0 or more, found a list of 1. Correct it.",
    ),
    "mapping within a list": (
        GOOD + "tuning:\n  languages: [{fr: 1}]\n", 8,
        "tuning.languages[0]: wanted a language's code, such as fr, found a mapping of 1 key. Correct it.",
    ),
    "list within itself": (
        GOOD.replace("[en, fr, zh]", "&l [en, *l]"), 2,
        "languages[1]: wanted a language's code, such as fr, found a list of 2. Correct it.",
    ),
    "bomb": (
        GOOD + "tuning:\n  languages: " + "".join(f"&{at} [" for at in range(9)) + "fr" + "".join(
            f", {', '.join([f'*{at + 1}'] * 9)}]" if at < 8 else "]" for at in reversed(range(9))) + "\n", 8,
        "tuning.languages[0]: wanted a language's code, such as fr, found a list of 10. Correct it.",
    ),
    "negative controls": (
        GOOD + "damage:\n  controls: -3\n", 8,
        "damage.controls: wanted 0 or at least 2: one draw is no control, found '-3'. Correct it.",
    ),
    "number without end": (
        GOOD + f"seed: {'9' * 5000}\n", 7,
        "seed: wanted a whole number of 0 or more, of at most nine digits, found '999",
    ),
    "list for the split": (
        GOOD + "split: [1, 2]\n", 7,
        "split: wanted one of searched, usual, or understand: N and generate: N, found a list of 2. Correct it.",
    ),
    "unknown dtype": (
        GOOD.replace("[tinybabel]", "[{name: tinybabel, dtype: float23}]"), 1,
        "models[0].dtype: wanted one of auto, float32, bfloat16, float16, float64, found 'float23'. Did you mean "
        "float32?",
    ),
    "no such model": (
        GOOD.replace("[tinybabel]", "[/no/such/model]"), 1,
        "models: wanted a model's folder, found no folder /no/such/model. Correct the path, or give a Hub name.",
    ),
    "nothing long enough": (
        GOOD + "detect: {max_tokens: 10, min_tokens: 20}\n", 7,
        "detect.min_tokens: wanted at most detect.max_tokens (10), found 20. Lower it, or raise max_tokens.",
    ),
    "chosen on what is reported": (
        GOOD.replace(":test", ":test\"\n  validation: \"tinybabel:{}:test"), 6,
        "corpora.validation: wanted other texts than corpora.held_out, found tinybabel:en:test. Choose on other texts",
    ),
    "more stages than layers": (
        GOOD.replace("select]", "select, grid]") + "split: {understand: 8, generate: 2}\ngrid: {tasks: {mgsm: all}}\n",
        7, "split: wanted stages within the 8 layers of tinybabel, found understand: 8 and generate: 2.",
    ),
    "sizes that no layers are left for": (
        GOOD.replace("select]", "select, search]") + "search:\n  understand: [6]\n", 8,
        "search: wanted stages within the 8 layers of tinybabel, found understand: 6 and generate: 4. Lower one of",
    ),
    "tag": (GOOD + "name: !!python/object:os.system x\n", 7, "name: wanted plain YAML, found the tag"),
    "no mapping": ("- models\n", 1, "wanted keys and values, such as languages: [en, fr], found a list of 1."),
    "empty": ("", 1, "wanted a study, found an empty file. babelscope study --init writes one."),
    "bad parent": (
        "extends: tinybable\n", 1,
        "extends: wanted the name of a preset or a file, found 'tinybable'. Did you mean tinybabel?",
    ),
    "tuning without texts of its own": (
        GOOD.replace("select]", "select, tuning]") + "tuning: {languages: [fr]}\n", 4,
        "corpora: wanted the key validation for tuning, found none. Add texts that are not in detect or held_out.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("slip", MALFORMED)
def test_a_slip_is_refused_with_its_line_and_the_remedy(tmp_path, slip):
    text, line, said = MALFORMED[slip]
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    message = str(refused.value)
    assert message.startswith(f"{tmp_path / 'study.yaml'}, line {line}: "), message
    assert said in message, message


def test_there_are_twenty_slips_and_more():
    assert len(MALFORMED) >= 20


@pytest.mark.parametrize(
    ("content", "said"),
    [(bytes(range(256)), ", byte offset 128: 0x80 isn't UTF-8 (invalid start byte)."),
     (b"models: " + b"[" * 3000, ": wanted a study, found brackets within brackets without end. Correct it.")],
)  # fmt: skip
def test_what_has_no_lines_is_refused_by_name(tmp_path, content, said):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(BabelscopeError) as refused:
        load_study(path)
    assert str(refused.value).startswith(f"{path}{said}")


def test_a_broken_model_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(BabelscopeError, match=r"config\.json: not JSON"):
        load(tmp_path, GOOD.replace("[tinybabel]", f"[{tmp_path / 'model'}]"))


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "~nobody-of-this-name/x", "a\0b", "a\nb", "\ud800"])
def test_what_can_be_no_path_is_refused(tmp_path, name):
    for text in (f"extends: {json.dumps(name)}\n", GOOD.replace("[tinybabel]", json.dumps(["/" + name]))):
        with pytest.raises(BabelscopeError):
            load(tmp_path, text)


def test_the_good_file_is_good(tmp_path):
    study = load(tmp_path, GOOD)
    assert study.languages == ("en", "fr", "zh")
    assert study.corpus("held_out")["fr"] == "tinybabel:fr:test"
    assert study.corpus("validation") == study.corpus("held_out")
    assert study.detect.documents == 1000


def test_norwegian_is_no_false_and_a_rate_needs_no_dot(tmp_path):
    text = GOOD.replace("zh]", "no]").replace('"tinybabel:{}"', "a-{}.txt").replace('"tinybabel:{}:test"', "b-{}.txt")
    study = load(tmp_path, text + "tuning: {learning_rates: 1e-3}\n")
    assert study.languages == ("en", "fr", "no")
    assert study.tuning.learning_rates == (0.001,)


def test_a_file_changes_what_it_says_of_a_preset_and_nothing_else(tmp_path):
    mine = load(
        tmp_path,
        "extends: paper-mistral-7b\nmodels: [here]\ndetect:\n  documents: 7\nsplit: searched\nstages: [lens]\n",
    )
    theirs, grand = load_study("paper-mistral-7b"), load_study("paper-vicuna-7b")
    assert (mine.models[0].name, mine.detect.documents, mine.split) == ("here", 7, "searched")
    assert mine.detect.preset == "paper"
    assert mine.grid == theirs.grid == grand.grid
    assert (theirs.split, grand.split) == (Split(understand=6, generate=3), Split(understand=8, generate=2))


def test_a_slip_in_what_a_file_changes_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"study\.yaml, line 3: detect\.documents: wanted"):
        load(tmp_path, "extends: tinybabel\ndetect:\n  documents: 0\n")


def test_a_study_cannot_extend_itself(tmp_path):
    with pytest.raises(ConfigError, match="found itself"):
        load(tmp_path, f"extends: {tmp_path / 'study.yaml'}\n")


@pytest.mark.parametrize("name", ["tinybabel", "tinybabel-quick", "paper-vicuna-7b", "paper-mistral-7b",
                                  "paper-bloomz-7b", "paper-chinese-llama", "paper-enhance-mistral"])  # fmt: skip
def test_presets_pass_a_dry_run_without_model_or_network(name, monkeypatch):
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a dry run loads and connects to nothing")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("babelscope.models.load.load_model", forbidden)
    monkeypatch.setattr("babelscope.stages.job.open_corpus", forbidden)
    assert name in presets()
    study = load_study(name)
    planned = dry_run(study)
    (model,) = planned["models"].values()
    assert [row["stage"] for row in model["stages"]] == [stage for stage in STAGES.names() if stage in study.stages]
    assert all(row["cells"] >= 1 and row["seconds"] >= 0 for row in model["stages"])
    assert model["seconds"] == sum(row["seconds"] for row in model["stages"])
    assert model["memory_bytes"] > model["parameters"] * 2


def test_what_the_paper_does_not_state_is_marked():
    """Settings of the paper that it states carry no mark; the ones that it leaves open do."""
    for name in presets():
        if not name.startswith("paper"):
            continue
        text = (Path(__file__).parents[2] / "src/babelscope/study/presets" / f"{name}.yaml").read_text(encoding="utf-8")
        for key in re.findall(r"^ +(max_tokens|dtype|batch_size|learning_rate|controls|texts): .*$", text, re.M):
            lines = [line for line in text.splitlines() if re.match(rf" +(- )?{key}: ", line)]
            assert all("#" in line for line in lines), (name, key)


def test_the_template_is_a_study_and_its_comments_are_the_defaults(tmp_path):
    path = write_template(tmp_path / "new" / "mine.yaml")
    study = load_study(path)
    assert study.name == "my-study"
    lines = [
        re.sub(r"^# ?(?=\w+:|  \w+:)", "", line) for line in template().splitlines() if not line.startswith("# A st")
    ]
    lines = [line for line in lines if not line.startswith("# ")]
    full = tmp_path / "full.yaml"
    full.write_text("\n".join(lines), encoding="utf-8")
    assert set(yaml.safe_load(full.read_text(encoding="utf-8"))) == {*fields_of(Common), *STAGES.names()}
    assert load_study(full).as_json() == study.as_json()
    with pytest.raises(ConfigError, match=r"mine\.yaml is there"):
        write_template(path)


def test_no_such_file():
    with pytest.raises(BabelscopeError, match="Did you mean tinybabel-quick"):
        load_study("tinybabel-quik")
