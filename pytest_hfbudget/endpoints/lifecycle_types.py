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
from pytest_hfbudget.endpoints.reaper_messages import Receipt
from pytest_hfbudget.endpoints.retry import RetryPolicy, RunTimings, Timings
from pytest_hfbudget.endpoints.shared_leases import open_lease_store
from pytest_hfbudget.endpoints.uptime import (
    NO_TIME,
    Gap,
    ReplicaKey,
    Uptime,
    UsageWindow,
    UseStretch,
    started_minutes,
)
from pytest_hfbudget.errors import EndpointError, HFBudgetError
from pytest_hfbudget.money import nano

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedPlace

# Name, state and seconds since the wait began; called each time that the state was read.
Progress: TypeAlias = Callable[[str, str, float], None]

# The endpoint and nano-USD for a minute of it (None: no known price); raises to refuse.
Afford: TypeAlias = Callable[[Endpoint, "int | None"], None]

# The endpoint, how many replicas may run beside those that are paid for, nano-USD for a minute of
# these, and whether it was not resumed yet: then it raises to refuse.
Grow: TypeAlias = Callable[[Endpoint, int, int, bool], None]


class Caps(NamedTuple):
    """What the caps on a run's money are asked, and may refuse."""

    afford: Afford
    grow: Grow


@dataclass(frozen=True)
class EndpointSettings:
    """How endpoints of one run are kept.

    Attributes:
        api: base URL of the control plane, with its version.
        run: names this run in the journal and in the endpoint's tags.
        state_dir: where journals of leases live.
        capped: a cap has to pay for the endpoints, so they may not scale beyond what it pays for.
        reopens: an endpoint that was released may be resumed again.
        idle_timeout_min: minutes without a request after which the server is to scale the
            endpoint to zero, should everything on this machine be gone.
        billing_minute_s: length of a billing minute; other than 60 for tests only.
        waits: how long the run waits for endpoints and for its reaper.
        timings: how endpoints are paused.
        shared: the server over which other machines share the endpoints; None for none.
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
    shared: SharedPlace | None = field(default=None, repr=False)

    @property
    def retry(self) -> RetryPolicy:
        """For the requests of the pytest process itself."""
        return RetryPolicy(try_s=self.timings.try_s, total_s=self.waits.retry_s)

    @property
    def tag(self) -> str:
        """The tag that names this run on its endpoints."""
        return run_tag(self.run)

    @property
    def lease_dir(self) -> Path:
        """The folder of what runs of this machine have in use."""
        return lease_store_dir(self.state_dir)

    def need_token(self, name: str) -> None:
        """Raises EndpointError where there is no token to manage this endpoint with."""
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
        nano_usd: what they cost; 0 if ``price_nano_per_hour`` is None.
        price_nano_per_hour: of one replica; None when the hardware list has no price.
        estimated: ``minutes`` is an upper bound.
        window: the time that is paid for, by this machine's steady clock.
    """

    minutes: int
    nano_usd: int
    price_nano_per_hour: int | None = None
    estimated: bool = False
    window: UsageWindow = NO_TIME


@dataclass(frozen=True)
class EndpointReceipt:
    """What became of one endpoint of this run.

    Attributes:
        state: the last one that was seen.
        resumed: this run has resumed it, or may have: an answer that was lost counts.
        resumed_at, paused_at: unix seconds; the latter is when the pause was read back.
        paused_mono: the same, or when it was left, on the system's steady clock.
        verified: the pause was read back.
        cost: of its uptime in this run.
        error: why the pause is not verified, and what to do.
        found_running: it was up before this run, and is paused at the end all the same.
        kept: it was up before this run and was asked to stay so; nothing is charged.
        warnings: what went wrong without harm to the pause.
        reason: why it was paused: "asked", "deadline" (see `Lifecycle.pause_after`), "owner
            gone" (the pytest process ended) or "reaper lost"; empty before.
        joined: the run that had brought it up, and was using it too.
        left_to: the run that went on using it, and pauses it.
        revived: how often it was resumed again after someone else had paused it.
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
        """Whether nothing is left to be done about it."""
        return self.verified or self.kept or self.left_to is not None


@dataclass
class BilledUse:
    """What one endpoint's cost is computed from.

    Attributes:
        resumed_at: unix seconds of the request to resume.
        resumed_mono: the same on the steady clock, or the first look at it if it ran.
        released_at: unix seconds at which its pause was asked for, before the end of the run.
        paused_mono: when that pause was read back, on the steady clock, where a resume follows.
        gaps: between such pauses and the next resumes.
        cold: the stretches of time in which it was coming up, on the steady clock.
        price_atto: atto-USD per replica-hour; None when it has no known price.
        replicas: how many may run now; the caps pay for a minute of each.
        most_replicas: how many may have been running at a time.
        earlier: see `uptime.earlier_replicas`; None where that is unknown.
    """

    resumed_at: float | None = None
    resumed_mono: float = 0.0
    released_at: float | None = None
    paused_mono: float | None = None
    gaps: tuple[UseStretch, ...] = ()
    cold: tuple[UseStretch, ...] = ()
    price_atto: int | None = None
    replicas: int = 1
    most_replicas: int = 1
    earlier: Mapping[ReplicaKey, bool] | None = None
    counting: threading.Lock = field(default_factory=threading.Lock)

    def count(self, replicas: int) -> None:
        """Note how many replicas may run from now on."""
        self.replicas, self.most_replicas = replicas, max(self.most_replicas, replicas)

    def begin(self, at: float, mono: float) -> None:
        """A resume is sent now; one after a pause in a gap between tests ends that gap."""
        if self.paused_mono is not None:
            self.gaps = (*self.gaps, UseStretch(self.paused_mono, mono))
            self.paused_mono = self.released_at = None
        elif self.gaps:
            self.gaps = (*self.gaps[:-1], self.gaps[-1]._replace(stop=mono))
        else:
            self.resumed_at, self.resumed_mono = at, mono

    @property
    def began_mono(self) -> float:
        """The last request to resume, or the first look at it if it ran."""
        return self.gaps[-1].stop if self.gaps else self.resumed_mono

    def stretches(self, until: float) -> list[UseStretch]:
        """From each request to resume, or the first look at it, until the pause after it."""
        starts = [self.resumed_mono, *(gap.stop for gap in self.gaps)]
        stops = [*(gap.start for gap in self.gaps), until]
        return [UseStretch(a, max(a, b)) for a, b in zip(starts, stops, strict=True)]

    def window(self, until: float, billing_minute_s: float) -> UsageWindow:
        """The time that is paid for, up to a moment on the steady clock."""
        stretches, minute_s = self.stretches(until), billing_minute_s
        paid = [
            start + started_minutes(stop - start, minute_s) * minute_s for start, stop in stretches
        ]
        gaps = (
            Gap(gap.start, gap.stop, min(end, gap.stop))
            for gap, end in zip(self.gaps, paid[:-1], strict=True)
        )
        return UsageWindow(self.resumed_mono, stretches[-1].stop, self.cold, paid[-1], tuple(gaps))


@dataclass
class Opening:
    """Who brings an endpoint up, and who waits for that.

    Attributes:
        begun: it was resumed, or could not be.
        rest: what is left to do then: the first caller of `EndpointState.wait` does it.
        lock: held by that caller, so that all others wait for it.
        asked: the code under test asks for its start, and has no answer so far.
    """

    begun: threading.Event = field(default_factory=threading.Event)
    rest: Callable[[], Endpoint] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    asked: bool = False


@dataclass
class EndpointState:
    """Filled step by step by the one thread that brings the endpoint up.

    Attributes:
        found: as it was before this run.
        leased: it is in the journal, and to be paused.
        resumed: the resume was sent, and not refused.
        taken_over: the code under test starts it, by requests of its own.
        scaling: see `Watch`; kept for a later message to the reaper.
        use: what its cost is computed from.
        tag: the end of this run, as its tags tell.
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
    use: BilledUse = field(default_factory=BilledUse)
    tag: TaggedEnd = field(default_factory=TaggedEnd)
    up: Opening = field(default_factory=Opening)

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
            self.up.begun.set()

    @property
    def warming(self) -> bool:
        """Whether it was resumed, and nothing has waited for it so far."""
        return self.up.begun.is_set() and self.up.rest is not None

    @property
    def is_open(self) -> bool:
        """Whether it serves, or never will."""
        return self.endpoint is not None or self.error is not None

    def wait(self) -> Endpoint:
        """The endpoint once it is up; or what has kept it from that, again."""
        self.up.begun.wait()
        with self.up.lock, suppress(HFBudgetError):
            self._finish()
        if self.error is not None:
            # Without the frames of earlier callers, which would pile up with each test.
            raise self.error.with_traceback(None)
        if self.endpoint is None:
            raise EndpointError(f"{self.name} was not brought up.")
        return self.endpoint

    def _finish(self) -> None:
        rest, self.up.rest = self.up.rest, None
        if rest is not None:
            with self.opening():
                self.endpoint = rest()

    def refuse_released(self) -> None:
        """Raises EndpointError once the run is done with it."""
        if self.use.released_at is not None:
            at = time.strftime("%H:%M:%S", time.localtime(self.use.released_at))
            raise EndpointError(
                f"{self.name} was paused at {at}, after the last test that names it, and a run "
                "resumes an endpoint once. Name it with @pytest.mark.hf_endpoint on what needs it "
                f"later, or keep it for the whole run: --hf-endpoint={self.name}"
            )

    def again(self, paused_mono: float) -> EndpointState:
        """For the next resume of one that was released; its cost goes on."""
        self.use.paused_mono = paused_mono
        return EndpointState(
            self.name, leased=True, resumed=self.resumed, warnings=self.warnings, use=self.use
        )

    def warn(self, text: str | None) -> None:
        """Keep for the receipt."""
        if text:
            self.warnings = (*self.warnings, text)

    @property
    def found_asleep(self) -> bool:
        """Whether it was this run that had to bring it up."""
        return self.found is not None and self.found.at_rest

    def receipt(
        self,
        pause: Receipt | None,
        up: Uptime,
        window: UsageWindow,
        *,
        late: str | None,
        warnings: tuple[str, ...],
    ) -> EndpointReceipt:
        """The receipt; ``late`` is the error when there should be a pause by now."""
        seen = self.endpoint or self.found
        price = None if self.use.price_atto is None else nano(self.use.price_atto)
        return EndpointReceipt(
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
