"""The fakes keep to the vendors' specifications, whatever they are asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from werkzeug import Response

from tests.kit.fakes.azure import FakeAzure
from tests.kit.fakes.fluidstack import FakeFluidStack
from tests.kit.fakes.gcp import FakeGcp
from tests.kit.fakes.lambda_cloud import FakeLambda
from tests.kit.fakes.puzl import FakePuzl
from tests.kit.fakes.runpod import FakeRunPod
from tests.kit.fakes.salad import FakeSalad
from tests.kit.fakes.server import Fake, load_spec
from tests.kit.fakes.tensordock import FakeTensorDock
from tests.kit.fakes.vast import FakeVast

BEARER = {"Authorization": f"Bearer {Fake.KEY}"}
FAKES: tuple[tuple[type[Any], Mapping[str, str]], ...] = (
    (FakeAzure, {}),
    (FakeFluidStack, BEARER),
    (FakeGcp, {"X-Goog-Api-Key": Fake.KEY}),
    (FakeLambda, BEARER),
    (FakePuzl, BEARER),
    (FakeRunPod, BEARER),
    (FakeSalad, {"Salad-Api-Key": Fake.KEY}),
    (FakeTensorDock, BEARER),
    (FakeVast, BEARER),
)
CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance]
EXAMPLES = 15
SPEC_PATH = "/specification"


def operations_of(fake: Fake) -> list[Any]:
    """What the fake's specification has, to be asked of the fake itself."""
    spec = json.dumps(load_spec(fake.SPEC, fake.ERRATA))

    def application(environ: Any, start: Any) -> Any:
        if environ["PATH_INFO"] == SPEC_PATH:
            return Response(spec, content_type="application/json")(environ, start)
        return fake(environ, start)

    found = list(schemathesis.openapi.from_wsgi(SPEC_PATH, application).get_all_operations())
    operations = [result.ok() for result in found if isinstance(result, Ok)]
    assert len(operations) == len(found) > 0
    return operations


@pytest.mark.parametrize(("make", "headers"), FAKES, ids=[make.__name__ for make, _ in FAKES])
def test_a_fake_keeps_to_its_specification(make: type[Any], headers: Mapping[str, str]) -> None:
    for operation in operations_of(make()):

        @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            case.call_and_validate(headers=dict(headers), checks=CHECKS)

        ask()
