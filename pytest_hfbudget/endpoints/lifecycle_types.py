"""What a run is told about its endpoints, what it knows of each, and its receipts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from pytest_hfbudget.endpoints import Endpoint, TaggedEnd, run_tag
from pytest_hfbudget.endpoints.journal import default_state_dir
from pytest_hfbudget.endpoints.lease_store import LeaseStore, lease_store_dir
from pytest_hfbudget.endpoints.reaper_messages import PauseReceipt
from pytest_hfbudget.endpoints.retry import RetryPolicy, RunTimings, Timings
from pytest_hfbudget.endpoints.shared_leases import open_lease_store
from pytest_hfbudget.endpoints.uptime import (
    NO_TIME,
    Gap,
    ReplicaKey,
    Uptime,
    UptimeWindow,
    UseInterval,
    started_minutes,
)
from pytest_hfbudget.errors import EndpointError, HFBudgetError
from pytest_hfbudget.money import nano

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedConnection

# Called with name, state, and seconds since the wait began, each time the state is read.
Progress: TypeAlias = Callable[[str, str, float], None]

# Called before a resume with the endpoint and nano-USD for a minute of it (None: no known price).
# Raises to refuse the resume.
Afford: TypeAlias = Callable[[Endpoint, "int | None"], None]

# Called with the endpoint, the number of replicas that may be added, nano-USD for a minute of them,
# and whether the endpoint is not yet resumed; in that case it may raise to refuse the resume.
Grow: TypeAlias = Callable[[Endpoint, int, int, bool], None]


class Caps(NamedTuple):
    """The callbacks that ask the caps whether they pay for an endpoint; see their types."""

    afford: Afford
    grow: Grow


@dataclass(frozen=True)
class EndpointSettings:
    """How the endpoints of one run are resumed, kept and paused.

    Attributes:
        api: base URL of the control plane, with its version.
        run: names this run in the journal and in the endpoint's tags.
        state_dir: the folder of journals and leases.
        capped: a cap pays for the endpoints, so they may have only the replicas it pays for.
        reopens: an endpoint whose lease has ended may be resumed again.
        idle_timeout_min: minutes without a request after which the server scales the endpoint to
            zero. A backstop for when no process of this machine can pause it.
        billing_minute_s: seconds of a billing minute; other than 60 only in tests.
        waits: how long the run waits for endpoints and for its reaper.
        timings: how endpoints are paused.
        shared: the Redis server over which machines share endpoints; None if they don't.
    """

    api: str
    token: str | None = field(repr=False)
    run: str
    state_dir: Path = field(default_factory=default_state_dir)
    capped: bool = False
    reopens: bool = False
    idle_timeout_min: int = 15
    billing_minute_s: float = 60.0
    waits: RunTimings = field(default_factory=RunTimings)
    timings: Timings = field(default_factory=Timings)
    shared: SharedConnection | None = field(default=None, repr=False)

    @property
    def retry(self) -> RetryPolicy:
        """The retry policy for requests of the pytest process itself."""
        return RetryPolicy(try_s=self.timings.try_s, total_s=self.waits.retry_s)

    @property
    def tag(self) -> str:
        """The tag that names this run on its endpoints."""
        return run_tag(self.run)

    @property
    def lease_dir(self) -> Path:
        """The folder of the leases that runs of this machine hold."""
        return lease_store_dir(self.state_dir)

    def need_token(self, name: str) -> None:
        """Raise EndpointError if there is no token to manage this endpoint with."""
        if not self.token:
            raise EndpointError(
                f'{name} needs a token with the permission "Manage Inference Endpoints"; '
                "set HF_TOKEN. A rehearsal needs none: pytest --hf-emulator."
            )

    def lease_store(self, endpoint: str) -> LeaseStore:
        """The leases of all runs on an endpoint, as this run sees them."""
        return open_lease_store(
            self.lease_dir, api=self.api, endpoint=endpoint, run=self.run, shared=self.shared
        )


@dataclass(frozen=True)
class UptimeCost:
    """What one endpoint cost in a run.

    Attributes:
        minutes: started billing minutes of all replicas.
        nano_usd: what these minutes cost; 0 if ``price_nano_per_hour`` is None.
        price_nano_per_hour: of one replica; None if the price is unknown.
        estimated: whether ``minutes`` is an upper bound.
        window: the time that is paid for, on this machine's steady clock.
    """

    minutes: int
    nano_usd: int
    price_nano_per_hour: int | None = None
    estimated: bool = False
    window: UptimeWindow = NO_TIME


@dataclass(frozen=True)
class EndpointSummary:
    """How the use of one endpoint in this run ended.

    Attributes:
        state: the last state that was read.
        resumed: this run has resumed it, or may have: the answer to a resume may have been lost.
        resumed_at: unix seconds of the resume.
        paused_at: unix seconds at which its pause was verified.
        paused_mono: when its pause was verified, or it was left, on the system's steady clock.
        verified: the server has said ``paused`` after the pause.
        cost: of its uptime in this run.
        error: why the pause is not verified, and what to do.
        found_running: it ran before this run, and is paused at the end all the same.
        kept: it ran before this run and was to keep running; nothing is charged.
        warnings: problems that did not affect the pause.
        reason: why it was paused: "asked", "deadline" (see `Lifecycle.pause_after`), "owner
            gone" (the pytest process ended) or "reaper lost"; empty before the pause.
        joined: the run that had resumed it, and was using it too.
        left_to: the run that goes on using it, and will pause it.
        revived: how often it was resumed again after another process had paused it.
        taken_over: the code under test has resumed or created it.
    """

    name: str
    state: str
    resumed: bool
    resumed_at: float | None
    paused_at: float | None
    verified: bool
    cost: UptimeCost
    error: str | None
    found_running: bool
    kept: bool = False
    warnings: tuple[str, ...] = ()
    reason: str = ""
    joined: str | None = None
    left_to: str | None = None
    revived: int = 0
    taken_over: bool = False
    paused_mono: float | None = None

    @property
    def in_order(self) -> bool:
        """Whether the endpoint needs no further action."""
        return self.verified or self.kept or self.left_to is not None


@dataclass
class UptimeInputs:
    """The times, replicas and price from which the cost of one endpoint is computed.

    Attributes:
        resumed_at: unix seconds of the first request to resume it.
        resumed_mono: the same on the steady clock; the first look at it if it ran before.
        pause_asked_at: unix seconds at which the run asked for its pause before its own end.
        paused_mono: when that pause was verified, on the steady clock, if a resume follows.
        gaps: from such a pause to the next resume, on the steady clock.
        cold: the stretches of time in which it was coming up, on the steady clock.
        price_atto: atto-USD per replica-hour; None if the price is unknown.
        replicas: how many may run now; the caps pay for a minute of each.
        most_replicas: how many may have run at the same time.
        earlier: see `uptime.earlier_replicas`; None if unknown.
        counting: the lock that `UptimeMeter.count` takes.
    """

    resumed_at: float | None = None
    resumed_mono: float = 0.0
    pause_asked_at: float | None = None
    paused_mono: float | None = None
    gaps: tuple[UseInterval, ...] = ()
    cold: tuple[UseInterval, ...] = ()
    price_atto: int | None = None
    replicas: int = 1
    most_replicas: int = 1
    earlier: Mapping[ReplicaKey, bool] | None = None
    counting: threading.Lock = field(default_factory=threading.Lock)

    def count(self, replicas: int) -> None:
        """Note how many replicas may run from now on."""
        self.replicas, self.most_replicas = replicas, max(self.most_replicas, replicas)

    def begin(self, at: float, mono: float) -> None:
        """Note that a resume is sent now. After a pause between tests, it ends the gap."""
        if self.paused_mono is not None:
            self.gaps = (*self.gaps, UseInterval(self.paused_mono, mono))
            self.paused_mono = self.pause_asked_at = None
        elif self.gaps:
            self.gaps = (*self.gaps[:-1], self.gaps[-1]._replace(stop=mono))
        else:
            self.resumed_at, self.resumed_mono = at, mono

    @property
    def began_mono(self) -> float:
        """When it was last resumed, on the steady clock; the first look at it if it ran before."""
        return self.gaps[-1].stop if self.gaps else self.resumed_mono

    def stretches(self, until: float) -> list[UseInterval]:
        """The stretches in which it was up: from each resume to the pause after it."""
        starts = [self.resumed_mono, *(gap.stop for gap in self.gaps)]
        stops = [*(gap.start for gap in self.gaps), until]
        return [UseInterval(a, max(a, b)) for a, b in zip(starts, stops, strict=True)]

    def window(self, until: float, billing_minute_s: float) -> UptimeWindow:
        """The time that is paid for, up to a moment on the steady clock."""
        stretches, minute_s = self.stretches(until), billing_minute_s
        paid = [
            start + started_minutes(stop - start, minute_s) * minute_s for start, stop in stretches
        ]
        gaps = (
            Gap(gap.start, gap.stop, min(end, gap.stop))
            for gap, end in zip(self.gaps, paid[:-1], strict=True)
        )
        return UptimeWindow(self.resumed_mono, stretches[-1].stop, self.cold, paid[-1], tuple(gaps))


@dataclass
class Opening:
    """Coordinates the thread that brings an endpoint up and those that wait for it.

    Attributes:
        begun: set once the endpoint was resumed, or could not be.
        remaining: waits until the endpoint serves; run by the first `EndpointState.wait`.
        lock: held by that caller, so that all others wait for it.
        asked: the code under test has sent a request to start it, and has no answer yet.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    remaining: Callable[[], Endpoint] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: bool = False


@dataclass
class EndpointState:
    """What this run knows of one endpoint. The thread that brings it up fills it step by step.

    Attributes:
        found: the endpoint as it was before this run.
        endpoint: the endpoint once it serves.
        leased: this run has a lease on it, and will pause it.
        kept: it ran before and is to keep running; this run does not pause it.
        resumed: the resume was sent, and not refused.
        taken_over: the code under test starts it.
        joined: the other run that had resumed it before.
        scaling: see `BeginLease`; kept for a later message to the reaper.
        error: why it can't be brought up.
        use: what its cost is computed from.
        tag: the latest end of this run, as its tags say.
    """

    name: str
    found: Endpoint | None = None
    endpoint: Endpoint | None = None
    leased: bool = False
    kept: bool = False
    resumed: bool = False
    taken_over: bool = False
    revived: int = 0
    joined: str | None = None
    scaling: Mapping[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    error: BaseException | None = None
    use: UptimeInputs = field(default_factory=UptimeInputs)
    tag: TaggedEnd = field(default_factory=TaggedEnd)
    up: Opening = field(default_factory=Opening)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Enclose the work of the first caller: keep its error, and then wake the others."""
        try:
            yield
        except HFBudgetError as error:
            self.error = error
            raise
        except BaseException as error:
            self.error = EndpointError(f"{self.name}: bringing it up was interrupted ({error!r}).")
            raise
        finally:
            self.up.begun.set()

    @property
    def warming(self) -> bool:
        """Whether it was resumed, and no caller has waited for it so far."""
        return self.up.begun.is_set() and self.up.remaining is not None

    @property
    def is_open(self) -> bool:
        """Whether it serves, or has failed for good."""
        return self.endpoint is not None or self.error is not None

    def wait(self) -> Endpoint:
        """Wait for the endpoint and return it; raise the error if it can't be brought up."""
        self.up.begun.wait()
        with self.up.lock, suppress(HFBudgetError):
            self._finish()
        if self.error is not None:
            # Drop the traceback of earlier callers, which would grow with each test.
            raise self.error.with_traceback(None)
        if self.endpoint is None:
            raise EndpointError(f"{self.name} was not brought up.")
        return self.endpoint

    def _finish(self) -> None:
        remaining, self.up.remaining = self.up.remaining, None
        if remaining is not None:
            with self.opening():
                self.endpoint = remaining()

    def refuse_if_ended(self) -> None:
        """Raise EndpointError if the run has ended its lease on the endpoint."""
        if self.use.pause_asked_at is not None:
            at = time.strftime("%H:%M:%S", time.localtime(self.use.pause_asked_at))
            raise EndpointError(
                f"{self.name} was paused at {at}, after the last test that names it, and a run "
                "resumes an endpoint once. Name it with @pytest.mark.hf_endpoint on what needs it "
                f"later, or keep it for the whole run: --hf-endpoint={self.name}"
            )

    def again(self, paused_mono: float) -> EndpointState:
        """The state for a resume after the end of a lease; it keeps the cost so far."""
        self.use.paused_mono = paused_mono
        return EndpointState(
            self.name, leased=True, resumed=self.resumed, warnings=self.warnings, use=self.use
        )

    def warn(self, text: str | None) -> None:
        """Add a warning to the receipt; None adds nothing."""
        if text:
            self.warnings = (*self.warnings, text)

    @property
    def found_asleep(self) -> bool:
        """Whether it was at rest before this run, so that this run had to resume it."""
        return self.found is not None and self.found.at_rest

    def receipt(
        self,
        pause: PauseReceipt | None,
        up: Uptime,
        window: UptimeWindow,
        *,
        late: str | None,
        warnings: tuple[str, ...],
    ) -> EndpointSummary:
        """The receipt; ``late`` is the error when there should be a pause by now."""
        seen = self.endpoint or self.found
        price = None if self.use.price_atto is None else nano(self.use.price_atto)
        return EndpointSummary(
            name=self.name,
            state=(pause.state if pause else "") or (seen.state if seen else ""),
            resumed=self.resumed,
            resumed_at=self.use.resumed_at if self.resumed else None,
            paused_at=pause.paused_at if pause else None,
            verified=bool(pause and pause.verified),
            cost=UptimeCost(up.minutes, up.nano_usd, price, up.estimated, window),
            error=pause.error if pause else None if self.kept else late,
            found_running=not self.found_asleep,
            kept=self.kept,
            warnings=(*self.warnings, *warnings, *(pause.warnings if pause else ())),
            reason=pause.reason if pause else "",
            joined=self.joined,
            left_to=pause.left_to if pause else None,
            revived=self.revived,
            taken_over=self.taken_over,
            paused_mono=pause.paused_mono if pause else None,
        )
