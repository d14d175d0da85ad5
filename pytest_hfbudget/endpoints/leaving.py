"""Leaving an endpoint: to another run of this machine that has use for it, else paused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from pytest_hfbudget.endpoints import process, tags
from pytest_hfbudget.endpoints.claims import OVER, PAUSING, Claim, Claims
from pytest_hfbudget.endpoints.control import ControlPlane
from pytest_hfbudget.endpoints.journal import LEFT, PAUSED, Record
from pytest_hfbudget.endpoints.pace import SYSTEM_CLOCK, Clock
from pytest_hfbudget.endpoints.pausing import Pauser
from pytest_hfbudget.endpoints.protocol import Receipt
from pytest_hfbudget.endpoints.refusal import ControlPlaneError
from pytest_hfbudget.endpoints.state import PAUSED as RESTING
from pytest_hfbudget.errors import EndpointError


class Leaver:
    """Ends one run's claim on one endpoint. Used by keepers, their owners and the sweep."""

    def __init__(
        self, claims: Claims, claim: Claim, pauser: Pauser, *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        """``claim`` is what is put, should there be none so far."""
        self._claims, self._pauser, self._clock = claims, pauser, clock
        self._claim = replace(
            claims.own() or claim,
            phase=PAUSING,
            keeper_pid=os.getpid(),
            keeper_start=process.start_time(os.getpid()),
        )

    @property
    def endpoint(self) -> str:
        """Full name of what is left."""
        return self._claim.endpoint

    def run(
        self,
        record: Callable[[Receipt], None],
        *,
        reason: str,
        doubted: Callable[[Receipt], None] | None = None,
    ) -> Receipt:
        """Leave it, ``record`` how, and tell; see `Pauser.run`."""
        trouble = self._announce()
        heir = self._heir()
        if heir is not None:
            receipt = self._left(heir, reason)
            record(receipt)
            self._claims.end(self._claim, paused=False)
            return receipt
        receipt = self._pauser.run(
            lambda told: record(replace(told, reason=reason)), doubted=doubted
        )
        # What could not be put back is remembered, for the next run that pauses it.
        self._claims.end(self._claim, paused=receipt.verified and receipt.restored)
        return replace(receipt, reason=reason, warnings=(*receipt.warnings, *trouble))

    def failed(self, error: str) -> Receipt:
        """The receipt of a pause that can't be verified."""
        self._claims.end(replace(self._claim, phase=OVER), paused=False)
        return self._pauser.failed(error)

    def _announce(self) -> tuple[str, ...]:
        try:
            self._claims.put(self._claim)
        except EndpointError as error:  # a full disk is no reason to let it run
            return (str(error),)
        return ()

    def _heir(self) -> Claim | None:
        try:
            return self._claims.heir()
        except OSError:  # what can't be read is no reason to let it run
            return None

    def _left(self, heir: Claim, reason: str) -> Receipt:
        return Receipt(
            endpoint=self.endpoint,
            state=f"left to run {heir.run}",
            verified=False,
            paused_mono=self._clock.monotonic(),
            left_to=heir.run,
            reason=reason,
        )


def awake_again(plane: ControlPlane, claims: Claims, claim: Claim, *, at: float) -> str:
    """The state of an endpoint that was paused and does not rest; empty where all is well.

    A resume that was lost may take effect late, a server may have told of an older state, and
    settings that are put back may wake it. What another run has come to use is left to that run.

    Args:
        at: unix seconds.

    Raises:
        ControlPlaneError: its state can't be read.
    """
    try:
        found = plane.get(claim.endpoint)
    except ControlPlaneError as error:
        if error.gone:
            return ""
        raise
    # Read before the claims are: whoever resumes it has put a claim first.
    if found.state == RESTING or claims.heir() or claims.pauser():
        return ""
    run, until = tags.run_of(found.tags), tags.until(found.tags)
    others = run is not None and tags.RUN + run != tags.of_run(claim.run)
    return "" if others and (until or 0.0) >= at else found.state


def entry(receipt: Receipt, claim: Claim, *, at: float) -> Record:
    """The journal's line about how an endpoint was left."""
    return Record(
        kind=LEFT if receipt.left_to else PAUSED,
        run=claim.run,
        endpoint=receipt.endpoint,
        api=claim.api,
        at=at,
        owner_pid=claim.owner_pid,
        owner_start=claim.owner_start,
        state=receipt.state,
        verified=receipt.verified,
        error=receipt.error,
        reason=receipt.reason,
        left_to=receipt.left_to,
    )
