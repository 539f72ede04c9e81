"""The page holds what the run found, needs nothing from outside, and takes no text for mark-up."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from babelscope import cli
from babelscope.report import page, tables
from babelscope.report.page import write_comparison, write_report
from babelscope.report.reader import read_run
from report.synthetic import change, write_run

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&{{ 7*7 }}"


class Page(HTMLParser):
    """Elements, texts, and what could run or be fetched."""

    def __init__(self, source):
        super().__init__()
        self.scripts, self.texts, self.attributes, self.elements = [], [], [], []
        self.open = []
        self.feed(source)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.open.append(tag)
        if tag == "script":
            self.scripts.append([dict(attrs), ""])

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[-1][1] += data
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def specs(self):
        (data,) = (text for attrs, text in self.scripts if attrs.get("type") == "application/json")
        return json.loads(data)["specs"]

    def downloads(self):
        """File names and what they hold."""
        found = {}
        names = [value for tag, name, value in self.attributes if (tag, name) == ("a", "download")]
        links = [value for tag, name, value in self.attributes if (tag, name) == ("a", "href")]
        data = [link for link in links if link.startswith("data:")]
        for name, link in zip([name for name in names if not name.endswith(".svg")], data, strict=True):
            found[name] = base64.b64decode(link.partition("base64,")[2]).decode()
        return found


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def no_files(monkeypatch):
    """Without the figures as files, which take seconds."""
    monkeypatch.setattr(page, "_write_files", lambda *_: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("study") / "run")


@pytest.fixture(scope="module")
def whole(run):
    """A report with all its files."""
    return write_report(run)


def test_the_summary_says_what_holds(whole, run):
    seen = read(whole)
    assert "Of 4 claims tested, 2 hold, 1 does not, and 1 can't be decided from these data." in seen.text
    for results in read_run(run).results.values():
        for result in results.values():
            assert result.how in seen.text
            for finding in result.findings:
                assert finding.claim in seen.text
                assert finding.text in seen.text
                assert tables.interval(finding) in seen.text
    assert "not finished" not in seen.text
    assert seen.text.index("Stage damage") < seen.text.index("Methods and limits")


def test_every_figure_is_there_with_its_data(whole, run):
    seen = read(whole)
    downloads = seen.downloads()
    figures = [(stage, figure) for stage, result in read_run(run).results["tiny"].items() for figure in result.figures]
    assert len(seen.specs) == len([figure for _, figure in figures if figure.kind != "tokens"]) == 10
    for stage, figure in figures:
        assert f"{figure.title}." in seen.text
        assert figure.caption in seen.text
        assert downloads[f"tiny-{stage}-{figure.name}.csv"] == tables.figure_csv(figure)
    ids = {value for _, name, value in seen.attributes if name == "id"}
    assert set(seen.specs) <= ids


def test_provenance_and_commands(whole):
    text = read(whole).text
    assert "babelscope study study.yaml --only detect" in text
    for said in ("environment.torch 2.9.0", "seeds [0]", "budget 0.01", "status finished"):
        assert said in text


def test_the_command_of_the_whole_study_comes_first(tmp_path, no_files):
    run = write_run(tmp_path / "my run")
    about = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**about, "source": "a study.yaml"}))
    shown = re.search(r"<pre>(.*?)\n", write_report(run).read_text(encoding="utf-8"))[1]
    assert html.unescape(shown) == "babelscope study 'a study.yaml' --out 'my run'"


def test_nothing_comes_from_outside(whole):
    text = whole.read_text(encoding="utf-8")
    seen = Page(text)
    for tag, name, value in seen.attributes:
        if name in ("src", "href", "action", "data"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not {"link", "iframe", "img", "object", "base"} & set(seen.elements)
    assert "@import" not in text.partition("</style>")[0]
    (policy,) = (value for tag, name, value in seen.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'")


def test_files_beside_the_page(whole, run):
    starts = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}
    for stage, result in read_run(run).results["tiny"].items():
        for figure in result.figures:
            stem = run / "report" / "figures" / f"tiny-{stage}-{figure.name}"
            for suffix, start in starts.items():
                assert stem.with_suffix(suffix).read_bytes().startswith(start)
            assert stem.with_suffix(".csv").read_text(encoding="utf-8") == tables.figure_csv(figure)
        for table in result.tables:
            stem = run / "report" / "tables" / f"tiny-{stage}-{table.name}"
            assert stem.with_suffix(".tex").read_text(encoding="utf-8") == tables.to_latex(table)
            assert stem.with_suffix(".csv").read_text(encoding="utf-8") == tables.to_csv(table.columns, table.rows)


def test_rebuilt_it_is_the_same(whole, run, no_files, tmp_path):
    again = write_report(run, tmp_path / "again.html")
    assert again.read_bytes() == whole.read_bytes()


def poison(content):
    """Every text becomes the attack, except those that must be of a kind."""
    fixed = {"kind", "stage", "verdict", "name"}
    if isinstance(content, dict):
        return {name: value if name in fixed else poison(value) for name, value in content.items()}
    if isinstance(content, list):
        return [poison(value) for value in content]
    return EVIL if isinstance(content, str) else content


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """A run whose texts are attacks, all of them, the languages' codes too."""
    run = write_run(tmp_path_factory.mktemp("attack") / "run")
    for path in run.glob("tiny/*/result.json"):
        path.write_text(json.dumps(poison(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")
    about = json.loads((run / "run.json").read_text())
    about |= {"status": EVIL, EVIL: EVIL, "study": {EVIL: [EVIL]}, "stages": ["detect", "grid"]}
    (run / "run.json").write_text(json.dumps(about))
    return run


@pytest.mark.parametrize("compared", [False, True])
def test_texts_are_only_texts(attacked, no_files, tmp_path, compared):
    out = tmp_path / "page.html"
    made = write_comparison(attacked, attacked, out) if compared else write_report(attacked, out)
    text = made.read_text(encoding="utf-8")
    seen = Page(text)
    assert [attrs.get("type") for attrs, _ in seen.scripts] == ["application/json", "module"]
    assert text.count("</script>") == 2
    assert not [name for _, name, _ in seen.attributes if name.startswith("on")]
    assert "img" not in seen.elements
    assert seen.text.count("document.title='owned'") > 20, "shown, not swallowed"
    assert "{{ 7*7 }}" in seen.text
    stored = json.dumps(seen.specs, ensure_ascii=False)
    assert stored.count("</script><script>") > 20, "in the data of the charts as it was"


def test_an_unfinished_run_says_what_is_missing(tmp_path, no_files):
    run = write_run(tmp_path / "run")
    (run / "tiny" / "tuning" / "result.json").unlink()
    about = json.loads((run / "run.json").read_text())
    stages = ["detect", "lens", "tuning"]
    (run / "run.json").write_text(json.dumps({**about, "status": "running", "stages": stages}))
    text = read(write_report(run)).text
    assert "This run is not finished (status: running)" in text
    assert "Missing for tinybabel: tuning." in text
    for path in run.glob("tiny/*/result.json"):
        path.unlink()
    text = read(write_report(run)).text
    assert "No stage of any model has a result yet." in text
    assert "Missing for tiny: detect, lens, tuning." in text


def test_an_empty_figure_and_an_empty_table(tmp_path, no_files):
    run = write_run(tmp_path / "run")

    def empty(content):
        content["figures"][0]["records"] = []
        content["tables"][0]["rows"] = []

    change(run, "damage", empty)
    assert "There were no data to draw." in read(write_report(run)).text


def test_long_tables_are_folded(tmp_path, no_files):
    run = write_run(tmp_path / "run")
    assert "details" not in read(write_report(run)).elements
    change(run, "damage", lambda content: content["tables"][0]["rows"].extend([["fr", 1.0, 2.0, 3.0, None]] * 20))
    seen = read(write_report(run))
    assert seen.elements.count("details") == 1
    assert "30 rows" in seen.text
    assert seen.text.count("French") >= 20


def test_models_stand_side_by_side(tmp_path, no_files):
    run = write_run(tmp_path / "run", ("tiny", "big"))
    seen = read(write_report(run))
    assert len(seen.specs) == 20
    assert (
        "How tinybabel and example-org/a-model-with-a-remarkably-long-name-7b-chat-v0.3 handle languages" in seen.text
    )
    assert "big-damage-matrix.csv" in seen.downloads()
    assert seen.text.count("Figure 1.") == 1


def test_two_runs_are_compared(tmp_path):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=3)

    def weaker(content):
        content["findings"][0] |= {"verdict": "undecided", "effect": 0.09}

    change(second, "damage", weaker)
    made = write_comparison(first, second)
    assert made == first / "report-and-b.html"
    seen = read(made)
    assert "holds → undecided, effect changed by −0.600" in seen.text
    assert "same verdict, effect the same" in seen.text
    assert "seeds [0] → [3]" in seen.text
    rows = seen.downloads()["tiny-damage-damage.csv"].splitlines()
    assert rows[0].startswith("language,own texts: a,own texts: b,own texts: difference")
    before = read_run(first).results["tiny"]["damage"].tables[0].rows[0][1]
    after = read_run(second).results["tiny"]["damage"].tables[0].rows[0][1]
    assert rows[1].split(",")[:4] == ["en", str(before), str(after), str(after - before)]


def test_tokens_keep_their_direction_and_language(whole):
    text = whole.read_text(encoding="utf-8")
    grids = re.findall(r'<div class="scroll" dir="(rtl|ltr)"><table class="tokens">(.*?)</table>', text, re.S)
    assert [direction for direction, _ in grids] == ["rtl", "ltr", "ltr"]
    rows = re.findall(r'<th scope="row">(\d+)</th>', grids[0][1])
    assert rows == [str(layer) for layer in reversed(range(9))]
    assert '<bdi lang="ar" dir="rtl">' in grids[0][1]


def test_the_command(tmp_path, no_files, capsys):
    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert cli.main(["report", str(first), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(first / "report.html")}
    assert cli.main(["report", str(first), str(second), "--out", str(tmp_path / "both.html")]) == 0
    assert str(tmp_path / "both.html") in capsys.readouterr().out
    assert "a and b compared" in read(tmp_path / "both.html").text
    broken = change(first, "lens", lambda content: content.pop("how"))
    assert cli.main(["report", str(first)]) == 1
    assert f"error: {broken}: how: wanted text, found nothing." in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_draws_every_chart(attacked, no_files, tmp_path):
    """The attacked run, so that what a script could do would show."""
    made = write_report(attacked, tmp_path / "page.html")
    words = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += ["--virtual-time-budget=60000", "--dump-dom", made.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-drawn="true"' in done.stdout, "the script came to its end"
    assert done.stdout.count('class="marks"') == len(read(made).specs)
    assert "<title>owned</title>" not in done.stdout
