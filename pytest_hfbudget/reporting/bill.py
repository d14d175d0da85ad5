"""What Hugging Face has booked for the calls of a run, beside what the ledger has charged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from pytest_hfbudget.money import beside, usd_text

REPORTED, PENDING = "reported", "pending"
FORBIDDEN, UNAVAILABLE = "forbidden", "unavailable"

_HUNDREDTHS = Decimal("0.01")


class Booked(NamedTuple):
    """What is reported of one session by now: it may still grow. Money is nano-USD."""

    nano_usd: int
    requests: int


@dataclass(frozen=True)
class Bill:
    """One run on the ledger and on the bill. Money is nano-USD.

    Attributes:
        session_id: that the router was told; empty where the run has sent none.
        started: in unix seconds.
        ledger: what the calls under the session id were charged; None where one of them has no
            known price.
        requests: those of the calls that may be billed: all but the ones that failed.
        estimated: the part of ``ledger`` that is an upper bound.
        model: the only one that they used; empty where there were several.
        provider: the only one that answered; empty where there were several, or none is known.
        others: calls to the router under session ids that the caller has set.
        booked: what is reported; None until then.
        status: `REPORTED`, `PENDING`, `FORBIDDEN` or `UNAVAILABLE`.
        why: why nothing is reported, in one sentence.
    """

    run: str
    session_id: str
    started: float
    ledger: int | None
    requests: int
    estimated: int = 0
    model: str = ""
    provider: str = ""
    others: int = 0
    booked: Booked | None = None
    status: str = PENDING
    why: str = ""

    @property
    def drift(self) -> Fraction | None:
        """How much more was booked than charged, as a part of the charge; None where unknown."""
        return drift(self.ledger, self.booked and self.booked.nano_usd)

    @property
    def sums(self) -> tuple[str, str]:
        """What was charged and what was billed, for people; ``?`` and empty where unknown."""
        billed = None if self.booked is None else self.booked.nano_usd
        known = [amount for amount in (self.ledger, billed) if amount is not None]
        texts = dict(zip(known, beside(None, *known), strict=True))
        ours = "?" if self.ledger is None else texts[self.ledger]
        return ours, "" if billed is None else texts[billed]

    @property
    def complete(self) -> bool:
        """Whether as many requests are booked as were made; more than that may still come."""
        return self.booked is not None and self.booked.requests >= self.requests

    def exceeds(self, allowed: Fraction) -> bool:
        """Whether bill and ledger differ by more than a part of the ledger."""
        if self.booked is None or self.ledger is None:
            return False
        return abs(self.booked.nano_usd - self.ledger) > allowed * self.ledger

    def json(self) -> dict[str, Any]:
        """For programs."""
        booked = self.booked
        return {
            "run": self.run,
            "session_id": self.session_id or None,
            "status": self.status,
            "ledger_usd": None if self.ledger is None else usd_text(self.ledger),
            "billed_usd": None if booked is None else usd_text(booked.nano_usd),
            "requests": self.requests,
            "billed_requests": None if booked is None else booked.requests,
            "drift": as_number(self.drift),
        }


class ModelDrift(NamedTuple):
    """What runs with one model add up to, on the ledger and on the bill."""

    model: str
    runs: int
    ledger: int
    billed: int

    @property
    def drift(self) -> Fraction | None:
        """As of a `Bill`."""
        return drift(self.ledger, self.billed)


def drift(ledger: int | None, billed: int | None) -> Fraction | None:
    """``billed / ledger - 1``; None where one is unknown, or nothing was charged."""
    if not ledger or billed is None:
        return None
    return Fraction(billed, ledger) - 1


def as_number(found: Fraction | None) -> float | None:
    """A drift for programs."""
    return None if found is None else float(found)


def drift_text(found: Fraction | float | None) -> str:
    """``+50 %``, ``-0.25 %``, ``0 %``; empty where it is unknown."""
    if found is None:
        return ""
    percent = Decimal(str(float(found * 100)))
    if percent and abs(percent) < _HUNDREDTHS:
        return f"{'+' if percent > 0 else '-'}<0.01 %"
    text = f"{percent.quantize(_HUNDREDTHS):+f}".rstrip("0").rstrip(".")
    return f"{text if percent else '0'} %"


def by_model(bills: Iterable[Bill]) -> list[ModelDrift]:
    """The drift of each model, by the runs that used no other; the most expensive first."""
    found: dict[str, ModelDrift] = {}
    for bill in bills:
        if bill.model and bill.ledger is not None and bill.booked is not None:
            _, runs, ledger, billed = found.get(bill.model, ModelDrift(bill.model, 0, 0, 0))
            sums = ledger + bill.ledger, billed + bill.booked.nano_usd
            found[bill.model] = ModelDrift(bill.model, runs + 1, *sums)
    return sorted(found.values(), key=lambda one: -one.ledger)
