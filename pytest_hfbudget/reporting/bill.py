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
    """What Hugging Face reports for one session so far; it may still grow. Money is nano-USD."""

    nano_usd: int
    requests: int


@dataclass(frozen=True)
class Bill:
    """The cost of one run on the ledger and on the bill. Money is nano-USD.

    Attributes:
        session_id: the id that the run sent to the router; empty if none.
        started: when the run began, in unix seconds.
        ledger: the charges of the calls under the session id; None if one of them has no known
            price.
        requests: the number of calls that may be billed: all but the failed ones.
        estimated: the part of ``ledger`` that is an upper bound.
        model: the model of all calls; empty if there were several.
        provider: the provider of all answers; empty if there were several, or it is unknown.
        others: the number of calls to the router under session ids that the caller has set.
        booked: what Hugging Face reports; None before it reports anything.
        status: `REPORTED`, `PENDING`, `FORBIDDEN` or `UNAVAILABLE`.
        why: why there is no report from Hugging Face, in one sentence.
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
        """By which part of the charge the bill exceeds the charge; None if unknown."""
        return drift(self.ledger, self.booked and self.booked.nano_usd)

    @property
    def sums(self) -> tuple[str, str]:
        """The texts of charge and bill; an unknown charge is ``?``, an unknown bill is empty."""
        billed = None if self.booked is None else self.booked.nano_usd
        known = [amount for amount in (self.ledger, billed) if amount is not None]
        texts = dict(zip(known, beside(None, *known), strict=True))
        ours = "?" if self.ledger is None else texts[self.ledger]
        return ours, "" if billed is None else texts[billed]

    @property
    def complete(self) -> bool:
        """Whether at least as many requests are booked as were made."""
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
    """The sums of all runs that used only this model, on the ledger and on the bill."""

    model: str
    runs: int
    ledger: int
    billed: int

    @property
    def drift(self) -> Fraction | None:
        """See `Bill.drift`."""
        return drift(self.ledger, self.billed)


def drift(ledger: int | None, billed: int | None) -> Fraction | None:
    """``billed / ledger - 1``; None if one of them is unknown, or nothing was charged."""
    if not ledger or billed is None:
        return None
    return Fraction(billed, ledger) - 1


def as_number(found: Fraction | None) -> float | None:
    """A drift as a JSON number."""
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
    """The drift of each model, from runs that used only this model; the most expensive first."""
    found: dict[str, ModelDrift] = {}
    for bill in bills:
        if bill.model and bill.ledger is not None and bill.booked is not None:
            _, runs, ledger, billed = found.get(bill.model, ModelDrift(bill.model, 0, 0, 0))
            sums = ledger + bill.ledger, billed + bill.booked.nano_usd
            found[bill.model] = ModelDrift(bill.model, runs + 1, *sums)
    return sorted(found.values(), key=lambda one: -one.ledger)
