"""Pages about machines: what matters can be read at 80 columns, and JSON has all of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from rich.console import Console

from tidemill.report.desk import Desk
from tidemill.report.market import (
    OfferRow,
    OffersPage,
    ProviderRow,
    ProvidersPage,
    RefusalRow,
)
from tidemill.report.pages import make_page

ROW = OfferRow(
    provider="lambda",
    id="gpu_8x_h100_sxm5",
    region="us-east-1",
    country="us",
    gpu="H100-SXM5-80GB",
    gpus=8,
    gpu_mem_gib=80.0,
    spot=False,
    usd_per_hour=31.92,
    usd_per_gpu_hour=3.99,
    effective_usd_per_gpu_hour=4.12,
    terms_usd={"gpus": 319.2},
    tier="managed",
    reliability=0.995,
    network="private",
    available=None,
    age_s=86400.0 * 64,
    live=False,
    source="https://lambda.ai",
)
SPOT = replace(ROW, provider="aws", id="p5.48xlarge", spot=True, live=True, tier="secure")
UNDATED = replace(ROW, provider="vast", id="1", region="", country="", age_s=None)
PAGE = OffersPage(
    asked="H100, 8 or more in a machine, 10 hours",
    offers=(ROW, SPOT, UNDATED),
    more=4,
    skipped=(RefusalRow(subject="runpod", reason="RUNPOD_API_KEY is not set", remedy="export it"),),
    refused=(
        RefusalRow(subject="a", reason="tier community, and secure is asked for", remedy="tier"),
        RefusalRow(subject="b", reason="tier community, and secure is asked for", remedy="tier"),
        RefusalRow(subject="c", reason="none left", remedy=""),
    ),
)
PROVIDERS = ProvidersPage(
    providers=(
        ProviderRow(
            name="tensordock",
            usable=False,
            reason="TENSORDOCK_API_KEY is not set",
            remedy="export TENSORDOCK_API_KEY",
            kind="virtual machine",
            status="at-risk",
            spot=False,
            notice_s=0.0,
            private_network=False,
            billing_step_s=1.0,
            evidence="docs",
            evidence_date="2026-04-13",
            note="dropped by others",
        ),
    )
)


def read(page: Any, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(make_page(page, 0.0), highlight=False, crop=False)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120, 160])
def test_prices_and_refusals_can_be_read(width: int) -> None:
    told = read(PAGE, width)
    for text in ("3.99", "4.12", "8 x H100-SXM5-80GB", "spot", "64d", "live", "undated"):
        assert text in told
    assert ("99.5%" in told) == (width >= 110)
    assert "7 offers" in told
    assert "and 4 more" in told
    assert "runpod: RUNPOD_API_KEY is not set; export it" in told


def test_equal_reasons_are_told_once_with_their_number() -> None:
    told = read(PAGE, 120)
    assert told.count("tier community, and secure is asked for") == 1
    assert "2 offers: tier community" in told
    assert "1 offer: none left" in told


def test_an_empty_market_says_so_and_why() -> None:
    told = read(replace(PAGE, offers=(), more=0), 100)
    assert "0 offers" in told
    assert "RUNPOD_API_KEY is not set" in told


def test_providers_show_status_and_date_of_its_evidence() -> None:
    told = read(PROVIDERS, 120)
    for text in ("tensordock", "at-risk", "2026-04-13", "TENSORDOCK_API_KEY is not set", "dropped"):
        assert text in told


def test_json_has_everything() -> None:
    out = io.StringIO()
    Desk(as_json=True, console=Console(file=out, width=80)).answer(PAGE)
    assert json.loads(out.getvalue()) == json.loads(json.dumps(asdict(PAGE)))
