"""Leases of jobs on many machines: the first job resumes an endpoint, the last one pauses it.

Each job has a lease on its machine and another one on a Redis server. The latter expires unless the
job's reaper renews it. A script on the server decides in one atomic step which job is the last. So
two jobs can't both leave the pause to each other.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_hfbudget.endpoints.lease_store import (
    IN_USE,
    PAUSING,
    EndpointLease,
    LeaseStore,
    lease_store_dir,
)
from pytest_hfbudget.endpoints.retry import LOCK_POLL_S
from pytest_hfbudget.errors import EndpointError, HistoryError
from pytest_hfbudget.locks import SYSTEM_CLOCK, Clock
from pytest_hfbudget.text import parse_json

if TYPE_CHECKING:
    from pytest_hfbudget.shared import SharedConnection, SharedServer

_STEP = Path(__file__).with_name("leases.lua").read_text("utf-8")

# Seconds that a reaper waits for a lost server before it pauses endpoints that others may use.
SERVER_WAIT_S = 60.0
RETRY_S = 0.5
# Seconds after a resume for which the control plane may still show the endpoint at rest.
COMING_UP_S = 20.0


@dataclass(frozen=True)
class RemoteLease(EndpointLease):
    """A job's lease on the server.

    Attributes:
        live: whether it was renewed in time.
        host: the host name of the job's machine.
        shared_run: the run that the job belongs to.
        age_s: seconds since it was renewed.
    """

    live: bool = False
    host: str = ""
    shared_run: str = ""
    age_s: float = 0.0

    @property
    def here(self) -> bool:
        return True

    @property
    def in_use(self) -> bool:
        return self.live and self.phase == IN_USE

    @property
    def reaper_works(self) -> bool:
        return self.live

    def end_stopped_reaper(self) -> None:
        """Do nothing: the reaper is no process of this machine."""


@dataclass(frozen=True)
class LeaseView:
    """What the server knows of one endpoint, as the answer to one step of the script.

    Attributes:
        ok: whether the step had an effect; a lock that another job has is False.
        left: the job to which the endpoint was left; empty if it was left to none.
        fence: the fencing number of this job.
        newest: the highest fencing number that was given out.
        others: the leases of other jobs.
        scaling: ``compute.scaling`` from before the first job.
        up: the job that has resumed the endpoint.
        up_s: seconds since that resume.
        mine_s: unix seconds at which this job's lease began; 0 without a lease.
        grid_s: seconds since the first job resumed it, from which minutes are counted; negative if
            unknown.
        gone_s: for each job that has left it within an hour, the seconds since then.
    """

    ok: bool = True
    left: str = ""
    fence: int = 0
    newest: int = 0
    others: tuple[RemoteLease, ...] = ()
    scaling: Mapping[str, Any] | None = None
    up: str = ""
    up_s: float = 0.0
    mine_s: float = 0.0
    grid_s: float = 0.0
    gone_s: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, endpoint: str, api: str) -> LeaseView:
        """Read the JSON answer of the script."""
        told = parse_json(text)
        scaling = parse_json(told["scaling"]) if told["scaling"] else None
        others = tuple(
            RemoteLease(
                run=one["job"],
                endpoint=endpoint,
                api=api,
                owner_pid=0,
                owner_start=None,
                reaper_pid=0,
                reaper_start=None,
                at=one["at"] / 1000,
                phase=one["phase"],
                scaling=scaling,
                live=one["live"],
                host=one.get("host", ""),
                shared_run=one.get("run", ""),
                age_s=(told["now"] - one["beat"]) / 1000,
            )
            for one in told["others"] or ()
        )
        up = told["up"]
        numbers = int(told["fence"]), int(told["newest"])
        times = told["up_ms"] / 1000, told["mine_at"] / 1000, told["grid_ms"] / 1000
        gone = {job: age_ms / 1000 for job, age_ms in dict(told["gone"]).items()}
        return cls(told["ok"], told["left"], *numbers, others, scaling, up, *times, gone)

    @property
    def successor(self) -> RemoteLease | None:
        """The lease of a live job that uses the endpoint; None if there is none."""
        return next((one for one in self.others if one.in_use), None)


class SharedLeaseStore(LeaseStore):
    """The leases on one endpoint, of this machine and of all others."""

    def __init__(
        self,
        directory: Path,
        *,
        api: str,
        endpoint: str,
        run: str,
        place: SharedConnection,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(directory, api=api, endpoint=endpoint, run=run)
        self._place, self._clock, self._job = place, clock, run
        self._api, self._endpoint = api, endpoint
        self._known, self._known_at = LeaseView(), 0.0  # as of the last answer
        self._fence = 0
        self._ended: LeaseView | None = None
        self._insists = False
        self._mine_s = math.inf
        self._payer, self._payer_lived = "", 0.0  # the payer before, and its last renewal

    def put(self, lease: EndpointLease) -> None:
        """Write this run's lease, on the server first.

        Raises:
            EndpointError: it can't be written, or the server can't be asked.
        """
        trouble = ""
        try:
            if lease.phase == PAUSING:
                self._end_lease(lease)
            elif lease.phase == IN_USE:
                self._ended = None
                self._ask("hold", lease.scaling)
        except HistoryError as error:
            trouble = str(error)
        super().put(lease)
        if trouble:
            raise EndpointError(trouble)

    def others(self) -> tuple[EndpointLease, ...]:
        view = self._look()
        remote: list[EndpointLease] = list(view.others)
        if view.up and view.scaling and view.up not in {one.run for one in remote}:
            # That job has left. Its entry is needed for the scaling that belongs to its tag.
            gone = RemoteLease(view.up, self._endpoint, self._api, 0, None, 0, None, 0.0)
            remote.append(replace(gone, scaling=view.scaling))
        known = {one.run for one in remote}
        return (*(one for one in self._others_here() if one.run not in known), *remote)

    def successor(self) -> EndpointLease | None:
        if self._ended is not None:
            if self._ended.left:
                gone = RemoteLease(
                    self._ended.left, self._endpoint, self._api, 0, None, 0, None, 0.0
                )
                return next((o for o in self._ended.others if o.run == gone.run), gone)
            here = self.in_use_here()
            jobs = {one.run for one in self._look().others}
            return next((one for one in here if one.run not in jobs), None)
        return super().successor()

    def end(self, lease: EndpointLease, *, paused: bool) -> None:
        with suppress(HistoryError):
            if paused:
                self._ask("end")
            elif self._ended is not None and not self._ended.left and self.successor():
                self._ask("drop")
            # After a pause that was not verified the lease stays on the server until it expires, so
            # that a sweep finds it.
        self._ended = None
        super().end(lease, paused=paused)

    @contextmanager
    def _alone(self, wait: Callable[[float], object]) -> Iterator[None]:
        """Keep other jobs, on any machine, from resuming it; waits while one pauses it."""
        tries = 3
        while True:
            try:
                if self._ask("lock").ok:
                    break
            except HistoryError as error:
                tries -= 1
                if not tries:
                    raise EndpointError(f"{self._endpoint} is not resumed: {error}") from None
            wait(LOCK_POLL_S)
        try:
            yield
        finally:
            with suppress(HistoryError):
                self._ask("unlock")

    @contextmanager
    def locked(self, wait: Callable[[float], object]) -> Iterator[None]:
        with super().locked(wait), self._alone(wait):
            yield

    def renew(self) -> None:
        """Renew this job's lease on the server.

        Raises:
            HistoryError: the server can't be asked.
        """
        self._ask("renew")

    def resumed(self, scaling: Mapping[str, Any] | None) -> None:
        with suppress(HistoryError):  # another job may then resume it again, which does no harm
            self._ask("up", scaling)

    def coming_up(self) -> bool:
        view = self._look()
        up = any(one.run == view.up and one.live for one in view.others)
        return up and view.up_s < COMING_UP_S

    def pays(self, minute_s: float) -> tuple[bool, float | None]:
        """See `LeaseStore.pays`. The live job with the oldest lease pays."""
        view = self._look()
        self._mine_s = view.mine_s or self._mine_s  # keep it after the lease has ended
        mine = self._mine_s, self._job
        older = [one for one in view.others if one.live and (one.at, one.run) < mine]
        now = self._known_at
        if older:
            payer = min(older, key=lambda one: (one.at, one.run))
            self._payer, self._payer_lived = payer.run, now - payer.age_s
        if older or not self._payer or view.grid_s < 0:
            return not older, None
        # Minutes count from the first resume. The payer before has paid the minute it left in.
        left = now - view.gone_s[self._payer] if self._payer in view.gone_s else self._payer_lived
        first = now - view.grid_s
        return True, first + (max(left - first, 0.0) // minute_s + 1) * minute_s

    def insist(self) -> None:
        self._insists = True

    def superseded(self) -> str:
        try:
            view = self._ask("look")
        except HistoryError:
            return ""  # if the server can't be asked, this job goes on with the pause
        if view.newest <= self._fence:
            return ""
        return next((one.run for one in view.others if one.live), "")

    def leases(self) -> tuple[RemoteLease, ...]:
        """The leases of all other jobs on the server.

        Raises:
            HistoryError: the server can't be asked.
        """
        return self._ask("look").others

    def _end_lease(self, lease: EndpointLease) -> None:
        """Leave the endpoint to another job, or become the one that pauses it, in one atomic step.

        Raises:
            HistoryError: the server can't be asked.
        """
        ends = self._clock.monotonic() + SERVER_WAIT_S
        while True:
            try:
                step = "take" if self._insists else "release"
                self._ended = self._ask(step, lease.scaling)
            except HistoryError:
                # Wait for the server only if another job was using the endpoint. A server whose
                # memory is full still answers `_look`.
                waits = self._known.successor and self._look().successor
                if not waits or self._clock.monotonic() >= ends:
                    raise
                self._clock.sleep(RETRY_S)
            else:
                return

    def _look(self) -> LeaseView:
        """The server's view; its last view if it can't be asked."""
        with suppress(HistoryError):
            self._ask("look")
        return self._known

    def _ask(self, step: str, scaling: Mapping[str, Any] | None = None) -> LeaseView:
        from pytest_hfbudget.shared import VERSION

        place = self._place
        info = json.dumps({"host": socket.gethostname(), "run": place.run})
        told = "" if scaling is None else json.dumps(dict(scaling))
        expiry_ms = round(place.expiry_s * 1000)
        values = (VERSION, step, self._job, expiry_ms, info, told, self._fence)
        key = lease_key(self._api, self._endpoint)
        answer = server_of(place).run(_STEP, [key], values)
        self._known_at = self._clock.monotonic()
        self._known = LeaseView.parse(answer, self._endpoint, self._api)
        # Another thread may have received a higher number meanwhile.
        self._fence = max(self._fence, self._known.fence)
        return self._known


def open_lease_store(
    directory: Path, *, api: str, endpoint: str, run: str, shared: SharedConnection | None
) -> LeaseStore:
    """The store of the leases on an endpoint; with ``shared``, those of other machines too."""
    if shared is None:
        return LeaseStore(directory, api=api, endpoint=endpoint, run=run)
    return _shared_store(directory, api, endpoint, run, shared)


@functools.cache
def _shared_store(
    directory: Path, api: str, endpoint: str, run: str, place: SharedConnection
) -> SharedLeaseStore:
    """One store for each endpoint in a process, because renewing and ending a lease share state."""
    return SharedLeaseStore(directory, api=api, endpoint=endpoint, run=run, place=place)


@functools.cache
def server_of(place: SharedConnection) -> SharedServer:
    """This process's connection to the server."""
    from pytest_hfbudget.shared import SharedServer

    return SharedServer(place.address)


def lease_prefix(api: str) -> str:
    """The prefix of the Redis keys of a control plane's endpoints."""
    from pytest_hfbudget.shared import PREFIX

    server = hashlib.sha256(api.rstrip("/").encode()).hexdigest()[:12]
    return f"{PREFIX}endpoint:{server}:"


def lease_key(api: str, endpoint: str) -> str:
    """The Redis key of an endpoint's leases."""
    return lease_prefix(api) + endpoint


def shared_leases(
    place: SharedConnection, *, api: str, state_dir: Path
) -> dict[str, tuple[RemoteLease, ...]]:
    """The leases of all jobs, by endpoint of a control plane; expired ones included.

    Raises:
        HistoryError: the server can't be asked.
    """
    prefix, folder = lease_prefix(api), lease_store_dir(state_dir)
    names = [key.removeprefix(prefix) for key in server_of(place).keys(f"{prefix}*")]
    return {name: _shared_store(folder, api, name, "look", place).leases() for name in names}
