"""A small model with everything that strategies and checkpoints treat apart.

Trained and frozen parameters in one block and in blocks of their own, weights tied under two names,
sizes that no world divides, and buffers that stand still, move, count and are not kept.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.kit.training import SEQUENCE, VOCAB
from tidemill.spec.training import CustomModelSpec
from tidemill.train.model import build_model

MIXED_FROZEN = ("blocks.0.", "blocks.1.up.weight", "blocks.1.norm.bias", "lens.")
BOTTOM_FROZEN = ("embed.", "lens.", "blocks.0.", "blocks.1.")
"""Nothing below the last block is trained, and what is tied is frozen."""


class MixedBlock(nn.Module):
    """Pre-norm MLP with biases, added to the residual stream."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width + 1)
        self.down = nn.Linear(2 * width + 1, width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        return x_BSD + self.down(functional.gelu(self.up(self.norm(x_BSD))))


class Mixed(nn.Module):
    """Embedding, blocks and a tied head."""

    scale: Tensor
    warmth: Tensor
    calls: Tensor

    def __init__(self, vocab: int, width: int, frozen: tuple[str, ...]) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(MixedBlock(width) for _ in range(3))
        self.lens = nn.Linear(width, width, bias=False)
        self.same_lens = self.lens
        self.gain = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.3)
        self.register_buffer("scale", 1.0 + torch.rand(width) / 10)
        self.register_buffer("warmth", torch.tensor([1.1]))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))

    def forward(self, inputs_BS: Tensor, keys_B: Tensor) -> Tensor:  # noqa: ARG002 - asked for, not needed
        if self.training:
            self.calls += 1
            self.warmth *= 0.875
        x_BSD = self.embed(inputs_BS)
        x_BSD = self.same_lens(x_BSD) + self.lens(x_BSD * self.scale.to(x_BSD.dtype))
        for block in self.blocks:
            x_BSD = block(x_BSD)
        return self.head(x_BSD * self.gain)


def make_mixed(
    *, vocab: int, sequence: int, width: int = 10, frozen: tuple[str, ...] = MIXED_FROZEN
) -> Mixed:
    """What `mixed` names as its factory."""
    return Mixed(vocab, width, frozen)


def mixed(**options: object) -> CustomModelSpec:
    """The spec of a `Mixed` model."""
    return CustomModelSpec(factory="tests.kit.mixed:make_mixed", options=dict(options))


def build_mixed(seed: int, **options: object) -> nn.Module:
    """A `Mixed` model as the tiny runs build it."""
    return build_model(mixed(**options), vocab=VOCAB, sequence=SEQUENCE, seed=seed)
