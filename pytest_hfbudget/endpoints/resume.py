"""Bringing one endpoint up: the net under it, one resume, and the wait until it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pytest_hfbudget.endpoints import tags
from pytest_hfbudget.endpoints.api import ControlPlane
from pytest_hfbudget.endpoints.api_errors import ControlPlaneError
from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings, Progress
from pytest_hfbudget.endpoints.retry import Clock
from pytest_hfbudget.endpoints.types import ASLEEP, BROKEN, RUNNING, Endpoint
from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.text import printable

# Only sent again when the state has shown that the one before had no effect.
_MOST_RESUMES = 3


class Resumer:
    """Resumes endpoints and waits for them. Safe to share between threads."""

    def __init__(
        self,
        plane: ControlPlane,
        settings: EndpointSettings,
        *,
        clock: Clock,
        progress: Progress,
        stopping: Callable[[], str],
    ) -> None:
        """``stopping`` says why nothing is to be waited for any more; empty while there is time."""
        self._plane, self._settings, self._clock = plane, settings, clock
        self._progress, self._stopping = progress, stopping

    def spread_net(self, endpoint: Endpoint, most_replicas: int | None = None) -> str | None:
        """Have the server itself scale the endpoint to zero when it idles, and tag the run.

        The last layer: it works when this machine is gone. A warning if it could not be had.

        Args:
            most_replicas: have the server start no more than these.
        """
        scaling = endpoint.raw_scaling
        idle = endpoint.scaling.scale_to_zero_min
        longest = self._settings.idle_timeout_min
        replicas = max(endpoint.scaling.max_replica, 1)
        scaling.update(
            minReplica=0,
            maxReplica=replicas if most_replicas is None else min(replicas, most_replicas),
            scaleToZeroTimeout=min(idle, longest) if idle else longest,
        )
        payload = {"compute": {"scaling": scaling}, "tags": self._tags(endpoint)}
        try:
            self._plane.update(endpoint.full_name, payload)
        except ControlPlaneError as error:
            return (
                f"{endpoint.full_name}: the server was not told to scale it to zero when idle, "
                f"so it has no net should this machine fail: {error}"
            )
        return None

    def renew(self, name: str) -> str | None:
        """Tag a later end; a warning if that could not be had."""
        try:
            plane = self._plane.with_retry(replace(self._settings.retry, total_s=0.0))
            plane.update(name, {"tags": self._tags(plane.get(name))})
        except ControlPlaneError as error:
            return f"{name}: a sweep from elsewhere may pause it, since its tags are old: {error}"
        return None

    @property
    def until(self) -> float:
        """Unix seconds: the latest end of a run that tags an endpoint now."""
        return self._clock.time() + self._settings.waits.max_run_s

    def _tags(self, endpoint: Endpoint) -> list[str]:
        return tags.with_lease(endpoint.tags, self._settings.run, self.until)

    def resume(self, name: str) -> bool:
        """Resume once; whether that was answered.

        An answer that got lost is not waited for again, but looked for in the state. Only if
        the state shows that the request had no effect, it is repeated.

        Raises:
            EndpointError: it was refused, or not sent because the run is ending.
        """
        self._go_on(name)
        for _ in range(_MOST_RESUMES):
            try:
                self._plane.resume(name)
            except ControlPlaneError as error:
                if not error.maybe_done:
                    raise
                if self._woke(name):
                    return False
            else:
                return True
        return False

    def wait(self, name: str) -> Endpoint:
        """Wait until the endpoint runs and its health route answers.

        Raises:
            EndpointError: it failed, was paused meanwhile, or took longer than it may.
        """
        began = self._clock.monotonic()
        trouble, looks = "", 0
        while self._may_wait(began, looks):
            self._go_on(name)
            looks += 1
            seconds = self._clock.monotonic() - began
            try:
                endpoint = self._plane.get(name)
                self._progress(name, endpoint.state, seconds)
                trouble = f'its state is "{endpoint.state}"'
                if endpoint.state == RUNNING:
                    if self._plane.healthy(endpoint):
                        return endpoint
                    trouble = f"its health route {endpoint.health_route} does not answer 200"
                self._refuse_end(endpoint, seconds)
            except ControlPlaneError as error:
                if error.gone or error.denied:
                    raise
                trouble = str(error)
            self._clock.sleep(self._settings.waits.poll_s)
        raise EndpointError(
            f"{name} did not serve within {self._settings.waits.wait_timeout_s:g} s: {trouble}. "
            "It is paused again; give it more time, or look at its logs."
        )

    def _may_wait(self, began: float, looks: int) -> bool:
        # The looks are counted too: a suite that freezes its clock must not wait for ever.
        most = self._settings.waits.wait_timeout_s
        in_time = self._clock.monotonic() - began < most
        return in_time and looks * self._settings.waits.poll_s <= most

    def _refuse_end(self, endpoint: Endpoint, seconds: float) -> None:
        name, state = endpoint.full_name, endpoint.state
        if state in BROKEN:
            status = endpoint.raw.get("status") or {}
            reason = status.get("errorMessage") or status.get("message") or "no reason given"
            reason = printable(str(reason))
            raise EndpointError(f'{name} came to the state "{state}" instead of running: {reason}.')
        # Right after a resume the old state may still be what is read.
        if state in ASLEEP and seconds >= self._settings.timings.settle_s:
            raise EndpointError(
                f'{name} is "{state}" {seconds:.0f} s after it was resumed: someone else, or the '
                "server, has put it to rest. Run again."
            )

    def _woke(self, name: str) -> bool:
        """Whether the state leaves its rest within the time that a lost resume may take.

        True also where no state could be read: then nothing shows that it had no effect.
        """
        ends, asleep = self._clock.monotonic() + self._settings.timings.settle_s, False
        while self._clock.monotonic() < ends:
            if self._stopping():
                return True  # not to be repeated; the reaper knows that it may come yet
            self._clock.sleep(min(self._settings.waits.poll_s, self._settings.timings.settle_s / 4))
            try:
                asleep = self._plane.get(name).state in ASLEEP
            except ControlPlaneError:
                continue
            if not asleep:
                return True
        return not asleep

    def _go_on(self, name: str) -> None:
        why = self._stopping()
        if why:
            raise EndpointError(f"{name} is not waited for: {why}")
