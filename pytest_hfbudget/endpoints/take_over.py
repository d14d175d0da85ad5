"""Takes over endpoints that the code under test starts, so that the run pauses them too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

from pytest_hfbudget.endpoints import Endpoint, split_name
from pytest_hfbudget.endpoints.api import ControlPlaneError
from pytest_hfbudget.endpoints.journal import RESUMED
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointState, EndpointSummary
from pytest_hfbudget.errors import EndpointError


class RunLifecycle(Lifecycle):
    """A `Lifecycle` of a test run, which also takes over what the code under test starts."""

    _late: RunLifecycle | None = None  # has what is started when this one pauses its endpoints

    def take_over(self, name: str, form: Mapping[str, Any] | None = None) -> bool:
        """Have the reaper pause an endpoint at the end that the code under test is about to start.

        Call this before the request is sent, and `answered` after its answer.

        Args:
            form: the body of a request that creates the endpoint; None for a resume.

        Returns:
            False if the endpoint runs already, so that this run does not pause it.

        Raises:
            EndpointError: no process can guarantee the pause. Also whatever ``afford`` raises.
        """
        namespace, _ = split_name(name)
        if os.getpid() != self._pid:
            raise EndpointError(f"{name}: a forked process can't have endpoints paused.")
        if self._closing and not self._settings.capped:
            return self._of_late_starts().take_over(name, form)
        self._refuse_early(name)
        self._settings.need_token(name)
        new = None if form is None else Endpoint.to_be(namespace, form)
        if new is not None and self._exists(name):
            return False  # its creation will be refused
        self.forget(name)
        with self._lock:
            known = self._states.get(name)
            state = self._states.setdefault(name, EndpointState(name))
        first = known is None
        if known is not None:
            known.up.begun.wait()
            if known.use.pause_asked_at is not None:
                state, first = self._reopen(known)
        if not first:
            return self._also(state)
        state.taken_over = state.up.asked = True
        with state.opening():
            keep = not state.leased
            self._startup.begin(state, keep_running=keep, new=new)
            # If a test needs the endpoint later, wait until it serves, and resume it if paused.
            state.up.remaining = partial(self._startup.revive, state)
            self._close_dead_leases(state)
        if state.kept:
            with self._lock:
                del self._states[name]  # for a test that needs it later, `ensure` starts anew
        return not state.kept

    def answered(self, name: str, status: int, *, stops: bool = False) -> bool:
        """Note the answer to a request that starts (`take_over`) or pauses an endpoint.

        Returns whether the lease on the endpoint is to end.

        Args:
            status: the HTTP status; 0 without an answer, so that the endpoint may start any time.
            stops: whether the request pauses the endpoint.
        """
        if self._late is not None and name in self._late._states:
            self._late.answered(name, status, stops=stops)
            return False  # `finish_late` pauses it
        state, supervisor = self._states.get(name), self._supervisor
        if state is None or supervisor is None or not (state.leased and status):
            return False
        if stops:
            return state.taken_over and status < HTTPStatus.BAD_REQUEST
        supervisor.resume_over(name)
        asked, state.up.asked = state.up.asked, False
        if status < HTTPStatus.BAD_REQUEST:
            if asked and state.found is not None:
                with suppress(EndpointError):  # the `INTENT` in the journal suffices for a pause
                    supervisor.write(RESUMED, state.found)
            return False
        if asked:
            state.resumed = bool(state.use.gaps)  # as it was before
        # If another run has it up, the server says "already running", and the test uses it.
        return asked and state.joined is None

    def finish_late(self) -> tuple[EndpointSummary, ...]:
        """Pause what was started since this lifecycle began to pause; wait as `finish` does."""
        late = self._late
        return () if late is None else (*late.finish(), *late.finish_late())

    def _of_late_starts(self) -> RunLifecycle:
        """Another lifecycle, with its own reaper and journal: ours take no more endpoints."""
        with self._lock:
            if self._late is None:
                settings = replace(self._settings, run=os.urandom(6).hex())
                self._late = RunLifecycle(settings, clock=self._clock, spawn=self._spawn)
            return self._late

    def is_taken_over(self, name: str) -> bool:
        """Whether the code under test has started an endpoint that no test names."""
        state = self._states.get(name)
        return state is not None and state.taken_over

    def addresses(self, known: Mapping[str, str]) -> dict[str, str]:
        """The names of taken-over endpoints by URL. A URL is known once its endpoint runs.

        Args:
            known: names by URL that need not be looked up.
        """
        names = set(known.values())
        unknown = [one for one in self._in_use() if one.taken_over and one.name not in names]
        looks = ((one.name, self._meter.read(one)) for one in unknown)
        return {found.url: name for name, found in looks if found is not None and found.url}

    def tend(self) -> None:
        super().tend()
        for state in self._in_use() if os.getpid() == self._pid and not self._closing else ():
            # We can't see the answer to this request. If the endpoint runs, it had an effect.
            if state.up.asked and (found := self._meter.read(state)) and not found.at_rest:
                self.answered(state.name, HTTPStatus.OK)

    def revive(self, name: str) -> Endpoint:
        if self.is_taken_over(name):
            raise EndpointError(f"{name} was paused by the code that had started it.")
        return super().revive(name)

    def _reopens(self, ended: EndpointState) -> bool:
        """Whether an endpoint is resumed again for a later test: taken-over ones always are."""
        return ended.taken_over or super()._reopens(ended)

    def _also(self, state: EndpointState) -> bool:
        """Note that the code under test resumes an endpoint that this run has leased already."""
        state.up.begun.wait()
        if state.error is not None:
            raise EndpointError(str(state.error))
        if state.leased:
            self._arm().resuming(state.name)
        return state.leased

    def _exists(self, name: str) -> bool:
        try:
            self._plane.get(name)
        except ControlPlaneError as error:
            if error.gone:
                return False
            raise
        return True
