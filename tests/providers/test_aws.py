"""AWS: held against boto3's models and moto, and against a vendor that misbehaves."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import pytest
from botocore import session
from botocore.loaders import create_loader
from botocore.retries.standard import ExponentialBackoff

from tests.kit.fakes.aws import FakeAws
from tests.kit.fakes.server import Fault
from tests.providers.contract import LASTING, ProviderContract
from tidemill.plan.offers import Demand
from tidemill.providers.aws import REGIONS, Aws
from tidemill.providers.base import Provider, UnusableError
from tidemill.providers.trouble import ProviderError, Trouble
from tidemill.spec.placement import Network, Tier

LOADER = create_loader()
"""Keeps the large models of AWS's services from one test to the next."""


class TestAws(ProviderContract):
    """See `ProviderContract`."""

    PROVIDER: ClassVar[type[Provider]] = Aws
    FAKE: ClassVar[type[Any]] = FakeAws

    @pytest.fixture(autouse=True)
    def nothing_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No keys but the test's, and boto3 in a hurry."""
        for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "PROFILE"):
            monkeypatch.delenv(f"AWS_{name}", raising=False)
        for name in ("CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
            monkeypatch.setenv(f"AWS_{name}", "/nonexistent")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda _self, _context: 0.0)
        monkeypatch.setattr(session, "create_loader", lambda _path: LOADER)
        # boto3 does not look whether an answer is as long as it says, only whether it can be read
        monkeypatch.setitem(LASTING, Fault.truncated, {Trouble.unreadable})

    def test_a_size_costs_what_is_listed(self, provider: Provider) -> None:
        full, spot = provider.offers(Demand(gpus=("H100",), count=8))
        assert (full.id, full.region, full.country) == ("p5.48xlarge", "us-east-1", "us")
        assert (full.spot, full.usd_per_hour) == (False, 55.04)
        assert (full.gpu, full.gpus, full.vcpu, full.ram_gib) == ("H100-SXM5-80GB", 8, 192, 2048)
        assert (full.tier, full.network) == (Tier.secure, Network.fabric)
        assert spot.spot

    def test_a_spot_price_is_the_middle_one_of_the_newest_in_its_zones(
        self, provider: Provider
    ) -> None:
        (spot,) = [it for it in provider.offers(Demand(gpus=("H100",), count=8)) if it.spot]
        assert spot.usd_per_hour == 17.6289

    def test_what_is_not_sold_in_a_region_is_not_offered(self, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("H200",))) == []

    def test_a_missing_price_is_no_offer(self, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("T4",))) == []

    def test_the_full_price_again_is_no_spot_offer(self, provider: Provider) -> None:
        (full,) = provider.offers(Demand(gpus=("L4",)))
        assert (full.usd_per_hour, full.spot) == (0.8048, False)

    def test_all_pages_are_read(self, provider: Provider) -> None:
        found = {offer.id for offer in provider.offers(Demand())}
        assert found == {"p5.48xlarge", "g6.xlarge", "g5.xlarge"}

    def test_what_no_size_meets_is_not_asked_for(self, fake: Any, provider: Provider) -> None:
        assert provider.offers(Demand(gpus=("X900",))) == []
        assert fake.requests == []

    def test_several_regions_are_asked_if_none_is_named(self, fake: Any) -> None:
        environment = fake.environment()
        del environment["AWS_REGION"]
        client = Aws.connect(environment)
        regions = {offer.region for offer in client.offers(Demand(gpus=("H100",), count=8))}
        client.close()
        assert regions == {"us-east-1", "eu-north-1"} <= set(REGIONS)

    @pytest.mark.parametrize("fault", list(Fault))
    def test_what_lasts_in_ec2_is_named(self, fake: Any, provider: Provider, fault: Fault) -> None:
        fake.only = "ec2"
        fake.fail(fault)
        with pytest.raises(ProviderError, match="ec2 describe_instance_type_offerings") as told:
            provider.offers(Demand())
        assert told.value.trouble in LASTING[fault]
        assert len(told.value.detail) < 300

    def test_keys_are_cut_out_of_what_aws_says(self, fake: Any) -> None:
        wrong = {**fake.environment(), "AWS_SESSION_TOKEN": fake.KEY, "AWS_ACCESS_KEY_ID": "AKIAX"}
        fake.said = "no: AKIAX, " + fake.KEY
        client = Aws.connect(wrong)
        with pytest.raises(ProviderError, match=r"no: \[hidden\], \[hidden\]") as told:
            client.offers(Demand())
        client.close()
        assert told.value.trouble is Trouble.unauthorized

    def test_boto3_is_needed(self, monkeypatch: pytest.MonkeyPatch, fake: Any) -> None:
        monkeypatch.setitem(sys.modules, "boto3", None)
        with pytest.raises(UnusableError, match="boto3 is not installed") as told:
            Aws.connect(fake.environment())
        assert "tidemill[aws]" in told.value.remedy

    def test_a_profile_that_is_not_there_is_said(self) -> None:
        with pytest.raises(UnusableError, match="tide"):
            Aws.connect({"AWS_PROFILE": "tide"})
