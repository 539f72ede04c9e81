"""Progress: tasks within tasks, views, and lines that come also while one step takes long."""

from __future__ import annotations

import io
import time

import pytest

from babelscope import progress


class Recorded:
    def __init__(self):
        self.seen = []

    def update(self, tasks):
        self.seen.append([(task.name, task.done, task.what) for task in tasks])


def test_a_view_is_told_of_tasks_within_tasks_and_of_their_end():
    view = Recorded()
    with progress.shown(view), progress.task("study", 2, "stages") as outer:
        with progress.task("lens", 3) as inner:
            inner.advance(what="fr")
        outer.advance()
    assert [("study", 0.0, ""), ("lens", 1.0, "fr")] in view.seen
    assert [("study", 1.0, "")] in view.seen
    assert view.seen[-1] == []


def test_a_task_ends_also_when_its_block_fails():
    view = Recorded()
    with pytest.raises(ValueError, match="broken"), progress.shown(view), progress.task("lens"):
        raise ValueError("broken")
    assert view.seen[-1] == []
    assert progress._tasks == []


def test_without_a_view_nothing_is_printed(capsys):
    with progress.task("lens", 3) as task:
        task.advance()
    assert capsys.readouterr() == ("", "")


def test_lines_come_at_the_start_and_then_in_time_though_no_step_ends():
    stream = io.StringIO()
    with progress.shown(progress.Lines(stream, every=0.5)), progress.task("loading tinybabel"):
        time.sleep(2.6)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "babelscope: loading tinybabel"
    assert 2 <= len(lines) <= 5


def test_a_task_tells_how_much_is_left(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: 10.0)
    task = progress.Task("damage", 4, "cells", done=1, began=0.0)
    assert task.left() == 30.0
    assert str(task) == "damage 1/4 cells, 30 s left"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (3, "3 s"), (89.4, "89 s"), (300, "5 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_times_for_a_person(seconds, text):
    assert progress.duration(seconds) == text


def test_a_name_that_comes_from_a_stranger_cannot_steer_the_terminal():
    stream = io.StringIO()
    with progress.shown(progress.Lines(stream)), progress.task("loading \x1b]0;owned\x07"):
        pass
    assert stream.getvalue() == "babelscope: loading \ufffd]0;owned\ufffd\n"


def test_on_a_terminal_there_is_one_row_a_task_and_nothing_afterwards(monkeypatch):
    stream = io.StringIO()
    stream.isatty = lambda: True
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    view = progress.usual_view()
    with (
        progress.shown(view),
        progress.task("study", 4, "stages") as outer,
        progress.task("loading [red]x[/red]\x1b[2J"),
    ):
        outer.advance(what="lens")
        rows = [row.description for row in view._progress.tasks]
    assert rows == ["study 1/4 stages", "loading [red]x[/red]\ufffd[2J"]
    assert view._progress.tasks == []
    assert "study 0/4 stag" in stream.getvalue()


def test_where_a_view_is_there_already_no_second_one_is_opened(capsys):
    view = Recorded()
    with progress.shown(view), progress.shown_if(True), progress.task("damage"):
        pass
    assert ("damage", 0.0, "") in view.seen[0]
    assert capsys.readouterr() == ("", "")
    with progress.shown_if(True), progress.task("damage"):
        pass
    assert capsys.readouterr().err == "babelscope: damage\n"
