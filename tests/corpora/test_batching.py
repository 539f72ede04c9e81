"""Sampling, tokenising and bucketing: nothing lost, nothing counted twice, and always the same."""

import dataclasses
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from babelscope import tinybabel
from babelscope.corpora.batching import (
    Batch,
    SkipCounts,
    batches,
    padding_id,
    prefetched,
    sample_documents,
)
from babelscope.corpora.sources import Corpus, open_corpus
from babelscope.corpora.tokens import TokenizedDocument
from babelscope.errors import ConfigError, DataError

BOS, EOS = 0, 1


@cache
def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A token per byte after one BOS; no pad token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="</s>")


@cache
def word_tokenizer() -> PreTrainedTokenizerBase:
    """A token per word; unknown words are `<unk>`; EOS at the end; no pad token."""
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, "un": 2, "deux": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


def sample(
    source: object,
    documents: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int = 16,
    min_tokens: int = 3,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    **together: Any,
) -> tuple[list[TokenizedDocument], SkipCounts]:
    stream, counts = sample_documents(
        open_corpus(source),  # type: ignore[arg-type]
        tokenizer or byte_tokenizer(),
        documents=documents,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        seed=seed,
        shard=shard,
        **together,
    )
    return list(stream), counts


def indices(documents: Iterable[TokenizedDocument]) -> list[int]:
    return [document.index for document in documents]


# Tokens


def test_tokens_special_tokens_and_bytes() -> None:
    (document,), counts = sample(["été"])
    assert document.ids.dtype == np.int32
    assert byte_tokenizer().decode(document.ids) == "<s>été"
    assert document.special.tolist() == [True, *[False] * 5]
    assert (document.index, document.position, document.n_bytes, document.cut) == (0, 0, 5, False)
    assert (counts.seen, counts.used, counts.cut) == (1, 1, 0)


def test_cut_documents_count_the_bytes_they_keep() -> None:
    documents, counts = sample(["a" * 15, "a" * 16, "é" * 10])
    assert [len(document.ids) for document in documents] == [16, 16, 16]
    assert [document.cut for document in documents] == [False, True, True]
    assert [document.n_bytes for document in documents] == [15, 15, 16], "half of the eighth é counts as a whole"
    assert counts.cut == 2


def test_special_tokens_that_the_text_spells_out() -> None:
    (document,), _ = sample(["ab</s>cd"])
    assert document.special.tolist() == [True, False, False, True, False, False]


def test_an_unknown_word_is_text_unless_the_id_has_another_role() -> None:
    (document,), _ = sample(["un trois deux"], tokenizer=word_tokenizer())
    assert document.ids.tolist() == [2, 0, 3, 1]
    assert document.special.tolist() == [False, False, False, True]
    assert byte_tokenizer().unk_token_id == EOS  # so the previous test covers the other half


def test_a_tokenizer_in_python() -> None:
    documents, counts = sample(["a" * 7, "a" * 8, "ab"], tokenizer=ByT5Tokenizer(), max_tokens=8)
    assert [document.special.tolist() for document in documents] == [[False] * 7 + [True]] * 2
    assert [document.cut for document in documents] == [False, True]
    assert [document.n_bytes for document in documents] == [7, 8]
    assert counts.too_short == 1


def test_half_a_character_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("whole", "half \ud83d", "\ud83d\ude00 \udc00")))
    documents, counts = sample(path)
    decoded = [byte_tokenizer().decode(document.ids, skip_special_tokens=True) for document in documents]
    assert decoded == ["whole", "half \ufffd", "😀 \ufffd"]
    assert counts.used == 3
    assert "document 1 holds half a character" in caplog.text
    assert "2 documents hold" in caplog.text


@pytest.mark.parametrize(("pad", "eos", "expected"), [(5, 1, 5), (0, 1, 0), (None, 1, 1), (None, None, 0)])
def test_padding_id(pad: int | None, eos: int | None, expected: int) -> None:
    class Stub:
        pad_token_id = pad
        eos_token_id = eos

    assert padding_id(Stub()) == expected  # type: ignore[arg-type]
    assert padding_id(byte_tokenizer()) == EOS


# Sampling

TEXTS = st.lists(st.text(alphabet="ab é\n", max_size=12), min_size=1, max_size=40)


def eligible_by_hand(texts: list[str], min_tokens: int) -> list[int]:
    return [i for i, text in enumerate(texts) if text.strip() and len(text.encode()) >= min_tokens]


@given(
    texts=TEXTS,
    documents=st.none() | st.integers(1, 45),
    min_tokens=st.integers(1, 7),
    shards=st.integers(1, 4),
    streamed=st.booleans(),
    seed=st.integers(-5, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_document_is_accounted_for_and_shards_partition_the_sample(
    texts: list[str], documents: int | None, min_tokens: int, shards: int, streamed: bool, seed: int
) -> None:
    def run(shard: tuple[int, int]) -> tuple[list[TokenizedDocument], SkipCounts]:
        source = iter(texts) if streamed else texts
        return sample(source, documents, min_tokens=min_tokens, seed=seed, max_tokens=9, shard=shard)

    eligible = eligible_by_hand(texts, min_tokens)
    if not eligible:
        with pytest.raises(DataError, match=f"0 of {len(texts)} documents used"):
            run((0, shards))
        return

    whole, counts = run((0, 1))
    assert indices(whole) == sorted(indices(whole))
    assert len(whole) == min(len(eligible), documents or len(eligible))
    assert set(indices(whole)) <= set(eligible)
    assert [document.position for document in whole] == list(range(len(whole)))

    stopped_early = streamed and documents is not None and documents <= len(eligible)
    assert counts.seen == (whole[-1].index + 1 if stopped_early else len(texts))
    read = texts[: counts.seen]
    assert counts.seen == counts.used + counts.empty + counts.too_short + counts.not_sampled
    assert counts.used == len(whole)
    assert counts.empty == sum(not text.strip() for text in read)
    assert counts.cut == sum(document.cut for document in whole)
    if documents is None or streamed:
        assert counts.not_sampled == 0

    parts = [run((i, shards)) for i in range(shards)]
    merged = sorted((document for part, _ in parts for document in part), key=lambda document: document.position)
    assert indices(merged) == indices(whole)
    assert [document.position for document in merged] == list(range(len(whole)))
    for one, other in zip(merged, whole, strict=True):
        assert np.array_equal(one.ids, other.ids)
    for i, (part, part_counts) in enumerate(parts):
        assert {document.position % shards for document in part} <= {i}
        assert part_counts.used == len(part)
        assert part_counts.sampled == len(whole)
        assert part_counts.seen == counts.seen == part_counts.used + part_counts.skipped


class Meeting:
    """Processes that read one corpus together, as threads; each has its `any_of`."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._flags: list[np.ndarray] = [np.zeros(0)] * count
        self._barrier = threading.Barrier(count, timeout=60)

    def any_of(self, process: int) -> Callable[[np.ndarray], np.ndarray]:
        def exchange(flags: np.ndarray) -> np.ndarray:
            self._flags[process] = flags
            self._barrier.wait()
            found = np.logical_or.reduce(self._flags)
            self._barrier.wait()
            return found

        return exchange

    def read(self, source: Callable[[], object], *args: Any, **kwargs: Any) -> list[Any]:
        """What `sample` gives each process; None for those who found no usable document."""

        def process(number: int) -> Any:
            try:
                return sample(source(), *args, part=(number, self.count), any_of=self.any_of(number), **kwargs)
            except DataError:
                return None

        with ThreadPoolExecutor(self.count) as pool:
            return list(pool.map(process, range(self.count)))


@given(
    texts=TEXTS,
    documents=st.none() | st.integers(1, 45),
    processes=st.integers(2, 4),
    shard=st.sampled_from([(0, 1), (0, 2), (1, 2), (2, 3)]),
    streamed=st.booleans(),
    block=st.sampled_from([1, 3, 256]),
)
@settings(max_examples=60, deadline=None)
@example(texts=["text"] * 21, documents=5, processes=2, shard=(0, 1), streamed=False, block=256)
def test_processes_together_read_what_one_reads(
    texts: list[str], documents: int | None, processes: int, shard: tuple[int, int], streamed: bool, block: int
) -> None:
    def source() -> object:
        return iter(texts) if streamed else texts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("babelscope.corpora.batching._BLOCK", block)
        found = Meeting(processes).read(source, documents, shard=shard)
    if not eligible_by_hand(texts, 3):
        assert found == [None] * processes
        return
    whole, counts = sample(source(), documents, shard=shard)
    merged = sorted((document for part, _ in found for document in part), key=lambda document: document.position)
    assert [(one.index, one.position) for one in merged] == [(one.index, one.position) for one in whole]
    for one, other in zip(merged, whole, strict=True):
        assert np.array_equal(one.ids, other.ids)
    for part, part_counts in found:
        assert part_counts.used == len(part)
        for name in ("seen", "empty", "too_short", "not_sampled", "sampled"):
            assert getattr(part_counts, name) == getattr(counts, name), name


@pytest.mark.parametrize(("documents", "shard"), [(None, (0, 1)), (None, (1, 2)), (300, (0, 1))])
def test_each_process_tokenises_its_share(documents: int | None, shard: tuple[int, int]) -> None:
    calls: Counter[int] = Counter()

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            calls[threading.get_ident()] += 1
            return super().__call__(*args, **kwargs)  # type: ignore[arg-type]

    tokenizer = Counting(tokenizer_object=byte_tokenizer().backend_tokenizer, bos_token="<s>")
    texts = ["long enough"] * 2000
    sample(texts, documents, tokenizer=tokenizer, shard=shard)
    alone = calls.total()
    calls.clear()
    found = Meeting(4).read(lambda: texts, documents, tokenizer=tokenizer, shard=shard)
    assert len(calls) == 4
    # A sample is chosen with what was known at the start of a block of 256: some more are tokenised.
    assert alone <= calls.total() <= (alone if documents is None else 1.2 * alone)
    assert max(calls.values()) <= 1.15 * calls.total() / 4
    used = [len(part) for part, _ in found]
    assert sum(used) == (300 if documents else 2000 // shard[1])
    assert max(used) <= (100 if documents else 1.02 * sum(used) / 4), "and the work of scoring is shared too"


def test_the_sample_is_uniform_and_depends_on_the_seed() -> None:
    texts = ["long enough", "no"] * 10
    drawn = Counter(index for seed in range(600) for index in indices(sample(texts, 3, seed=seed)[0]))
    assert set(drawn) == set(range(0, 20, 2))
    # 600 draws of 3 among 10: 180 each, standard deviation 11
    assert all(130 < count < 230 for count in drawn.values())


def test_the_sample_is_frozen() -> None:
    """A change of the draw would silently break every resumed run and every published sample."""
    assert indices(sample(["long enough"] * 1000, 8, seed=1)[0]) == [127, 366, 496, 586, 590, 601, 791, 880]


def test_a_sample_grows_by_adding_documents() -> None:
    texts = [f"document {i}" for i in range(200)]
    assert set(indices(sample(texts, 20)[0])) < set(indices(sample(texts, 40)[0]))


def test_the_sample_does_not_depend_on_the_kind_of_source(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(50)]
    path = tmp_path / "x.txt"
    path.write_text("\n".join(texts))
    assert indices(sample(path, 7)[0]) == indices(sample(texts, 7)[0])


def test_streams_give_the_first_eligible_documents_and_are_read_no_further() -> None:
    def stream() -> Iterator[str]:
        yield from ["one", "", "x", "two", "three"]
        raise AssertionError("read too far")

    documents, counts = sample(stream(), 2)
    assert indices(documents) == [0, 3]
    assert (counts.seen, counts.empty, counts.too_short, counts.not_sampled) == (4, 1, 1, 0)


def test_all_documents_are_streamed() -> None:
    read = 0

    def stream() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield "endless"

    documents, counts = sample_documents(
        open_corpus(stream()), byte_tokenizer(), documents=None, max_tokens=8, min_tokens=1, seed=0
    )
    assert read == 0
    for _ in range(5):
        next(documents)
    assert read == counts.seen == counts.used == 5


def test_only_documents_that_may_be_drawn_are_tokenised() -> None:
    calls = 0

    class Counting(PreTrainedTokenizerFast):
        def __call__(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            nonlocal calls
            calls += 1
            return super().__call__(*args, **kwargs)  # type: ignore[arg-type]

    tokenizer = Counting(tokenizer_object=byte_tokenizer().backend_tokenizer, bos_token="<s>")
    sample(["long enough"] * 2000, 10, tokenizer=tokenizer)
    assert 10 <= calls < 200, "10 (1 + ln(2000 / 10)) = 63 are expected"


def test_fewer_than_asked_for_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        documents, counts = sample(["one", "", "x", "two"], 5)
    assert indices(documents) == [0, 3]
    assert str(counts) == ("2 of 4 documents used (5 asked for), 1 empty, 1 too short (under 3 tokens)")
    assert str(counts) in caplog.text
    assert "a list of 4 texts" in caplog.text


def test_counts_in_words() -> None:
    _, counts = sample(["a text that is cut"] * 4 + [""], 3, shard=(0, 2))
    assert str(counts) == (
        "2 of 5 documents used, 1 empty, 1 not sampled, 1 left to other shards, 2 of the used cut to 16 tokens"
    )
    assert json.loads(json.dumps(dataclasses.asdict(counts)))["seen"] == 5


def test_no_usable_document_says_why() -> None:
    with pytest.raises(DataError) as caught:
        sample(["x", "", "yy", " "])
    message = str(caught.value)
    assert "a list of 4 texts" in message
    assert "0 of 4 documents used, 2 empty, 2 too short (under 3 tokens)" in message
    assert "lower min_tokens" in message


def test_a_shard_may_be_empty_when_the_sample_is_not() -> None:
    documents, counts = sample(["only one"], shard=(1, 2))
    assert documents == []
    assert (counts.used, counts.sampled, counts.other_shards) == (0, 1, 1)


@pytest.mark.parametrize(
    ("settings_", "match"),
    [
        ({"documents": 0}, "documents must be at least 1, found 0"),
        ({"min_tokens": 0}, "min_tokens must be at least 1, found 0"),
        ({"min_tokens": 16}, "raise max_tokens to at least 17"),
        ({"max_tokens": 1}, "no document can have min_tokens=3"),
        ({"shard": (2, 2)}, r"found \(2, 2\)"),
        ({"shard": (-1, 2)}, r"found \(-1, 2\)"),
        ({"shard": (0, 0)}, r"found \(0, 0\)"),
    ],
)
def test_settings_out_of_range(settings_: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        sample(["text"], **settings_)  # type: ignore[arg-type]


# Batches


def made(lengths: list[int]) -> list[TokenizedDocument]:
    """Documents whose tokens can be told apart: document i holds 100 i, 100 i + 1, ...; the first token is special."""
    return [
        TokenizedDocument(
            index=3 * i,
            position=i,
            ids=np.arange(100 * i, 100 * i + length, dtype=np.int32),
            special=np.arange(length) == 0,
            n_bytes=7 * length,
            cut=False,
        )
        for i, length in enumerate(lengths)
    ]


def check_rows(batch: Batch, documents: list[TokenizedDocument], pad_id: int, count_special: bool = False) -> None:
    """Every row holds its document and nothing else."""
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.position.dtype == torch.int64
    assert batch.counted.dtype == torch.bool
    assert batch.input_ids.shape == batch.attention_mask.shape == batch.counted.shape
    for row in range(len(batch)):
        document = documents[int(batch.position[row])]
        length = len(document.ids)
        assert batch.document_index[row] == document.index
        assert batch.n_bytes[row] == document.n_bytes
        assert batch.input_ids[row, :length].tolist() == document.ids.tolist()
        assert (batch.input_ids[row, length:] == pad_id).all()
        assert batch.attention_mask[row].tolist() == [1] * length + [0] * (batch.input_ids.shape[1] - length)
        counted = np.ones(length, bool) if count_special else ~document.special
        assert batch.counted[row].tolist() == counted.tolist() + [False] * (batch.input_ids.shape[1] - length)


@given(
    lengths=st.lists(st.integers(1, 30), max_size=40),
    token_budget=st.integers(1, 100),
    window=st.integers(1, 50),
    max_batch=st.none() | st.integers(1, 6),
    count_special=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_batches_cover_all_documents_once_and_obey_the_budget(
    lengths: list[int], token_budget: int, window: int, max_batch: int | None, count_special: bool
) -> None:
    documents = made(lengths)

    def run() -> list[Batch]:
        return list(
            batches(
                iter(documents),
                token_budget=token_budget,
                window=window,
                pad_id=99999,
                max_batch=max_batch,
                count_special=count_special,
            )
        )

    result = run()
    positions = [int(position) for batch in result for position in batch.position]
    assert sorted(positions) == list(range(len(documents)))
    for batch in result:
        check_rows(batch, documents, 99999, count_special)
        assert batch.attention_mask[0].all(), "the longest comes first and nothing is wider than it"
        assert len(batch) == 1 or batch.input_ids.numel() <= token_budget
        assert len(batch) <= min(max_batch or window, window)
        assert len({int(position) // window for position in batch.position}) == 1, "a batch stays within its window"
    for one, other in zip(result, run(), strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.equal(one.position, other.position)


# Reading ahead


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "babelscope reader"]


@given(count=st.integers(0, 30), ahead=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_what_is_read_ahead_is_the_same_in_the_same_order(count: int, ahead: int) -> None:
    assert list(prefetched(iter(range(count)), ahead)) == list(range(count))
    assert not readers()


def test_it_is_read_while_the_last_item_is_in_use_and_not_too_far() -> None:
    read = threading.Semaphore(0)
    taken = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number
            read.release()

    ahead = prefetched(source(), 5)
    assert taken == 0, "nothing before the first item is asked for"
    assert next(ahead) == 0
    for _ in range(6):  # the next five, and the one that finds no room, while nobody asks
        assert read.acquire(timeout=60)
    assert not read.acquire(timeout=0.05)
    assert taken == 7
    assert list(ahead) == list(range(1, 100))


def test_an_error_comes_unchanged_and_in_its_place() -> None:
    error = DataError("line 3")

    def source() -> Iterator[int]:
        yield from (1, 2)
        raise error

    ahead = prefetched(source(), 10)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError) as caught:
        next(ahead)
    assert caught.value is error
    assert not readers()


def test_who_stops_early_leaves_no_thread_and_no_open_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = prefetched(source(), 3)
    assert next(ahead) == 1
    assert readers()
    ahead.close()
    assert closed.is_set()
    assert not readers()
    for batch in batches((document for document in prefetched(iter(made([4] * 50)), 3)), token_budget=4, window=5):
        assert len(batch) == 1
        break
    del batch
    assert not readers(), "dropped"


# Batches again


def test_documents_of_one_length_keep_their_order() -> None:
    result = list(batches(made([2, 5, 2, 5, 2]), token_budget=10))
    assert [batch.position.tolist() for batch in result] == [[1, 3], [0, 2, 4]]


def test_batches_read_one_window_at_a_time() -> None:
    read = 0

    def endless() -> Iterator[TokenizedDocument]:
        nonlocal read
        while True:
            read += 1
            yield made([4])[0]

    stream = batches(endless(), token_budget=8, window=10)
    for _ in range(5):
        next(stream)
    assert read == 10


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=9))
@settings(max_examples=30, deadline=None)
def test_halves_of_a_batch_hold_the_same_rows_without_needless_padding(lengths: list[int]) -> None:
    documents = made(lengths)
    (batch,) = batches(documents, token_budget=1000)
    first, second = batch.halves()
    assert first.position.tolist() + second.position.tolist() == batch.position.tolist()
    assert 0 <= len(first) - len(second) <= 1
    for half in (first, second):
        check_rows(half, documents, 0)
        assert half.attention_mask[0].all()


def test_a_batch_of_one_has_no_halves() -> None:
    (batch,) = batches(made([5]), token_budget=3)
    with pytest.raises(ValueError, match="one document"):
        batch.halves()


@pytest.mark.parametrize("name", ["token_budget", "window", "max_batch"])
def test_batch_settings_out_of_range(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be at least 1, found 0"):
        batches([], **{"token_budget": 8, name: 0})


def test_from_text_to_batches(tmp_path: Path) -> None:
    path = tmp_path / "fr.txt"
    path.write_text("un\n\nun deux\nun deux deux\nun\n", encoding="utf-8")
    corpus: Corpus = open_corpus(path)
    documents, counts = sample_documents(corpus, word_tokenizer(), documents=None, max_tokens=3, min_tokens=1, seed=0)
    (batch,) = batches(documents, token_budget=100, pad_id=padding_id(word_tokenizer()))
    assert batch.input_ids.tolist() == [[2, 3, 1], [2, 3, 1], [2, 1, 1], [2, 1, 1]]
    assert batch.counted.tolist() == [[True, True, False]] * 2 + [[True, False, False]] * 2
    assert batch.document_index.tolist() == [2, 3, 0, 4]
    assert batch.position.tolist() == [1, 2, 0, 3]
    assert str(counts) == "4 of 5 documents used, 1 empty, 1 of the used cut to 3 tokens"


@pytest.mark.parametrize(
    "text", ["l'été, " * 400, "été" * 1000, "a" * 3000, "日本語のテキスト。" * 300, " " * 4000 + "x"]
)
@pytest.mark.parametrize("max_tokens", [2, 16, 50])
def test_a_part_of_a_long_text_gives_the_same_tokens(text: str, max_tokens: int) -> None:
    for tokenizer in (byte_tokenizer(), AutoTokenizer.from_pretrained(tinybabel.MODEL), ByT5Tokenizer()):
        (document,), _ = sample([text], tokenizer=tokenizer, max_tokens=max_tokens, min_tokens=1)
        whole = tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        assert document.ids.tolist() == whole
        assert document.cut == (len(tokenizer(text, verbose=False)["input_ids"]) > max_tokens)


def test_no_more_of_a_text_is_tokenised_than_its_tokens_need() -> None:
    tokenizer = byte_tokenizer()
    longest = 0

    class Watched:
        def __getattr__(self, name: str) -> object:
            return getattr(tokenizer, name)

        def __call__(self, text: str, **options: object) -> object:
            nonlocal longest
            longest = max(longest, len(text))
            return tokenizer(text, **options)

    (document,), _ = sample(["mot " * 750_000], tokenizer=Watched(), max_tokens=256)
    assert len(document.ids) == 256
    assert longest < 20_000, "3 MB, of which 256 tokens are wanted"
