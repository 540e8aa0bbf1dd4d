"""GPUs: every vendor's name for a kind means that kind, and figures are in order."""

from __future__ import annotations

import pytest

from tidemill.plan.gpus import Market, all_gpus, find_gpu, matches, name_gpu
from tidemill.spec.training import PrecisionKind


@pytest.mark.parametrize(
    ("vendors", "memory_gib", "ours"),
    [
        ("NVIDIA H100 80GB HBM3", 80, "H100-SXM5-80GB"),
        ("H100 (80 GB SXM5)", 80, "H100-SXM5-80GB"),
        ("H100 PCIE", 79.6, "H100-PCIE-80GB"),
        ("nvidia-h100-80gb", 0, "H100-SXM5-80GB"),
        ("A100 SXM4", 39.6, "A100-SXM4-40GB"),
        ("A100 SXM4", 79.6, "A100-SXM4-80GB"),
        ("geforcertx4090-pcie-24gb", 0, "RTX-4090"),
        ("RTX 4090 (24 GB)", 24, "RTX-4090"),
        ("Tesla V100", 15.8, "V100-PCIE-16GB"),
        ("RTX PRO 6000", 96, "RTX-PRO-6000-BW-SE-96GB"),
        ("NVIDIA L40S", 44.7, "L40S"),
    ],
)
def test_a_vendors_name_is_understood(vendors: str, memory_gib: float, ours: str) -> None:
    found = find_gpu(vendors, memory_gib)
    assert found is not None
    assert found.name == ours


def test_what_could_be_two_kinds_is_neither() -> None:
    assert find_gpu("A100 SXM4") is None
    assert find_gpu("H100 SXM", 141) is None
    assert find_gpu("X900") is None
    assert name_gpu("X900", 512) == ("X900", 512)


def test_every_kind_is_found_by_its_own_name() -> None:
    for name, gpu in all_gpus().items():
        assert find_gpu(name, gpu.memory_gib) == gpu


def test_figures_are_in_order() -> None:
    for gpu in all_gpus().values():
        assert gpu.memory_gib > 0
        assert gpu.memory_gb_s > 0
        assert gpu.source
        half = gpu.tflops[PrecisionKind.fp16]
        assert half >= gpu.tflops[PrecisionKind.fp32] > 0
        assert gpu.tflops[PrecisionKind.bf16] in {0, half}
        assert gpu.fp8_tflops == 0 or gpu.fp8_tflops >= 1.9 * half
        # bf16 units came with compute capability 8.0.
        if gpu.capability:
            assert (gpu.tflops[PrecisionKind.bf16] > 0) == (gpu.capability >= 8.0)
        assert isinstance(gpu.market, Market)


def test_a_beginning_is_enough() -> None:
    assert matches("H100-SXM5-80GB", ["h100"])
    assert matches("RTX-4090", ["rtx 40"])
    assert not matches("H200-SXM-141GB", ["H100"])
    assert matches("whatever", [])
