"""Checksum: the same however a state is cut, and another one for any other state."""

from __future__ import annotations

import pytest
import torch

from tests.checkpoint.states import make_tensors, split, whole
from tidemill.checkpoint import checksum as module
from tidemill.checkpoint.checksum import add_up, checksum


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_add_up_to_the_whole_in_any_cut(size: int) -> None:
    tensors = make_tensors(3)
    shares = [split(tensors, rank, size, "cut") for rank in range(size)]
    assert add_up([checksum(share) for share in shares]) == checksum(whole(tensors))


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = checksum(whole(make_tensors(3)))
    monkeypatch.setattr(module, "CHUNK", 7)
    assert checksum(whole(make_tensors(3))) == expected


def test_a_flipped_bit_of_any_tensor_shows() -> None:
    before = checksum(whole(make_tensors(3)))
    for name, tensor in make_tensors(3).items():
        for bit in range(8 * tensor.element_size()) if tensor.numel() else ():
            tensors = make_tensors(3)
            flat = tensors[name].view(-1).view(torch.uint8)
            flat[bit // 8 - tensor.element_size()] ^= 1 << bit % 8
            assert checksum(whole(tensors)) != before, (name, bit)


def test_elements_and_tensors_that_changed_places_show() -> None:
    tensors = make_tensors(3)
    before = checksum(whole(tensors))
    tensors["param.wide"] = tensors["param.wide"].flip(0)
    assert checksum(whole(tensors)) != before
    tensors = make_tensors(3)
    tensors["param.wide"], tensors["exp_avg.wide"] = tensors["exp_avg.wide"], tensors["param.wide"]
    assert checksum(whole(tensors)) != before
