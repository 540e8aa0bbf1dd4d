"""GPUs: what each kind can do, and which kind a vendor's name for it means.

Every vendor has its own names, some for two kinds at once; memory decides between those. The table
says of each row where its figures are from.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources

from tidemill.spec.training import PrecisionKind

TABLE = "gpus.csv"
SAME_MEMORY = 0.15
"""Share by which the memory that a vendor states may differ from the nominal one."""


class Market(StrEnum):
    """Whom a card is made for."""

    datacenter = "datacenter"
    workstation = "workstation"
    consumer = "consumer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One kind of GPU. Peaks are dense; 0 means that it has no such units.

    Attributes:
        name: Ours.
        architecture: The vendor's.
        memory_gib: Nominal.
        memory_gb_s: Bandwidth of its memory, 1e9 bytes a second.
        tflops: Peak by number format, 1e12 operations a second; GeForce with fp32 accumulation.
        fp8_tflops: The same for fp8.
        tf32_tflops: The same for fp32 that may round its inputs.
        nvlink_gb_s: To others of its machine, both directions together; 0 if by PCIe.
        pcie: Generation.
        market: Whom it is made for.
        capability: CUDA compute capability; 0 if it has no CUDA.
        source: Where the row is from.
    """

    name: str
    architecture: str
    memory_gib: float
    memory_gb_s: float
    tflops: Mapping[PrecisionKind, float]
    fp8_tflops: float
    tf32_tflops: float
    nvlink_gb_s: float
    pcie: int
    market: Market
    capability: float
    source: str


@cache
def all_gpus() -> Mapping[str, Gpu]:
    """Every kind that is known, by name."""
    return {gpu.name: gpu for gpu, _ in _rows()}


def find_gpu(name: str, memory_gib: float = 0.0) -> Gpu | None:
    """The kind that a vendor means.

    Args:
        name: The vendor's name for it, in any case and with any separators.
        memory_gib: What the vendor says of its memory; 0 if it says nothing.

    Returns:
        The one kind with that name and memory; None if there is none, or no telling which.
    """
    known = _by_alias()
    named = known.get(_plain(name)) or known.get(_plain(_bare(name)), [])
    found = [gpu for gpu in named if _fits(gpu, memory_gib)]
    if len(found) > 1 and memory_gib:
        nearest = min(abs(gpu.memory_gib - memory_gib) for gpu in found)
        found = [gpu for gpu in found if abs(gpu.memory_gib - memory_gib) == nearest]
    if len({gpu.memory_gib for gpu in found}) > 1:
        return None
    # Of two editions with the same memory, the slower one is promised.
    return min(found, key=lambda gpu: gpu.tflops[PrecisionKind.bf16], default=None)


def name_gpu(name: str, memory_gib: float = 0.0) -> tuple[str, float]:
    """Our name and the memory of what a vendor means; of an unknown kind, what the vendor says.

    Args:
        name: The vendor's name for it.
        memory_gib: What the vendor says of its memory; 0 if it says nothing.
    """
    gpu = find_gpu(name, memory_gib)
    return (gpu.name, gpu.memory_gib) if gpu else (name, memory_gib)


def matches(gpu: str, wanted: Iterable[str]) -> bool:
    """Whether a GPU is among those that a person named by their beginnings; all are, of none."""
    names = [_plain(name) for name in wanted]
    return not names or any(_plain(gpu).startswith(name) for name in names)


def _fits(gpu: Gpu, memory_gib: float) -> bool:
    return not memory_gib or abs(gpu.memory_gib - memory_gib) <= SAME_MEMORY * gpu.memory_gib


@cache
def _by_alias() -> Mapping[str, list[Gpu]]:
    found: dict[str, list[Gpu]] = {}
    for gpu, aliases in _rows():
        names = (gpu.name, *aliases, *map(_bare, aliases))
        for alias in {_plain(name) for name in names}:
            found.setdefault(alias, []).append(gpu)
    return found


def _bare(name: str) -> str:
    """Without what stands in brackets."""
    return re.sub(r"\(.*?\)", "", name)


def _plain(name: str) -> str:
    """Letters and digits that tell kinds apart."""
    return re.sub(r"nvidia|geforce|tesla|[^a-z0-9]", "", name.lower())


@cache
def _rows() -> list[tuple[Gpu, list[str]]]:
    table = resources.files("tidemill.plan").joinpath(TABLE).read_text(encoding="utf-8")
    found: list[tuple[Gpu, list[str]]] = []
    for row in csv.DictReader(table.splitlines()):
        named = [item.partition("=")[2] for item in row["aliases"].split("|")]
        aliases = [alias for item in named for alias in item.split(",") if alias]
        gpu = Gpu(
            name=row["name"],
            architecture=row["architecture"],
            memory_gib=float(row["memory_gib"]),
            memory_gb_s=float(row["memory_gb_s"]),
            tflops={kind: float(row[f"{kind}_tflops"] or 0) for kind in PrecisionKind},
            fp8_tflops=float(row["fp8_tflops"] or 0),
            tf32_tflops=float(row["tf32_tflops"] or 0),
            nvlink_gb_s=float(row["nvlink_gb_s"] or 0),
            pcie=int(row["pcie"]),
            market=Market(row["market"]),
            capability=float(row["capability"] or 0),
            source=row["source"],
        )
        found.append((gpu, aliases))
    return found
