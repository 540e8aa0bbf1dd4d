"""A GPT whose dropout depends on the sample, never on the rank; and the way to a user's own module.

Dropout masks are a counter-based hash of (seed, sample, site, position), so they are the same on
every device, world size and recomputation, and no random state has to be saved.

Shape suffixes: B batch, S sequence, D width, H heads, C channels of a head, V vocabulary.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tidemill.errors import SpecError
from tidemill.spec.strategy import Recompute
from tidemill.spec.training import CustomModelSpec, GptSpec, ModelSpec

ROTARY_BASE = 10_000.0
INITIAL_STD = 0.02
MASK_BITS = 24


def keyed_dropout(x_BSD: Tensor, p: float, keys_B: Tensor, site: int) -> Tensor:
    """Zero each element with probability `p`, as a pure function of its key, site and position.

    Args:
        x_BSD: Activations.
        p: Probability of zeroing, in [0, 1).
        keys_B: int64, one per sample.
        site: Which dropout of the network this is.

    Returns:
        Activations scaled by 1 / (1 - p) where kept, in the dtype of `x_BSD`.

    Source: mixing constants of "lowbias32", C. Wellons, Hash Function Prospector (2018).
    """
    if p == 0.0:
        return x_BSD
    _, S, D = x_BSD.shape
    low_B, high_B = keys_B & 0x7FFFFFFF, (keys_B >> 31) & 0x7FFFFFFF
    seed_B = _mix(_mix(low_B.int() ^ _mix(high_B.int() + site)) + site)
    position_SD = torch.arange(S * D, device=x_BSD.device, dtype=torch.int32).view(S, D)
    bits_BSD = _mix(position_SD ^ seed_B[:, None, None]) & ((1 << MASK_BITS) - 1)
    kept_BSD = bits_BSD >= int(p * (1 << MASK_BITS))
    return x_BSD * kept_BSD.to(x_BSD.dtype) * (1.0 / (1.0 - p))


def _mix(x: Tensor) -> Tensor:
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B as a signed 32-bit integer
    return x ^ ((x >> 16) & 0xFFFF)


def rotary_SC(sequence: int, channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, fp32, shape (S, C / 2) each.

    Source: Su et al., RoFormer, arXiv 2104.09864.
    """
    exponent = torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels
    angle = torch.outer(
        torch.arange(sequence, device=device, dtype=torch.float32), ROTARY_BASE**-exponent
    )
    return angle.cos(), angle.sin()


def rotate(x_BHSC: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of the channels against each other, in fp32."""
    cos, sin = rotary
    left, right = x_BHSC.float().chunk(2, dim=-1)
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1).to(x_BHSC.dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, spec: GptSpec, index: int) -> None:
        """Build block number `index`."""
        super().__init__()
        self.heads, self.dropout, self.site = spec.heads, spec.dropout, 2 * index + 1
        self.attention_norm = nn.RMSNorm(spec.width)
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.out = nn.Linear(spec.width, spec.width, bias=False)
        self.mlp_norm = nn.RMSNorm(spec.width)
        self.up = nn.Linear(spec.width, 4 * spec.width, bias=False)
        self.down = nn.Linear(4 * spec.width, spec.width, bias=False)

    def forward(self, x_BSD: Tensor, rotary: tuple[Tensor, Tensor], keys_B: Tensor) -> Tensor:
        """Attend causally, then think."""
        B, S, D = x_BSD.shape
        qkv = self.qkv(self.attention_norm(x_BSD)).view(B, S, 3, self.heads, D // self.heads)
        q_BHSC, k_BHSC, v_BHSC = qkv.permute(2, 0, 3, 1, 4)
        mixed_BHSC = F.scaled_dot_product_attention(
            rotate(q_BHSC, rotary), rotate(k_BHSC, rotary), v_BHSC, is_causal=True
        )
        attended_BSD = self.out(mixed_BHSC.transpose(1, 2).reshape(B, S, D))
        x_BSD = x_BSD + self._drop(attended_BSD, keys_B, self.site)
        thought_BSD = self.down(F.gelu(self.up(self.mlp_norm(x_BSD))))
        return x_BSD + self._drop(thought_BSD, keys_B, self.site + 1)

    def _drop(self, x_BSD: Tensor, keys_B: Tensor, site: int) -> Tensor:
        return keyed_dropout(x_BSD, self.dropout, keys_B, site) if self.training else x_BSD


class Gpt(nn.Module):
    """Decoder-only transformer with tied embeddings.

    Args:
        spec: Sizes and dropout.
        vocab: Number of distinct tokens.
        seed: Folded into every dropout key.
    """

    def __init__(self, spec: GptSpec, *, vocab: int, seed: int) -> None:
        """Build and initialise; weights come from torch's global generator."""
        super().__init__()
        self.spec, self.seed = spec, seed
        self.embed = nn.Embedding(vocab, spec.width)
        self.blocks = nn.ModuleList(Block(spec, index) for index in range(spec.layers))
        self.norm = nn.RMSNorm(spec.width)
        residual_std = INITIAL_STD / math.sqrt(2 * spec.layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                ends_branch = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=residual_std if ends_branch else INITIAL_STD)

    def forward(self, inputs_BS: Tensor, keys_B: Tensor) -> Tensor:
        """Logits of the next token, shape (B, S, V)."""
        S = inputs_BS.shape[1]
        rotary = rotary_SC(S, self.spec.width // self.spec.heads, inputs_BS.device)
        seeded_B = keys_B ^ (self.seed * 0x9E3779B97F4A7C15 & 0x3FFFFFFFFFFFFFFF)
        x_BSD = self.embed(inputs_BS)
        if self.training:
            x_BSD = keyed_dropout(x_BSD, self.spec.dropout, seeded_B, 0)
        for block in self.blocks:
            x_BSD = block(x_BSD, rotary, seeded_B)
        return F.linear(self.norm(x_BSD), self.embed.weight)


def build_model(spec: ModelSpec, *, vocab: int, sequence: int, seed: int) -> nn.Module:
    """Build the model with weights that depend on `seed` alone, on the CPU, in fp32.

    Raises:
        SpecError: A custom factory cannot be imported, fails, or returns no module.
    """
    torch.manual_seed(seed)
    match spec:
        case GptSpec():
            return Gpt(spec, vocab=vocab, seed=seed)
        case CustomModelSpec():
            return _build_custom(spec, vocab=vocab, sequence=sequence)
        case _:
            raise SpecError("model", f"{type(spec).__name__} has no builder", "use model=gpt_nano")


def _build_custom(spec: CustomModelSpec, *, vocab: int, sequence: int) -> nn.Module:
    module_name, _, function_name = spec.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            "model.factory",
            f"cannot import {spec.factory} ({error})",
            "put the package on PYTHONPATH of driver and workers",
        ) from error
    model = factory(vocab=vocab, sequence=sequence, **spec.options)
    if not isinstance(model, nn.Module):
        raise SpecError(
            "model.factory",
            f"{spec.factory} returned {type(model).__name__}",
            "return a torch.nn.Module",
        )
    return model


def takes_keys(model: nn.Module) -> bool:
    """Whether `forward` wants `keys_B` beside the inputs."""
    return "keys_B" in inspect.signature(model.forward).parameters


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The units of sharding and recomputation; empty if the model names none."""
    return list(cast("nn.ModuleList", getattr(model, "blocks", ())))


def apply_recompute(model: nn.Module, recompute: Recompute) -> None:
    """Make backward recompute each block, if asked to.

    The block keeps its class and its names; only its `forward` is wrapped, so that hooks of
    sharding engines stay outside the recomputation.

    Raises:
        SpecError: The model names no blocks.
    """
    if recompute is Recompute.none:
        return
    blocks = blocks_of(model)
    if not blocks:
        raise SpecError(
            "memory.recompute",
            f"{type(model).__name__} has no `blocks` to recompute",
            "give it a ModuleList called blocks, or use memory.recompute=none",
        )
    for block in blocks:
        forward = cast("Callable[..., Tensor]", block.forward)
        block.forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
