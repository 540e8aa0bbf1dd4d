"""The model's promises: causal, relative, dropout by sample alone, and room for a user's own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tidemill.errors import SpecError
from tidemill.plan.run import count_parameters
from tidemill.spec.strategy import Recompute
from tidemill.spec.training import CustomModelSpec, GptSpec
from tidemill.train.engine import IGNORE, LossModel
from tidemill.train.model import (
    Gpt,
    apply_recompute,
    build_model,
    keyed_dropout,
    rotary_SC,
    rotate,
    takes_keys,
)

SPEC = GptSpec(layers=2, heads=2, width=16)
VOCAB = 31


def _gpt(dropout: float = 0.0) -> Gpt:
    spec = GptSpec(layers=2, heads=2, width=16, dropout=dropout)
    model = build_model(spec, vocab=VOCAB, sequence=8, seed=3)
    assert isinstance(model, Gpt)
    return model


def _tokens(batch: int, sequence: int) -> Tensor:
    return torch.randint(0, VOCAB, (batch, sequence), generator=torch.Generator().manual_seed(5))


def test_no_token_sees_a_later_one() -> None:
    model = _gpt()
    inputs = _tokens(2, 8)
    changed = inputs.clone()
    changed[:, 5] = (changed[:, 5] + 1) % VOCAB
    before, after = (model(x, torch.zeros(2, dtype=torch.int64)) for x in (inputs, changed))
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_rotary_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    rotary = rotary_SC(12, 8, torch.device("cpu"))
    turned_q = rotate(q.expand(1, 1, 12, 8), rotary)[0, 0]
    turned_k = rotate(k.expand(1, 1, 12, 8), rotary)[0, 0]
    scores = turned_q @ turned_k.T
    for distance in range(11):
        along = scores.diagonal(distance)
        assert torch.allclose(along, along[0].expand_as(along), atol=1e-5)


def test_a_fresh_model_knows_nothing_and_is_a_function_of_the_seed() -> None:
    model = LossModel(_gpt())
    inputs, targets = _tokens(4, 8), _tokens(4, 8).flip(1)
    loss = model(inputs, targets, torch.arange(4)) / targets.numel()
    assert float(loss.detach()) == pytest.approx(math.log(VOCAB), abs=0.05)
    again = build_model(SPEC, vocab=VOCAB, sequence=8, seed=3).state_dict()
    other = build_model(SPEC, vocab=VOCAB, sequence=8, seed=4).state_dict()
    for name, tensor in _gpt().state_dict().items():
        assert torch.equal(tensor, again[name])
    assert not torch.equal(again["embed.weight"], other["embed.weight"])


def test_embeddings_are_tied_and_the_plan_counts_the_same_weights() -> None:
    model = _gpt()
    assert "embed.weight" in dict(model.named_parameters())
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == count_parameters(SPEC, vocab=VOCAB)


def test_masked_targets_weigh_nothing() -> None:
    model = LossModel(_gpt())
    inputs, targets, keys = _tokens(2, 8), _tokens(2, 8), torch.arange(2)
    masked = targets.clone()
    masked[1] = IGNORE
    alone = model(inputs[:1], targets[:1], keys[:1])
    assert float(model(inputs, masked, keys).detach()) == pytest.approx(
        float(alone.detach()), rel=1e-6
    )
    nothing = model(inputs, torch.full_like(targets, IGNORE), keys)
    nothing.backward()
    assert float(nothing.detach()) == 0.0
    assert all(
        not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None
    )


def test_a_dropout_mask_belongs_to_the_sample() -> None:
    x = torch.ones(3, 16, 64)
    keys = torch.tensor([7, 2**40 + 7, 8])
    together = keyed_dropout(x, 0.25, keys, site=1)
    for row, key in enumerate(keys):
        alone = keyed_dropout(x[:1], 0.25, key[None], site=1)
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together, keyed_dropout(x, 0.25, keys, site=2))


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    x = torch.ones(64, 32, 64)
    dropped = keyed_dropout(x, 0.1, torch.arange(64), site=3)
    count = x.numel()
    sigma = math.sqrt(0.1 * 0.9 / count)
    assert float((dropped == 0).double().mean()) == pytest.approx(0.1, abs=5 * sigma)
    assert float(dropped.double().mean()) == pytest.approx(1.0, abs=5 * sigma / 0.9)
    # No position and no channel is special.
    by_position = (dropped == 0).double().mean(dim=(0, 2))
    assert float(by_position.std()) < 3 * math.sqrt(0.1 * 0.9 / (64 * 64))


def test_dropout_is_off_in_evaluation() -> None:
    model, inputs, keys = _gpt(0.5), _tokens(2, 8), torch.arange(2)
    assert not torch.equal(model(inputs, keys), model(inputs, keys + 10))
    model.eval()
    assert torch.equal(model(inputs, keys), model(inputs, keys + 10))


def test_recompute_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in Recompute:
        model = _gpt(0.3)
        apply_recompute(model, recompute)
        LossModel(model)(_tokens(2, 8), _tokens(2, 8), torch.arange(2)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for kept, recomputed in zip(*gradients, strict=True):
        assert kept is not None
        assert recomputed is not None
        assert torch.equal(kept, recomputed)


class Keyless(nn.Module):
    """The smallest model a user may bring."""

    def __init__(self, vocab: int, width: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.head = nn.Linear(width, vocab)

    def forward(self, inputs_BS: Tensor) -> Tensor:
        return self.head(self.embed(inputs_BS))


def make_keyless(vocab: int, sequence: int, **options: Any) -> nn.Module:
    assert sequence == 8
    return Keyless(vocab, **options)


def make_nothing(vocab: int, sequence: int) -> int:
    return vocab + sequence


def test_a_custom_model_gets_vocabulary_sequence_and_options() -> None:
    spec = CustomModelSpec(factory=f"{__name__}:make_keyless", options={"width": 6})
    model = build_model(spec, vocab=VOCAB, sequence=8, seed=1)
    assert not takes_keys(model)
    assert model.get_parameter("embed.weight").shape == (VOCAB, 6)
    loss = LossModel(model)(_tokens(2, 8), _tokens(2, 8), torch.arange(2))
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("no_such_module:make", "cannot import"),
        (f"{__name__}:no_such_function", "cannot import"),
        (f"{__name__}:make_nothing", "returned int"),
    ],
)
def test_a_factory_that_cannot_work_is_named(factory: str, told: str) -> None:
    with pytest.raises(SpecError, match=told) as caught:
        build_model(CustomModelSpec(factory=factory), vocab=VOCAB, sequence=8, seed=1)
    assert caught.value.key == "model.factory"


def test_recompute_wants_blocks() -> None:
    with pytest.raises(SpecError, match=r"memory\.recompute"):
        apply_recompute(Keyless(VOCAB), Recompute.blocks)
