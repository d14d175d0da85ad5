"""What one run knows about one of its endpoints."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_hfbudget.endpoints.lifecycle_types import EndpointReceipt
from pytest_hfbudget.endpoints.reaper_messages import Receipt
from pytest_hfbudget.endpoints.types import ASLEEP, BROKEN, Endpoint
from pytest_hfbudget.endpoints.uptime import (
    ReplicaKey,
    Uptime,
    UsageWindow,
    UseStretch,
    started_minutes,
)
from pytest_hfbudget.errors import EndpointError, HFBudgetError
from pytest_hfbudget.money import nano


@dataclass
class EndpointState:
    """Filled step by step by the one thread that brings the endpoint up.

    Attributes:
        found: as it was before this run.
        leased: it is in the journal, and to be paused.
        resumed: the resume was sent, and not refused.
        price_atto: atto-USD per replica-hour.
        cold: the stretches of time in which it was coming up, on the steady clock.
        earlier: see `uptime.earlier_replicas`; None where that is unknown.
        replicas: how many may run now; the caps pay for a minute of each.
        most_replicas: how many may have been running at a time.
        scaling: see `Watch`; kept for a later word to the reaper.
        until: unix seconds, the latest end that the endpoint's tags tell.
        renew_at: unix seconds, not to be renewed before; the last try has failed.
    """

    name: str
    found: Endpoint | None = None
    endpoint: Endpoint | None = None
    leased: bool = False
    kept: bool = False
    resumed: bool = False
    revived: int = 0
    joined: str | None = None
    scaling: Mapping[str, Any] | None = None
    until: float | None = None
    renew_at: float = 0.0
    resumed_at: float | None = None
    resumed_mono: float = 0.0
    cold: tuple[UseStretch, ...] = ()
    price_atto: int | None = None
    replicas: int = 1
    most_replicas: int = 1
    earlier: Mapping[ReplicaKey, bool] | None = None
    warnings: tuple[str, ...] = ()
    error: BaseException | None = None
    reviving: threading.Lock = field(default_factory=threading.Lock)
    counting: threading.Lock = field(default_factory=threading.Lock)
    _open: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Around the work of the first caller; lets the others go on, whatever comes of it."""
        try:
            yield
        except HFBudgetError as error:
            self.error = error
            raise
        except BaseException as error:
            self.error = EndpointError(f"{self.name}: bringing it up was interrupted ({error!r}).")
            raise
        finally:
            self._open.set()

    def count(self, replicas: int) -> None:
        """Note how many replicas may run from now on."""
        self.replicas, self.most_replicas = replicas, max(self.most_replicas, replicas)

    def wait(self) -> Endpoint:
        """The endpoint once it is up; or what has kept it from that, again."""
        self._open.wait()
        if self.error is not None:
            # Without the frames of earlier callers, which would pile up with each test.
            raise self.error.with_traceback(None)
        if self.endpoint is None:
            raise EndpointError(f"{self.name} was not brought up.")
        return self.endpoint

    def warn(self, text: str | None) -> None:
        """Keep for the receipt."""
        if text:
            self.warnings = (*self.warnings, text)

    @property
    def found_asleep(self) -> bool:
        """Whether it was this run that had to bring it up."""
        return self.found is not None and self.found.state in ASLEEP | BROKEN

    def window_s(self, until: float) -> float:
        """Seconds from the request to resume, or the first look at it, until a moment."""
        return max(until - self.resumed_mono, 0.0)

    def window(self, until: float, billing_minute_s: float) -> UsageWindow:
        """The time that is paid for, up to a moment on the steady clock."""
        start, length = self.resumed_mono, self.window_s(until)
        paid = started_minutes(length, billing_minute_s) * billing_minute_s
        return UsageWindow(start, start + length, self.cold, start + paid)

    def receipt(
        self,
        pause: Receipt | None,
        up: Uptime,
        window: UsageWindow,
        *,
        late: str | None,
        warnings: tuple[str, ...],
    ) -> EndpointReceipt:
        """All that there is to say; ``late`` is the error when there should be a pause by now."""
        seen = self.endpoint or self.found
        return EndpointReceipt(
            name=self.name,
            state=(pause.state if pause else "") or (seen.state if seen else ""),
            resumed=self.resumed,
            resumed_at=self.resumed_at if self.resumed else None,
            paused_at=pause.paused_at if pause else None,
            verified=bool(pause and pause.verified),
            minutes=up.minutes,
            nano_usd=up.nano_usd,
            price_nano_per_hour=None if self.price_atto is None else nano(self.price_atto),
            error=pause.error if pause else None if self.kept else late,
            found_running=not self.found_asleep,
            kept=self.kept,
            estimated=up.estimated,
            warnings=(*self.warnings, *warnings, *(pause.warnings if pause else ())),
            reason=pause.reason if pause else "",
            joined=self.joined,
            left_to=pause.left_to if pause else None,
            revived=self.revived,
            window=window,
        )
