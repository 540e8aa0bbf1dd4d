"""The table of sizes: its GPUs are known, and what it says of AWS is what AWS says."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from tidemill.plan.gpus import all_gpus
from tidemill.plan.offers import Demand
from tidemill.providers.sizes import Size, all_sizes, offers_of, sizes_for
from tidemill.spec.placement import Network, Tier


def test_every_size_is_there_once_and_has_a_known_gpu() -> None:
    assert {size.gpu for size in all_sizes()} <= set(all_gpus())
    assert max(Counter((size.provider, size.id) for size in all_sizes()).values()) == 1
    assert {size.provider for size in all_sizes()} == {"aws", "azure", "gcp"}
    assert all(size.vcpu and size.ram_gib and size.gpu_mem_gib for size in all_sizes())


@pytest.mark.parametrize("size", sizes_for("aws", Demand()), ids=lambda size: size.id)
def test_aws_says_the_same(size: Size) -> None:
    packed = resources.files("moto.ec2.resources").joinpath("instance_types.json.gz").read_bytes()
    kind: dict[str, Any] = json.loads(gzip.decompress(packed))[size.id]
    (gpu,) = kind["GpuInfo"]["Gpus"]
    assert kind["VCpuInfo"]["DefaultVCpus"] == size.vcpu
    assert kind["MemoryInfo"]["SizeInMiB"] / 1024 == size.ram_gib
    assert gpu["Count"] == size.gpus
    assert gpu["Name"].split()[0] == size.gpu.split("-")[0]
    assert size.network is not Network.fabric or kind["NetworkInfo"]["EfaSupported"]


def test_a_demand_chooses_sizes() -> None:
    wanted = Demand(gpus=("H100",), count=2, most=4)
    assert {size.id for size in sizes_for("gcp", wanted)} == {"a3-highgpu-2g", "a3-highgpu-4g"}
    roomy = sizes_for("azure", Demand(gpus=("A100-PCIE",), ram_gib=500))
    assert [size.id for size in roomy] == ["Standard_NC96ads_A100_v4"]


def test_a_size_is_offered_at_each_price_that_can_be_believed() -> None:
    (size,) = sizes_for("aws", Demand(gpus=("B300",)))
    both = offers_of(size, "us-east-1", full_usd="142.416", spot_usd="60", source="here")
    assert [(offer.spot, offer.usd_per_hour) for offer in both] == [(False, 142.416), (True, 60)]
    assert {(offer.tier, offer.country, offer.live) for offer in both} == {
        (Tier.secure, "us", True)
    }
    (full,) = offers_of(size, "us-east-1", full_usd=142.416, spot_usd=142.0, source="here")
    assert not full.spot
    assert offers_of(size, "us-east-1", full_usd=0.0, spot_usd=None, source="here") == []


def test_what_is_not_sold_on_demand_is_not_offered_so() -> None:
    size = next(size for size in all_sizes() if size.id == "a3-highgpu-1g")
    (offer,) = offers_of(size, "us-central1", full_usd=11.06, spot_usd=6.33, source="here")
    assert offer.spot
