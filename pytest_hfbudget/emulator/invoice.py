"""The bill: every model call and every replica's time, priced apart from any client's bookkeeping.

This is the oracle that a spending ledger is compared with, so it shares no code with one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from pytest_hfbudget.emulator.clock import MICROSECONDS, rfc3339
from pytest_hfbudget.emulator.endpoint import Endpoint
from pytest_hfbudget.emulator.price import NANO, Consumed, Price, nano_usd
from pytest_hfbudget.emulator.replica import Span
from pytest_hfbudget.emulator.switches import Switches

_FIRST_ERROR = 400
Billed = Literal["pending", "full", "generated", "none", "uptime", "unpriced"]


@dataclass
class Call:
    """One row. `billed` says how the amount came about:

    - pending: not answered yet, so not billed yet
    - full: all that the answer consists of
    - generated: what had been written when the stream broke off
    - none: refused, failed, or never carried out (only 2xx and 3xx answers are billed, hub-docs
      inference-providers/register-as-a-provider.md)
    - uptime: answered by a dedicated endpoint, which is billed by time
    - unpriced: consumed, without a known price

    `session` and `bill_to` are what the request's headers say; `at` and `ended` are microseconds.
    """

    seq: int
    model: str | None
    provider: str | None
    task: str
    stream: bool
    endpoint: str | None = None
    used: Consumed = field(default_factory=Consumed)
    price: Price | None = None
    status: int | None = None
    billed: Billed = "pending"
    session: str | None = None
    bill_to: str | None = None
    at: int = 0
    ended: int | None = None

    def settle(
        self, status: int | None, applied: bool, broken_off: bool, now: int | None = None
    ) -> None:
        """Fix the row when its request is over; `used` holds what counts by now."""
        self.status, self.ended = status, now
        if not applied or status is None or status >= _FIRST_ERROR:
            self.billed = "none"
        elif self.endpoint is not None:
            self.billed = "uptime"
        elif self.price is None:
            self.billed = "unpriced"
        else:
            self.billed = "generated" if broken_off else "full"

    @property
    def nano_usd(self) -> int | None:
        """Nano-USD; None when it is unpriced."""
        if self.billed == "unpriced":
            return None
        if self.billed in ("full", "generated") and self.price is not None:
            return nano_usd(self.price, self.used)
        return 0

    def row(self) -> dict[str, Any]:
        """As the invoice shows it."""
        return {
            "seq": self.seq,
            "model": self.model,
            "provider": self.provider,
            "endpoint": self.endpoint,
            "task": self.task,
            "prompt_tokens": self.used.prompt_tokens,
            "completion_tokens": self.used.completion_tokens,
            "images": self.used.images,
            "seconds": float(self.used.seconds),
            "stream": self.stream,
            "status": self.status,
            "nano_usd": self.nano_usd,
            "billed": self.billed,
        }


class Invoice:
    """The calls in the order of their arrival."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def open(self, model: str | None, task: str, stream: bool, endpoint: str | None) -> Call:
        """Start the row of a call that has just arrived."""
        call = Call(len(self.calls) + 1, model, None, task, stream, endpoint)
        self.calls.append(call)
        return call

    def bill(self, endpoints: Iterable[Endpoint], switches: Switches, now: int) -> dict[str, Any]:
        """The whole invoice as JSON."""
        uptime = [endpoint_bill(endpoint, switches, now) for endpoint in endpoints]
        rows = [call.row() for call in self.calls]
        calls_total = sum(row["nano_usd"] or 0 for row in rows)
        uptime_total = sum(row["nano_usd"] for row in uptime)
        return {
            "calls": rows,
            "endpoints": uptime,
            "calls_nano_usd": calls_total,
            "endpoints_nano_usd": uptime_total,
            "total_nano_usd": calls_total + uptime_total,
            "unpriced_calls": sum(row["billed"] == "unpriced" for row in rows),
        }


def endpoint_bill(endpoint: Endpoint, switches: Switches, now: int) -> dict[str, Any]:
    """What an endpoint's uptime costs up to `now`.

    Price per hour x minutes / 60, summed over the replicas and rounded up to a nano-dollar once.
    Each span counts its billing minutes on its own (Inference Endpoints docs, support/pricing: by
    the minute, while initializing and running; how a minute rounds is not documented).
    """
    billed = _billed_stages(switches)
    dollars, minutes, spans = Fraction(0), Fraction(0), []
    for replica in endpoint.replicas:
        for span in replica.spans(billed):
            counted = span_minutes(span, switches, now)
            minutes += counted
            dollars += replica.price_per_hour * counted / 60
            spans.append(span)
    return {
        "name": endpoint.full_name,
        "nano_usd": math.ceil(dollars * NANO),
        "minutes": int(minutes) if minutes.denominator == 1 else float(minutes),
        "spans": [_shown(span) for span in spans],
        "state": endpoint.state,
    }


def span_minutes(span: Span, switches: Switches, now: int) -> Fraction:
    """The billing minutes of one span; one that lasts is counted up to `now`."""
    stop = now if span.stop is None else span.stop
    minute = Fraction(str(switches.billing_minute_s)) * MICROSECONDS
    exact = (stop - span.start) / minute
    if switches.minute_rounding == "up":
        return Fraction(math.ceil(exact))
    if switches.minute_rounding == "nearest":
        return Fraction(math.floor(exact + Fraction(1, 2)))
    return exact


def _billed_stages(switches: Switches) -> Callable[[str], bool]:
    stages = {"downloading", "pulling", "initializing", "running"}
    stages |= {"pending"} if switches.bills_pending else set()
    stages |= {"updating"} if switches.bills_updating else set()
    stages |= {"failed"} if switches.bills_failed else set()
    stages |= {"terminating"} if switches.billing_stops == "paused_state" else set()
    return stages.__contains__


def _shown(span: Span) -> dict[str, Any]:
    return {
        "replica": span.replica,
        "start": rfc3339(span.start),
        "stop": None if span.stop is None else rfc3339(span.stop),
    }
