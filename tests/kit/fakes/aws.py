"""AWS on loopback: moto, with spot prices and a price list of our own, as moto has none."""

from __future__ import annotations

import hmac
import io
import json
import re
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar
from xml.sax.saxutils import escape

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from werkzeug import Response
from werkzeug.test import Client

from tests.kit.fakes.server import Fake

if TYPE_CHECKING:
    from werkzeug import Request

REGION = "us-east-1"
LONGEST_VALUE = 1024
"""Of a filter of GetProducts, by its service model."""
CODES = {
    401: "AuthFailure",
    403: "UnauthorizedOperation",
    404: "InvalidAction",
    429: "RequestLimitExceeded",
    500: "InternalError",
    503: "Unavailable",
}
LINUX = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}
PRODUCTS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    ("p5.48xlarge", REGION, "55.0400000000", {}),
    ("p5.48xlarge", REGION, "1.0000000000", {"operatingSystem": "Windows"}),
    ("p5.48xlarge", REGION, "99.0000000000", {"tenancy": "Dedicated"}),
    ("p5.48xlarge", REGION, "0.0000000000", {"capacitystatus": "AllocatedCapacityReservation"}),
    ("p5.48xlarge", REGION, "31.4640000000", {"marketoption": "CapacityBlock"}),
    ("p5.48xlarge", REGION, "70.0000000000", {"preInstalledSw": "SQL Std"}),
    ("p5.48xlarge", "eu-north-1", "58.8928000000", {}),
    ("g6.xlarge", REGION, "0.8048000000", {}),
    ("g5.xlarge", REGION, "1.0060000000", {}),
    ("p5e.48xlarge", REGION, "60.0000000000", {}),  # listed, but not sold there
    ("g4dn.xlarge", REGION, "0.0000000000", {}),
)
SPOT = (
    ("p5.48xlarge", "us-east-1a", "2.4700", "2026-11-22T10:00:00.000Z"),
    ("p5.48xlarge", "us-east-1b", "17.6289", "2026-11-22T10:00:00.000Z"),
    ("p5.48xlarge", "us-east-1b", "55.0000", "2026-11-21T10:00:00.000Z"),
    ("p5.48xlarge", "us-east-1c", "18.1000", "2026-11-22T10:00:00.000Z"),
    ("p5.48xlarge", "us-east-1-atl-2a", "1.0000", "2026-11-22T10:00:00.000Z"),
    ("g6.xlarge", "us-east-1a", "0.8048", "2026-11-22T10:00:00.000Z"),
    ("g4dn.xlarge", "us-east-1a", "0.00001", "2026-11-22T10:00:00.000Z"),
)


class FakeAws(Fake):
    """Sells what moto says, at `SPOT` and `PRODUCTS`.

    Attributes:
        only: The service that `fail` is for; all of them by default.
        said: What it says of a wrong signature.
    """

    NAME: ClassVar[str] = "AKIATIDEMILLTESTS000"
    PAGE: ClassVar[int] = 2

    def __init__(self) -> None:
        super().__init__()
        _moto()  # takes its time at first, and clients are in a hurry
        self.only = ""
        self.said = "AWS was not able to validate the provided access credentials"

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {
            "AWS_ACCESS_KEY_ID": self.NAME,
            "AWS_SECRET_ACCESS_KEY": self.KEY,
            "AWS_REGION": REGION,
            "TIDEMILL_AWS_URL": self.url,
        }

    def is_allowed(self, request: Request) -> bool:
        """Told by `_answer`, in the words of the service."""
        del request
        return True

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`; of a service that speaks JSON."""
        return {"__type": CODES.get(code, "Failure"), "message": message}

    def _faulty(self, request: Request, good: Response) -> Response | None:
        service = _service(request)
        if self.only and service != self.only:
            return None
        failed = super()._faulty(request, good)
        if failed is None or failed.status_code < 400:
            return failed
        return self._refused(service, failed.status_code, "made to fail")

    def _answer(self, request: Request) -> Response:
        body = request.get_data()
        service = _service(request)
        if not _is_signed(request, body, self.NAME, self.KEY):
            return self._refused(service, 401, self.said)
        if service == "pricing":
            answer = json.dumps(self._products(json.loads(body)))
            return Response(answer, content_type="application/x-amz-json-1.1")
        if b"Action=DescribeSpotPriceHistory" in body:
            return Response(_spot_prices(request), content_type="text/xml")
        environ = {**request.environ, "wsgi.input": io.BytesIO(body)}
        return Response.from_app(_moto(), environ)

    def _refused(self, service: str, code: int, message: str) -> Response:
        if service == "ec2":
            inner = f"<Code>{CODES[code]}</Code><Message>{escape(message)}</Message>"
            body = f"<Response><Errors><Error>{inner}</Error></Errors></Response>"
            return Response(body, code, content_type="text/xml")
        body = json.dumps(self.error(code, message))
        return Response(body, code, content_type="application/x-amz-json-1.1")

    def _products(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = [row for row in PRODUCTS if all(map(_passes, *_each(asked["Filters"], row)))]
        self.violations += [
            f"{field['Field']} is too long"
            for field in asked["Filters"]
            if len(field["Value"]) > LONGEST_VALUE
        ]
        begin = int(asked.get("NextToken", 0))
        end = begin + self.PAGE
        page: dict[str, Any] = {"FormatVersion": "aws_v1"}
        page["PriceList"] = [json.dumps(_product(row)) for row in found[begin:end]]
        return page | ({"NextToken": str(end)} if end < len(found) else {})


@cache
def _moto() -> Any:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app

    application = DomainDispatcherApplication(create_backend_app)
    scope = f"Credential=X/20261122/{REGION}/ec2/aws4_request, SignedHeaders=host, Signature=0"
    Client(application).post(
        "/",
        data={"Action": "DescribeInstanceTypeOfferings", "Version": "2016-11-15"},
        headers={"Authorization": f"AWS4-HMAC-SHA256 {scope}"},
    )
    return application


def _service(request: Request) -> str:
    """From the scope of the signature."""
    return request.headers["Authorization"].split("/")[3]


def _is_signed(request: Request, body: bytes, name: str, secret: str) -> bool:
    """Whether the signature is what AWS would make of the request with our secret."""
    told = request.headers["Authorization"]
    scope = re.search(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/", told)
    signed = re.search(r"SignedHeaders=([^,]+), Signature=(\w+)", told)
    if scope is None or signed is None or scope[1] != name:
        return False
    headers = {header: request.headers[header] for header in signed[1].split(";")}
    again = AWSRequest(request.method, request.url, headers, body)
    again.context["timestamp"] = request.headers["X-Amz-Date"]
    signer = SigV4Auth(Credentials(name, secret), scope[3], scope[2])
    text = signer.string_to_sign(again, signer.canonical_request(again))
    return hmac.compare_digest(signer.signature(text, again), signed[2])


def _each(
    filters: list[dict[str, str]], row: tuple[str, str, str, dict[str, str]]
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return filters, [_attributes(row)] * len(filters)


def _passes(wanted: dict[str, str], attributes: dict[str, str]) -> bool:
    has = attributes[wanted["Field"]]
    match wanted["Type"]:
        case "ANY_OF":
            return has in wanted["Value"].split(",")
        case "TERM_MATCH":
            return has == wanted["Value"]
        case _:
            return False


def _attributes(row: tuple[str, str, str, dict[str, str]]) -> dict[str, str]:
    return LINUX | {"instanceType": row[0], "regionCode": row[1]} | row[3]


def _product(row: tuple[str, str, str, dict[str, str]]) -> dict[str, Any]:
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": row[2]}, "description": "an hour"}
    yearly = {"unit": "Quantity", "pricePerUnit": {"USD": "50000"}, "description": "upfront"}
    on_demand = {"SKU.TERM": {"priceDimensions": {"SKU.TERM.RATE": dimension}, "sku": "SKU"}}
    reserved = {"SKU.YEAR": {"priceDimensions": {"SKU.YEAR.RATE": yearly}, "sku": "SKU"}}
    return {
        "product": {
            "productFamily": "Compute Instance",
            "sku": "SKU",
            "attributes": {"servicecode": "AmazonEC2", **_attributes(row)},
        },
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": on_demand, "Reserved": reserved},
    }


def _spot_prices(request: Request) -> str:
    wanted = {value for key, value in request.form.items() if key.startswith("InstanceType.")}
    items = "".join(
        f"<item><instanceType>{size}</instanceType><productDescription>Linux/UNIX"
        f"</productDescription><spotPrice>{usd}</spotPrice><timestamp>{since}</timestamp>"
        f"<availabilityZone>{zone}</availabilityZone></item>"
        for size, zone, usd, since in SPOT
        if size in wanted
    )
    return (
        '<DescribeSpotPriceHistoryResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
        f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/>"
        "</DescribeSpotPriceHistoryResponse>"
    )
