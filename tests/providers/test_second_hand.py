"""Prices that others have collected stand in for who cannot be asked, and say so."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug import Response

from tests.kit.fakes.server import Fake, serve
from tidemill.plan.offers import Demand
from tidemill.providers import second_hand
from tidemill.providers.base import UnusableError
from tidemill.providers.market import ask_market
from tidemill.providers.second_hand import second_hand_offers
from tidemill.spec.placement import Network, Tier

if TYPE_CHECKING:
    from tests.kit.fakes.server import Answer

ROWS = {
    "aws": [
        ("p5.48xlarge", "us-east-1", 55.04, 8, "H100", 80, "False"),
        ("p5.48xlarge", "us-east-1", 17.5, 8, "H100", 80, "True"),
        ("p9.huge", "us-east-1", 9.0, 1, "X900", 512, "False"),
        ("g5.xlarge", "us-east-1", 0.0, 1, "A10G", 24, "False"),
        ("m5.large", "us-east-1", 0.1, 0, "", "", "False"),
    ],
    "gcp": [("a2-highgpu-1g", "europe-west4-a", 3.7, 1, "A100", 40, "False")],
    "lambdalabs": [("gpu_8x_h100_sxm5", "us-west-3", 31.92, 8, "H100", 80, "False")],
    "runpod": [("NVIDIA L4", "EU-RO-1", 0.4, 1, "L4", 24, "False")],
}
EMPTY = ("azure", "verda", "nebius", "oci", "cloudrift")
HEAD = (
    *("instance_name", "location", "price", "gpu_count", "gpu_name", "gpu_memory", "spot"),
    *("cpu", "memory", "disk_size"),
)


class Bucket(Fake):
    """Lists as gpuhunt publishes them."""

    def __init__(self) -> None:
        super().__init__()
        self.version = "20261122-4"

    def is_allowed(self, request: Any) -> bool:
        del request
        return True

    def routes(self) -> Mapping[tuple[str, str], Callable[[Any], Answer]]:
        found: dict[tuple[str, str], Callable[[Any], Answer]] = {}
        for name in (*ROWS, *EMPTY):
            found["GET", f"/{name}/version"] = lambda _: Response(self.version)
            found["GET", f"/{name}/{self.version}/catalog.zip"] = lambda _, name=name: Response(
                packed(name)
            )
        return found


def packed(name: str) -> bytes:
    text, file = io.StringIO(), io.BytesIO()
    rows = csv.writer(text)
    rows.writerow(HEAD)
    rows.writerows([*row, 8, 64.0, ""] for row in ROWS.get(name, []))
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(f"{name}.csv", text.getvalue())
    return file.getvalue()


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    second_hand._all.cache_clear()
    yield
    second_hand._all.cache_clear()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with serve(Bucket()) as fake:
        assert isinstance(fake, Bucket)
        monkeypatch.setenv("GPUHUNT_CATALOG_URL", fake.url)
        yield fake


def test_lists_become_offers_with_their_day(bucket: Bucket) -> None:
    found = {
        (offer.provider, offer.id, offer.spot): offer for offer in second_hand_offers(Demand())
    }
    assert found.keys() == {
        ("aws", "p5.48xlarge", False),
        ("aws", "p5.48xlarge", True),
        ("gcp", "a2-highgpu-1g", False),
        ("lambda", "gpu_8x_h100_sxm5", False),
    }
    spot = found["aws", "p5.48xlarge", True]
    assert (spot.gpu, spot.gpus, spot.usd_per_hour) == ("H100-SXM5-80GB", 8, 17.5)
    assert (spot.tier, spot.network, spot.live) == (Tier.secure, Network.fabric, False)
    assert spot.fetched_at == 1_795_305_600  # 2026-11-22, midnight
    assert spot.source == "gpuhunt aws 20261122-4"
    google = found["gcp", "a2-highgpu-1g", False]
    assert (google.region, google.country) == ("europe-west4", "nl")
    assert found["lambda", "gpu_8x_h100_sxm5", False].tier is Tier.managed


def test_only_what_is_asked_for(bucket: Bucket) -> None:
    (only,) = second_hand_offers(Demand(gpus=("H100",), spot=True))
    assert only.spot
    assert second_hand_offers(Demand(count=16)) == []


def test_they_stand_in_for_who_has_no_key(bucket: Bucket) -> None:
    class NoKey:
        @classmethod
        def connect(cls, environment: Mapping[str, str]) -> Any:
            del environment
            raise UnusableError("KEY is not set", "export KEY")

    providers: Any = {name: lambda: NoKey for name in ("aws", "runpod")}
    found = ask_market(Demand(), {}, providers=providers)
    sources = {(offer.provider, offer.source.startswith("gpuhunt")) for offer in found.offers}
    assert sources == {("aws", True), ("runpod", False)}
    assert {refusal.subject for refusal in found.refusals} == {"aws", "runpod"}
    assert not any(offer.live for offer in found.offers)


def test_a_version_that_is_no_day_has_no_date(bucket: Bucket) -> None:
    bucket.version = "latest"
    assert {offer.fetched_at for offer in second_hand_offers(Demand())} == {0.0}


def test_without_lists_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert second_hand_offers(Demand()) == []
    monkeypatch.setitem(sys.modules, "gpuhunt", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert second_hand_offers(Demand()) == []
