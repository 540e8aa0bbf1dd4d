"""Streams: any samples of a run, by number, as arrays.

A stream has no position. What it gives is a function of (seed, number of the sample) alone, so the
same samples come out whichever rank asks for them, and a resumed run needs no fast-forward.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tidemill.data import order
from tidemill.data.places import Integers, Words, find_places, mark_all, mix_all
from tidemill.data.shards import PackedTokens
from tidemill.plan.batch import Slot

IGNORE = -100
Split = Literal["train", "val"]

STRIDES = 3
NOISE_ONE_IN = 16


@dataclass(frozen=True, slots=True)
class Samples:
    """What one slot holds.

    Attributes:
        inputs: Tokens, int64 of shape (B, S).
        targets: The token after each input, or `IGNORE` where nothing is to be learnt; same shape.
        keys: Number of each sample within the run (or within validation), int64 of shape (B,).
        marks: `order.mark` of each sample that counts, int64 of shape (B,); an empty slot has none.
    """

    inputs: Integers
    targets: Integers
    keys: Integers
    marks: Integers


class Stream(Protocol):
    """Samples by number; picklable."""

    @property
    def samples(self) -> int:
        """Samples per epoch; for validation, all there are."""
        ...

    def take(self, first: int, slot: Slot) -> Samples:
        """Give the samples of one slot of the step that begins with sample `first`.

        Args:
            first: Number of the step's first sample within the run (or within validation).
            slot: Which of the step's samples; an empty one gets the step's first sample with every
                target masked.

        Raises:
            ValueError: A sample before 0, or beyond the end of validation, was asked for.
            DataError: The corpus cannot be read.
        """
        ...


class TokenStream:
    """Windows of a packed corpus: sample k is tokens [k * S, k * S + S + 1), the last one padded.

    Args:
        tokens: The split's tokens.
        seed: The run's seed.
        sequence: S, tokens per sample.
        split: `train` is shuffled anew every epoch and never ends; `val` is in order and ends.
    """

    def __init__(self, tokens: PackedTokens, *, seed: int, sequence: int, split: Split) -> None:
        self.samples = count_windows(tokens.tokens, sequence)
        self._tokens = tokens
        self._seed = seed
        self._sequence = sequence
        self._split: Split = split

    def take(self, first: int, slot: Slot) -> Samples:
        """See `Stream.take`."""
        keys = _keys(first, slot)
        places = _places(keys, self.samples, self._seed, self._split)
        starts: list[int] = (places * self._sequence).tolist()
        windows = self._tokens.gather(starts, self._sequence + 1)
        inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
        if self._tokens.tokens < max(starts) + self._sequence + 1:
            absent = targets < 0
            inputs[absent] = 0
            targets[absent] = IGNORE
        if not slot.size:
            targets[:] = IGNORE
        return Samples(inputs, targets, keys, _marks(keys, places, self.samples, slot))


class SyntheticStream:
    """Made-up samples: arithmetic sequences of a small stride, with some tokens replaced by noise.

    Args:
        vocab: Number of distinct tokens.
        samples: Samples per epoch of this split.
        ragged: Share of samples whose tail targets are masked; a quarter of them keep no target.
        seed: The run's seed.
        sequence: S, tokens per sample.
        split: As for `TokenStream`; the two splits are drawn apart.
    """

    def __init__(
        self, *, vocab: int, samples: int, ragged: float, seed: int, sequence: int, split: Split
    ) -> None:
        self.samples = samples
        self._vocab = vocab
        self._ragged = ragged
        self._seed = seed
        self._sequence = sequence
        self._split: Split = split

    def take(self, first: int, slot: Slot) -> Samples:
        """See `Stream.take`."""
        keys = _keys(first, slot)
        places = _places(keys, self.samples, self._seed, self._split)
        words = places.astype(np.uint64)
        purpose = functools.partial(self._words, words)
        at = np.arange(self._sequence + 1, dtype=np.uint64)
        vocab = np.uint64(self._vocab)
        begin = purpose("begin")[:, None] % vocab
        stride = purpose("stride")[:, None] % np.uint64(STRIDES) + np.uint64(1)
        noise = mix_all(purpose("noise")[:, None] + at * np.uint64(order.GOLDEN))
        windows = (begin + stride * at) % vocab
        replaced = noise % np.uint64(NOISE_ONE_IN) == 0
        windows = np.where(replaced, (noise >> np.uint64(32)) % vocab, windows).astype(np.int64)
        inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
        targets[at[None, :-1] >= self._kept(words)[:, None]] = IGNORE
        if not slot.size:
            targets[:] = IGNORE
        return Samples(inputs, targets, keys, _marks(keys, places, self.samples, slot))

    def _kept(self, places: Words) -> Words:
        """How many targets of each sample are not masked."""
        chance = self._words(places, "ragged") / 2.0**64
        length = self._words(places, "length")
        shorter = np.where(length % np.uint64(4) == 0, 0, (length >> np.uint64(2)))
        shorter = shorter % np.uint64(self._sequence)
        return np.where(chance < self._ragged, shorter, np.uint64(self._sequence))

    def _words(self, places: Words, purpose: str) -> Words:
        """One random word per sample, for one purpose."""
        key = order.derive_key(f"synthetic {self._seed} {self._split} {purpose}")
        return mix_all(mix_all(places + np.uint64(1)) ^ np.uint64(key))


def count_windows(tokens: int, sequence: int) -> int:
    """Samples of a corpus of so many tokens; the last one may be short."""
    return max(0, -(-(tokens - 1) // sequence))


def _keys(first: int, slot: Slot) -> Integers:
    """Numbers of a slot's samples; of the step's first one if it is empty."""
    start = first + slot.start if slot.size else first
    return np.arange(start, start + max(1, slot.size), dtype=np.int64)


def _places(keys: Integers, size: int, seed: int, split: Split) -> Integers:
    """Which of the corpus's samples the numbered samples are."""
    if keys[0] < 0 or size < 1 or (split == "val" and keys[-1] >= size):
        raise ValueError(f"asked for samples {keys[0]} to {keys[-1]} of {size} in {split}")
    return keys if split == "val" else find_places(keys, size, seed)


def _marks(keys: Integers, places: Integers, size: int, slot: Slot) -> Integers:
    """What the ledger adds up; of a dummy sample, nothing."""
    return mark_all(keys[: slot.size], places[: slot.size], size)
