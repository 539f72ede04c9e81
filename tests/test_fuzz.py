"""A small part of the fuzz that `make fuzz` runs in full: no traceback, no hang, bounded memory."""

import fuzz


def test_random_files_and_answers_are_read_or_refused() -> None:
    counts, failures, memory = fuzz.run(first=0, files=120)
    assert failures == []
    assert memory < fuzz.MEMORY
    assert sum(counts.values()) == 240
    assert {kind for kind in counts if kind.endswith("read")} > {"rows: read", "study: read", "neurons: read"}
    assert {kind for kind in counts if kind.endswith("refused")} > {"rows: refused", "study: refused"}


def test_the_fuzz_sees_a_traceback_and_a_hang(monkeypatch) -> None:
    def broken(_: object) -> None:
        raise KeyError("x")

    def endless(_: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 1)
    for reader, name in ((broken, "KeyError"), (endless, "TimeoutError")):
        monkeypatch.setattr(fuzz, "READERS", {"text": ("x.txt", lambda: b"text", reader)})
        _, failures, _ = fuzz.run(first=0, files=1)
        assert len(failures) == 1
        assert name in failures[0]
