"""Ranges of stored tensors, read in batches of bounded size: for what is cast or sent elsewhere.

What is only copied goes straight into live memory (`content.fill`); this is for all the rest, and
tensors larger than a batch come in several ranges, so memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tidemill.checkpoint import content
from tidemill.checkpoint.fragments import StoredTensor, Wanted, plan_copies
from tidemill.checkpoint.manifest import StoredFile


def read_ranges(
    wanted: Sequence[Wanted],
    stored: Mapping[str, StoredTensor],
    source: content.Source,
    files: Mapping[str, StoredFile],
    *,
    most: int,
    verify: bool,
) -> Iterator[tuple[int, Wanted, Tensor]]:
    """Read ranges of tensors, in order.

    Args:
        wanted: The ranges, of tensors that are all in `stored`.
        stored: Where their bytes are.
        source: Has the files.
        files: What is known of them.
        most: Bytes per batch; twice as much memory may be held.
        verify: Compare every block with its checksum; then larger batches read fewer bytes twice.

    Yields:
        (index in `wanted`, the range or a part of it, its elements in the stored dtype, flat).

    Raises:
        CorruptCheckpoint: See `content.fill`.
    """
    for batch in cut_batches(wanted, most):
        yield from _read(batch, stored, source, files, verify=verify)


def cut_batches(wanted: Iterable[Wanted], most: int) -> Iterator[list[tuple[int, Wanted]]]:
    """Group ranges, in order, cut where a batch is full.

    Args:
        wanted: The ranges.
        most: Bytes per batch, enough for the largest element.

    Yields:
        (index in `wanted`, the range or a part of it) of each batch.
    """
    batch: list[tuple[int, Wanted]] = []
    room = most
    for index, want in enumerate(wanted):
        done = 0
        while done < want.count:
            if room < want.itemsize:
                yield batch
                batch, room = [], most
            count = min(want.count - done, room // want.itemsize)
            batch.append((index, Wanted(want.name, want.start + done, count, want.itemsize)))
            done += count
            room -= count * want.itemsize
    if batch:
        yield batch


def _read(
    batch: Sequence[tuple[int, Wanted]],
    stored: Mapping[str, StoredTensor],
    source: content.Source,
    files: Mapping[str, StoredFile],
    *,
    verify: bool,
) -> list[tuple[int, Wanted, Tensor]]:
    read = [
        (index, want, torch.empty(want.count, dtype=content.dtype_of(stored[want.name].dtype)))
        for index, want in batch
    ]
    targets = [content.Target(want, held.view(torch.uint8)) for _, want, held in read]
    plan = plan_copies([want for _, want in batch], stored)
    content.fill(targets, plan, source, files, verify=verify)
    return read
