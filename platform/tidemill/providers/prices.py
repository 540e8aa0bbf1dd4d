"""Prices as vendors state them, and which of them can be believed.

A vendor that knows no price states 0, or a round sum nobody pays; one without a spot market repeats
the full price. Such a price is a missing one: a machine is rather not offered than offered wrongly.
"""

from __future__ import annotations

LEAST_USD_PER_GPU_HOUR = 0.005
MOST_USD_PER_GPU_HOUR = 100.0
"""Outside of these a price is a placeholder. In 2026 the cheapest seen is 0.04, an RTX 3060 on
Salad, and the dearest 18, a B300 on AWS."""
SPOT_SHARE = 0.98
"""From this share of the full price on, a spot price says that there is no spot market."""


def believe(stated: float | str | None, gpus: int = 1) -> float | None:
    """A price as a number.

    Args:
        stated: Dollars an hour as the vendor writes them.
        gpus: GPUs that it is for.

    Returns:
        Dollars an hour; None if it is 0 or less, absurd, or not a number at all.
    """
    try:
        usd = float(stated or 0)
    except ValueError:
        return None
    return usd if LEAST_USD_PER_GPU_HOUR <= usd / gpus <= MOST_USD_PER_GPU_HOUR else None


def believe_spot(stated: float | str | None, full_usd: float | None, gpus: int = 1) -> float | None:
    """A spot price as a number.

    Args:
        stated: Dollars an hour as the vendor writes them.
        full_usd: What the same costs on demand; None if that is not known.
        gpus: GPUs that it is for.

    Returns:
        Dollars an hour; None if it is missing, or the full price again.
    """
    usd = believe(stated, gpus)
    return None if usd and full_usd and usd >= SPOT_SHARE * full_usd else usd
