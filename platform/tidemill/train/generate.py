"""Sampling: tokens in, tokens out, on one process.

The whole window is run again for every token. A cache of keys and values would be quicker, and
would be a second forward of every model, a user's own included.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tidemill.train.model import takes_keys


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: list[int],
    *,
    sequence: int,
    temperature: float,
    top_k: int,
    seed: int,
) -> Iterator[int]:
    """Yield the next token, and the next, without end.

    Args:
        model: Gives logits of shape (B, S, V).
        prompt: Tokens to go on from; at least one.
        sequence: Most tokens the model looks back on.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Sample among this many likeliest tokens; 0 among all.
        seed: Seeds the sampling.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    extra = {"keys_B": torch.zeros(1, dtype=torch.int64)} if takes_keys(model) else {}
    tokens = list(prompt)
    while True:
        window_BS = torch.tensor([tokens[-sequence:]], dtype=torch.int64)
        logits_V: Tensor = model(window_BS, **extra)[0, -1].float()
        tokens.append(_choose(logits_V, temperature, top_k, generator))
        yield tokens[-1]


def _choose(logits_V: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits_V.argmax())
    if 0 < top_k < logits_V.numel():
        floor = logits_V.topk(top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < floor, float("-inf"))
    shares_V = torch.softmax(logits_V / temperature, dim=-1)
    return int(torch.multinomial(shares_V, 1, generator=generator))
