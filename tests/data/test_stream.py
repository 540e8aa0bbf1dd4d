"""Samples are windows of the corpus, by number alone, whoever asks and however they are dealt."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.data import order, shards
from tidemill.data.shards import Layout, PackedTokens, ShardWriter
from tidemill.data.stream import IGNORE, Samples, Split, Stream, SyntheticStream, TokenStream
from tidemill.errors import DataError
from tidemill.plan.batch import Slot, make_batch_plan
from tidemill.storage import locate

S = 8
SMALL = Layout(shard_tokens=64, batch_tokens=16)


def pack(root: Path, tokens: np.ndarray, vocab: int = 1000) -> PackedTokens:
    with ShardWriter(locate(str(root)), "train", vocab, SMALL) as writer:
        writer.write(tokens.astype(np.uint32))
    return PackedTokens(str(root), writer.shards, SMALL)


def token_stream(
    root: Path, count: int, *, seed: int = 1, sequence: int = S, split: Split = "train"
) -> TokenStream:
    """A stream over the tokens 0, 1, 2, ... so that a token tells its own place."""
    packed = pack(root, np.arange(count), max(2, count))
    return TokenStream(packed, seed=seed, sequence=sequence, split=split)


def synthetic(**fields: Any) -> SyntheticStream:
    return SyntheticStream(
        **{
            "vocab": 32,
            "samples": 50,
            "ragged": 0.0,
            "seed": 1,
            "sequence": 32,
            "split": "train",
            **fields,
        }
    )


def take(stream: Stream, first: int, count: int) -> Samples:
    return stream.take(first, Slot(start=0, size=count))


def rows(samples: Samples) -> set[tuple[Any, ...]]:
    """Each sample as a value."""
    return {
        (int(key), tuple(given.tolist()), tuple(wanted.tolist()))
        for key, given, wanted in zip(samples.keys, samples.inputs, samples.targets, strict=True)
    }


def both_streams(root: Path) -> list[Stream]:
    return [token_stream(root, 203), synthetic(ragged=0.5)]


@given(
    count=st.integers(2, 200),
    sequence=st.integers(2, 40),
)
def test_samples_cover_the_corpus_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, sequence: int
) -> None:
    root = tmp_path_factory.mktemp("corpus")
    stream = token_stream(root, count, sequence=sequence, split="val")
    assert stream.samples == -(-(count - 1) // sequence)
    samples = take(stream, 0, stream.samples)
    learnt = samples.targets != IGNORE
    assert samples.targets[learnt].tolist() == list(range(1, count))
    assert samples.inputs[learnt].tolist() == list(range(count - 1))
    assert (samples.inputs[~learnt] == 0).all()
    assert samples.keys.tolist() == list(range(stream.samples))


def test_sample_k_is_the_window_at_k_times_s(tmp_path: Path) -> None:
    stream = token_stream(tmp_path, 100, split="val")
    samples = take(stream, 3, 2)
    assert samples.inputs.tolist() == [list(range(24, 32)), list(range(32, 40))]
    assert samples.targets.tolist() == [list(range(25, 33)), list(range(33, 41))]
    assert samples.keys.tolist() == [3, 4]


def test_the_last_sample_may_be_short(tmp_path: Path) -> None:
    samples = take(token_stream(tmp_path, 12, split="val"), 1, 1)
    assert samples.inputs.tolist() == [[8, 9, 10, 0, 0, 0, 0, 0]]
    assert samples.targets.tolist() == [[9, 10, 11, *[IGNORE] * 5]]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_tokens_give_no_samples(tmp_path: Path, count: int) -> None:
    stream = token_stream(tmp_path, count)
    assert stream.samples == 0
    with pytest.raises(ValueError, match="of 0"):
        take(stream, 0, 1)


def test_arrays_are_what_torch_takes(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        samples = take(stream, 0, 3)
        for array, shape in zip(
            (samples.inputs, samples.targets, samples.keys),
            ((3, samples.inputs.shape[1]), samples.inputs.shape, (3,)),
            strict=True,
        ):
            assert array.dtype == np.int64
            assert array.shape == shape
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert array.flags.owndata  # nothing of the shared pages can be written to


def test_training_follows_the_order_of_the_epoch(tmp_path: Path) -> None:
    stream = token_stream(tmp_path, 401, seed=9)
    assert stream.samples == 50
    samples = take(stream, 45, 110)  # across three ends of an epoch
    expected = [order.place(number, 50, 9)[1] * S for number in range(45, 155)]
    assert samples.inputs[:, 0].tolist() == expected
    assert samples.keys.tolist() == list(range(45, 155))


def test_every_epoch_gives_every_sample_once(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        epochs = [take(stream, e * stream.samples, stream.samples) for e in range(3)]
        contents = [[row.tobytes() for row in epoch.inputs] for epoch in epochs]
        assert Counter(contents[0]) == Counter(contents[1]) == Counter(contents[2])
        assert contents[0] != contents[1] != contents[2]


def test_another_seed_is_another_order(tmp_path: Path) -> None:
    streams = [token_stream(tmp_path / str(seed), 203, seed=seed) for seed in (1, 2)]
    one, other = (take(stream, 0, 26).inputs for stream in streams)
    assert not np.array_equal(one, other)
    assert not np.array_equal(take(synthetic(seed=2), 0, 9).inputs, take(synthetic(), 0, 9).inputs)


@pytest.mark.parametrize("micro_size", [1, 3, 16])
def test_samples_do_not_depend_on_the_world(tmp_path: Path, micro_size: int) -> None:
    global_size = 16
    for stream in both_streams(tmp_path):
        lives: list[list[set[tuple[Any, ...]]]] = []
        for world in range(1, 6):
            plan = make_batch_plan(global_size, micro_size, world)
            slots = [slot for rank in range(world) for slot in plan.slots(rank) if slot.size]
            steps = range(0, 10 * global_size, global_size)
            lives.append(
                [
                    set().union(*(rows(stream.take(first, slot)) for slot in slots))
                    for first in steps
                ]
            )
            assert all(len(step) == global_size for step in lives[-1])
        assert all(life == lives[0] for life in lives)


def test_a_sample_does_not_depend_on_what_was_asked_before(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        whole = take(stream, 0, 60)
        for number in (59, 0, 31, 31, 7):
            alone = stream.take(number - 5, Slot(start=5, size=1)) if number > 5 else None
            alone = alone or take(stream, number, 1)
            assert rows(alone) <= rows(whole)
            assert alone.keys.tolist() == [number]


def test_an_empty_slot_gives_the_first_sample_masked(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        first = take(stream, 20, 1)
        dummy = stream.take(20, Slot(start=3, size=0))
        assert dummy.inputs.tolist() == first.inputs.tolist()
        assert dummy.keys.tolist() == [20]
        assert (dummy.targets == IGNORE).all()


def test_validation_ends(tmp_path: Path) -> None:
    for stream in (token_stream(tmp_path, 81, split="val"), synthetic(samples=10, split="val")):
        assert take(stream, 0, 10).keys.tolist() == list(range(10))
        with pytest.raises(ValueError, match="asked for samples 9 to 10 of 10 in val"):
            take(stream, 9, 2)
        # A step's dummy sample is its first, which there is.
        assert (stream.take(9, Slot(start=1, size=0)).targets == IGNORE).all()


def test_a_sample_before_the_first_is_refused(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        with pytest.raises(ValueError, match="asked for samples -1"):
            take(stream, -1, 1)


def test_a_stream_survives_pickling(tmp_path: Path) -> None:
    for stream in both_streams(tmp_path):
        before = take(stream, 0, 30)  # with files open
        again: Stream = pickle.loads(pickle.dumps(stream))  # noqa: S301 - our own bytes
        assert rows(take(again, 0, 30)) == rows(before)


def test_local_batches_are_views_of_the_file(tmp_path: Path) -> None:
    packed = pack(tmp_path, np.arange(203))
    packed.gather([0, 100], 50)
    views = list(packed._cached.values())
    assert views
    assert not any(view.flags.owndata or view.flags.writeable for view in views)
    assert sum(len(view) for view in views) < 203  # only what was asked for


@given(starts=st.lists(st.integers(0, 202), min_size=1, max_size=6), width=st.integers(1, 90))
def test_windows_cross_batches_and_shards(
    tmp_path_factory: pytest.TempPathFactory, starts: list[int], width: int
) -> None:
    packed = pack(tmp_path_factory.mktemp("corpus"), np.arange(203))
    expected = [
        [token if token < 203 else -1 for token in range(start, start + width)] for start in starts
    ]
    assert packed.gather(starts, width).tolist() == expected


@pytest.mark.parametrize("pieces", [[203], [1] * 203, [16] * 12 + [11], [100, 0, 103]])
def test_shards_do_not_depend_on_how_tokens_arrive(tmp_path: Path, pieces: list[int]) -> None:
    tokens = np.arange(203, dtype=np.uint32)
    cuts = list(itertools.accumulate(pieces))
    with ShardWriter(locate(str(tmp_path)), "train", 1000, SMALL) as writer:
        for start, end in zip([0, *cuts], cuts, strict=False):
            writer.write(tokens[start:end])
    assert [shard.tokens for shard in writer.shards] == [64, 64, 64, 11]
    assert writer.tokens == 203
    for shard in writer.shards:
        assert (tmp_path / shard.name).stat().st_size == shard.size
    packed = PackedTokens(str(tmp_path), writer.shards, SMALL)
    assert packed.gather([0], 203)[0].tolist() == tokens.tolist()


def test_no_more_batches_are_held_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "LOCAL_BATCHES", 2)
    packed = pack(tmp_path, np.arange(203))
    assert packed.gather([0], 203)[0].tolist() == list(range(203))  # needs 13 of them
    assert len(packed._cached) == 2
    packed.gather([0], 1)
    packed.gather([100], 1)
    assert list(packed._cached) == [0, 6]  # the last ones used
    packed.gather([0], 1)  # used again, so not the next to go
    packed.gather([200], 1)
    assert list(packed._cached) == [0, 12]


def test_threads_may_share_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LOCAL_BATCHES", 2)
    stream = token_stream(tmp_path, 203)
    expected = [rows(take(stream, first, 4)) for first in range(60)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda first: rows(take(stream, first, 4)), range(60)))
    assert found == expected


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    stream = token_stream(tmp_path, 203)
    (tmp_path / "train-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"cannot read .*train-00002\.arrow.*rebuilt") as caught:
        take(stream, 0, stream.samples)
    assert "\n" not in str(caught.value)


def test_a_vocabulary_beyond_32_bits_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.vocab"):
        shards.token_type(2**32 + 1)
    assert shards.token_type(2**32) == np.uint32


# Made-up samples.


def test_synthetic_samples_are_noisy_arithmetic_sequences() -> None:
    samples = take(synthetic(samples=500, sequence=64), 0, 500)
    assert samples.inputs.min() == 0
    assert samples.inputs.max() == 31
    assert np.array_equal(samples.inputs[:, 1:], samples.targets[:, :-1])
    steps = (samples.targets - samples.inputs) % 32
    small = np.isin(steps, (1, 2, 3))
    assert 0.8 < small.mean() < 0.95  # a token in 16 is noise and spoils two steps
    commonest = [Counter(row.tolist()).most_common(1)[0][0] for row in steps]
    assert set(commonest) == {1, 2, 3}


def test_synthetic_samples_differ() -> None:
    samples = take(synthetic(samples=500, sequence=64), 0, 500)
    assert len({row.tobytes() for row in samples.inputs}) == 500


def test_synthetic_validation_is_not_training() -> None:
    train = {row.tobytes() for row in take(synthetic(sequence=256), 0, 50).inputs}
    val = {row.tobytes() for row in take(synthetic(sequence=256, split="val"), 0, 50).inputs}
    assert not train & val


def test_a_ragged_share_loses_its_tail_and_some_lose_all() -> None:
    stream = synthetic(samples=2000, ragged=0.25)
    samples, whole = take(stream, 0, 2000), take(synthetic(samples=2000), 0, 2000)
    kept = (samples.targets != IGNORE).sum(axis=1)
    assert np.array_equal(samples.inputs, whole.inputs)
    for targets, count, unmasked in zip(samples.targets, kept, whole.targets, strict=True):
        assert targets[:count].tolist() == unmasked[:count].tolist()
        assert (targets[count:] == IGNORE).all()
    assert (kept < 32).mean() == pytest.approx(0.25, abs=0.04)
    assert (kept == 0).mean() == pytest.approx(0.25 / 4, abs=0.03)
    assert len(set(kept.tolist())) == 33


@pytest.mark.parametrize(("ragged", "whole"), [(0.0, 1.0), (1.0, 0.0)])
def test_none_or_all_are_ragged(ragged: float, whole: float) -> None:
    samples = take(synthetic(samples=200, ragged=ragged), 0, 200)
    assert ((samples.targets != IGNORE).all(axis=1)).mean() == whole


def test_synthetic_samples_are_fixed_for_good() -> None:
    """A later version must not change what this one's curves were made of."""
    samples = take(synthetic(samples=10, sequence=16, ragged=0.5), 0, 1)
    assert samples.inputs.tolist() == [
        [17, 12, 13, 14, 15, 16, 17, 15, 19, 20, 21, 22, 23, 24, 25, 26]
    ]
    assert samples.targets.tolist() == [
        [12, 13, 14, 15, 16, 17, 15, 19, 20, 21, -100, -100, -100, -100, -100, -100]
    ]
