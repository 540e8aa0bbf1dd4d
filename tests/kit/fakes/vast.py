"""Vast on loopback: it filters, sorts and prices as it is asked to."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from werkzeug import Response

from tests.kit.fakes.server import Answer, Fake, load_spec
from tidemill.plan.offers import HOURS_PER_MONTH

if TYPE_CHECKING:
    from werkzeug import Request

PATH = "/api/v0/bundles/"
POST = f"/paths/{PATH.replace('/', '~1')}/post"
JSON = "content/application~1json/schema"
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "lt": operator.lt,
    "gte": operator.ge,
    "lte": operator.le,
    "in": lambda value, wanted: value in wanted,
    "notin": lambda value, wanted: value not in wanted,
}
BESIDE = frozenset({"type", "limit", "order", "allocated_storage"})
"""What of a question is no filter."""
FEWEST = 64
"""Offers of an answer to a question without a limit."""
MAYBE = {"type": ["number", "null"]}
NAME = {"type": ["string", "null"]}
ASK = {
    "type": "object",
    "required": ["id", "gpu_name", "gpu_ram", "num_gpus", "dph_base", "dph_total", "min_bid"],
    "properties": {
        "id": {"type": "integer"},
        "gpu_name": {"type": "string"},
        "gpu_ram": {"type": "number"},
        "num_gpus": {"type": "integer", "minimum": 1},
        "cpu_cores": MAYBE,
        "cpu_cores_effective": MAYBE,
        "cpu_ram": MAYBE,
        "direct_port_count": {"type": "integer"},
        "disk_space": {"type": "number"},
        "dph_base": MAYBE,
        "dph_total": MAYBE,
        "min_bid": MAYBE,
        "storage_cost": MAYBE,
        "storage_total_cost": MAYBE,
        "inet_up_cost": MAYBE,
        "inet_down_cost": MAYBE,
        "inet_down": MAYBE,
        "reliability2": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "verification": {"enum": ["verified", "unverified", "deverified"]},
        "hosting_type": {"type": ["integer", "null"]},
        "geolocation": NAME,
        "rentable": {"type": "boolean"},
        "is_bid": {"type": "boolean"},
    },
}
ERROR = {
    "description": "Unauthorized",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "success": {"type": "boolean"},
                    "error": {"type": "string"},
                    "msg": {"type": "string"},
                },
            }
        }
    },
}


def _ask(id_: int, gpu: str, gpu_ram: int, gpus: int, usd: float, **more: Any) -> dict[str, Any]:
    """An ask of a good host; `usd` and `min_bid` are for all its GPUs, without disk."""
    usual: dict[str, Any] = {
        "cpu_cores": 64,
        "cpu_cores_effective": 16.0,
        "cpu_ram": 262144,
        "direct_port_count": 42,
        "disk_space": 500.0,
        "min_bid": usd / 2,
        "storage_cost": 0.15,
        "inet_up_cost": 0.005,
        "inet_down_cost": 0.002,
        "inet_down": 850.5,
        "reliability2": 0.9985,
        "verification": "verified",
        "hosting_type": 0,
        "geolocation": "Sweden, SE",
        "rentable": True,
    }
    return {"id": id_, "gpu_name": gpu, "gpu_ram": gpu_ram, "num_gpus": gpus, "usd": usd} | (
        usual | more
    )


ASKS = (
    _ask(101, "RTX 4090", 24564, 1, 0.40, min_bid=0.31),
    _ask(102, "RTX 4090", 24564, 4, 1.60, geolocation="Texas, US", cpu_cores_effective=64.0),
    _ask(103, "H100 SXM", 81559, 8, 16.0, hosting_type=1, geolocation="Germany, DE"),
    _ask(104, "A100 PCIE", 40960, 1, 0.80),
    _ask(105, "A100 PCIE", 81920, 1, 1.20, min_bid=0.0),
    _ask(106, "RTX 4090", 24564, 1, 0.10, verification="unverified"),
    _ask(107, "RTX 4090", 24564, 1, 0.11, rentable=False),
    _ask(108, "RTX 4090", 24564, 1, 0.12, direct_port_count=0),
    _ask(109, "RTX 4090", 24564, 1, 0.13, disk_space=16.0),
    _ask(110, "L4", 23034, 1, 0.0),
    _ask(111, "Imaginary RTX 9999", 524288, 1, 9.0, hosting_type=None, geolocation=None),
)


class FakeVast(Fake):
    """Has `ASKS`: some that must not be offered, one that takes no bids, one nobody knows.

    Attributes:
        asks: What it searches.
        asked: The questions, oldest first.
    """

    SPEC: ClassVar[str] = "vast.json"
    ERRATA: ClassVar[tuple[tuple[str, Any, str], ...]] = (
        (
            "/paths",
            {PATH: load_spec("vast.json")["paths"]["/api/v0/bundles"]},
            "a slash ends the path: vast-ai/docs@c6246226 api-reference/hello-world.mdx, gpuhunt",
        ),
        (
            f"{POST}/requestBody/{JSON}/properties/order",
            {
                "type": "array",
                "items": {
                    "type": "array",
                    "items": {"type": "string"},
                    "minItems": 2,
                    "maxItems": 2,
                },
            },
            "pairs, however many: vast-ai/docs@c6246226 api-reference/hello-world.mdx",
        ),
        (
            f"/paths/{PATH.replace('/', '~1')}/post/responses/200/content/application~1json/schema",
            {
                "type": "object",
                "required": ["offers"],
                "properties": {"offers": {"type": "array", "items": ASK}},
            },
            "bare objects there; fields as in its own example and in gpuhunt 0.1.34 vastai.py",
        ),
        (
            f"{POST}/responses/401",
            ERROR,
            "vast-ai/docs@c6246226 api-reference/authentication.mdx",
        ),
    )

    def __init__(self) -> None:
        super().__init__()
        self.asks = [dict(ask) for ask in ASKS]
        self.asked: list[dict[str, Any]] = []

    def environment(self) -> dict[str, str]:
        """What a client needs to find it."""
        return {"VAST_API_KEY": self.KEY, "TIDEMILL_VAST_URL": self.url}

    def error(self, code: int, message: str) -> Any:
        """See `Fake.error`."""
        kind = {401: "auth_error", 403: "auth_error", 404: "not_found"}.get(code, f"error_{code}")
        return {"success": False, "error": kind, "msg": message}

    def routes(self) -> Mapping[tuple[str, str], Callable[[Request], Answer]]:
        """See `Fake.routes`."""
        return {("POST", PATH): self._search}

    def _search(self, request: Request) -> Answer:
        try:
            question = json.loads(request.get_data())
            answer = _answer(self.asks, question)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            body = self.error(400, f"Invalid json body: {error}")
            return Response(json.dumps(body), 400, content_type="application/json")
        self.asked.append(question)
        return answer


def _answer(asks: list[dict[str, Any]], question: dict[str, Any]) -> dict[str, Any]:
    is_bid = question.get("type", "ondemand") == "bid"
    disk_gb = float(question.get("allocated_storage", 8))
    wanted = {"verified": {"eq": True}, "rentable": {"eq": True}} | question
    rows = [_priced(ask, disk_gb, is_bid=is_bid) for ask in asks]
    found = [row for row in rows if _fits(row, wanted)]
    for field, direction in reversed(question.get("order", [])):
        found.sort(key=lambda row, field=field: row[field], reverse=direction == "desc")
    return {"offers": found[: max(0, int(question.get("limit", FEWEST)))]}


def _priced(ask: dict[str, Any], disk_gb: float, *, is_bid: bool) -> dict[str, Any]:
    row = {key: value for key, value in ask.items() if key != "usd"}
    base = ask["min_bid"] if is_bid else ask["usd"]
    disk = disk_gb * ask["storage_cost"] / HOURS_PER_MONTH
    priced = {"dph_base": base, "storage_total_cost": disk, "dph_total": base + disk}
    return row | priced | {"is_bid": is_bid}


def _fits(row: dict[str, Any], question: dict[str, Any]) -> bool:
    known = row | {"verified": row["verification"] == "verified"}
    return all(
        OPERATORS[name](known[field], value)
        for field, condition in question.items()
        if field not in BESIDE and field in known
        for name, value in condition.items()
    )
