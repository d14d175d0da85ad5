"""Endpoints that the code under test starts by requests of its own: paused as the run's others."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from pytest_hfbudget.endpoints import Endpoint, split_name
from pytest_hfbudget.endpoints.api import ControlPlaneError
from pytest_hfbudget.endpoints.journal import RESUMED
from pytest_hfbudget.endpoints.lifecycle import Lifecycle
from pytest_hfbudget.endpoints.lifecycle_types import EndpointState
from pytest_hfbudget.errors import EndpointError


class RunLifecycle(Lifecycle):
    """A `Lifecycle` of a test run, which also takes over what the code under test starts."""

    def take_over(self, name: str, form: Mapping[str, Any] | None = None) -> bool:
        """Have the reaper pause an endpoint that the code under test is about to start.

        To be called before its request is sent; `answered` is to follow.

        Args:
            form: the body of the request that creates it; None for a resume.

        Returns:
            False for one that runs already, which is not this run's to pause.

        Raises:
            EndpointError: it can't be promised that it will be paused. Whatever ``afford`` raises.
        """
        namespace, _ = split_name(name)
        if os.getpid() != self._pid:
            raise EndpointError(f"{name}: a forked process can't have endpoints paused.")
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
            if known.use.released_at is not None:
                state, first = self._reopen(known)
        if not first:
            return self._also(state)
        state.taken_over = state.up.asked = True
        with state.opening():
            keep = not state.leased
            self._startup.begin(state, keep_running=keep, new=new)
            # Should a test ask for it later, it is waited for; or resumed, if it was paused.
            state.up.rest = partial(self._startup.revive, state)
            self._adopt(state)
        if state.kept:
            with self._lock:
                del self._states[name]  # a test that needs it later is asked for anew
        return not state.kept

    def answered(self, name: str, status: int, *, stops: bool = False) -> bool:
        """Note the answer to that request, or to one that pauses; whether to release the endpoint.

        Args:
            status: of HTTP; 0 where none came, so that the endpoint may start at any time.
        """
        state, supervisor = self._states.get(name), self._supervisor
        if state is None or supervisor is None or not (state.leased and status):
            return False
        if stops:
            return state.taken_over and status < HTTPStatus.BAD_REQUEST
        supervisor.settled(name)
        asked, state.up.asked = state.up.asked, False
        if status < HTTPStatus.BAD_REQUEST:
            if asked and state.found is not None:
                with suppress(EndpointError):  # what the journal has by now suffices for a pause
                    supervisor.write(RESUMED, state.found)
            return False
        if asked:
            state.resumed = bool(state.use.gaps)  # as it was before
        # What another run has up is refused as "already running", and used all the same.
        return asked and state.joined is None

    def is_taken_over(self, name: str) -> bool:
        """Whether the code under test has started an endpoint, and no test has asked for it."""
        state = self._states.get(name)
        return state is not None and state.taken_over

    def addresses(self, known: Mapping[str, str]) -> dict[str, str]:
        """The URLs of what was taken over, which are known only once it runs; with its names.

        Args:
            known: the URLs and names that are not looked up again.
        """
        names = set(known.values())
        unknown = [one for one in self._in_use() if one.taken_over and one.name not in names]
        looks = ((one.name, self._meter.look(one)) for one in unknown)
        return {found.url: name for name, found in looks if found is not None and found.url}

    def tend(self) -> None:
        super().tend()
        for state in self._in_use() if os.getpid() == self._pid and not self._closing else ():
            # A request whose answer can't be seen had an effect if it runs.
            if state.up.asked and (found := self._meter.look(state)) and not found.at_rest:
                self.answered(state.name, HTTPStatus.OK)

    def revive(self, name: str) -> Endpoint:
        if self.is_taken_over(name):
            raise EndpointError(f"{name} was paused by the code that had started it.")
        return super().revive(name)

    def _reopens(self, released: EndpointState) -> bool:
        """What the code under test has paused is resumed for a test that needs it later."""
        return released.taken_over or super()._reopens(released)

    def _also(self, state: EndpointState) -> bool:
        """The code under test resumes what this run has leased: that resume may come late, too."""
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
