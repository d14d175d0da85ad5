"""A call that is about to be sent: what is posted, how it goes out, and what it has to fit into."""

from __future__ import annotations

from typing import NamedTuple

from pytest_hfbudget.metering.limit import AS_USUAL, Manner
from pytest_hfbudget.metering.payer import Around
from pytest_hfbudget.metering.replay import Way
from pytest_hfbudget.metering.request import Parameters


class Named(NamedTuple):
    """What the parameters of a call no longer tell.

    Attributes:
        model: by its Hub id; what is posted carries the provider's own.
        provider: who is asked, ``auto`` where the router chooses.
        instead_of: what the caller had asked for, where it is sent with another model.
    """

    model: str | None = None
    provider: str | None = None
    instead_of: str = ""


NAMELESS = Named()


class Sending(NamedTuple):
    """Everything about a call that is known when it is made.

    Attributes:
        timeout: the client's own, whatever that is.
        around: the budgets around the code that calls.
        where: what runs outside of any test.
        at: when it was made, in unix seconds.
        started: the same by the meter's clock.
    """

    parameters: Parameters
    way: Way
    named: Named
    stream: bool
    timeout: object
    around: Around
    where: str
    at: float
    started: float
    manner: Manner = AS_USUAL
