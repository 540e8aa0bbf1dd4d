"""What a provider is: a name, capabilities as data, and a few verbs.

What a provider can do, and how far that is known, is read from `Capabilities` and never asked by
trying. A provider that cannot be used says why, in words a person can act on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol, Self

from tidemill.errors import TidemillError
from tidemill.plan.offers import Demand, Offer


class Status(StrEnum):
    """How far a provider can be counted on."""

    ga = "ga"
    at_risk = "at-risk"
    attach_only = "attach-only"
    legacy = "legacy"


class Kind(StrEnum):
    """What it rents."""

    machine = "virtual machine"
    container = "container"
    pod = "pod"


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a provider can do, as far as its documents say.

    Attributes:
        kind: What it rents.
        spot: Whether it sells machines that it may take back, for less.
        multi_node: Whether machines of one region can train together.
        private_network: Whether they have a network of their own.
        ssh: Whether one can log in.
        stop: Whether a machine can be stopped and started again.
        billing_step_s: Seconds that it rounds a machine's time up to.
        notice_s: Seconds of warning before a spot machine is taken; 0 if there is none.
        status: How far it can be counted on.
        evidence: What `status` was read from.
        evidence_date: When, YYYY-MM-DD.
        note: What a person should know first; may be empty.
    """

    kind: Kind
    spot: bool
    multi_node: bool
    private_network: bool
    ssh: bool
    stop: bool
    billing_step_s: float
    notice_s: float
    status: Status
    evidence: str
    evidence_date: str
    note: str = ""


class UnusableError(TidemillError):
    """A provider cannot be asked, for want of a key, a package or an account.

    Args:
        reason: What is missing.
        remedy: What to set or install.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason = reason
        self.remedy = remedy


class Provider(Protocol):
    """One vendor.

    Attributes:
        name: As in `placement.providers`.
        capabilities: What it can do.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> Self:
        """Make ready to ask it; does not speak to it yet.

        Args:
            environment: Has its keys, and `TIDEMILL_<NAME>_URL` if it is to be asked elsewhere.

        Raises:
            UnusableError: Something is missing.
        """
        ...

    def offers(self, demand: Demand) -> list[Offer]:
        """What can be rented now, at least what meets `demand`.

        Raises:
            ProviderError: It did not answer, or not in its own words.
        """
        ...

    def close(self) -> None:
        """Let go of its connections."""
        ...


def require_key(environment: Mapping[str, str], name: str, where: str) -> str:
    """A key from the environment.

    Args:
        environment: Where it is looked for.
        name: Of the variable.
        where: Where a person gets one.

    Raises:
        UnusableError: It is not set.
    """
    value = environment.get(name, "").strip()
    if not value:
        raise UnusableError(f"{name} is not set", f"export {name} with a key from {where}")
    return value
