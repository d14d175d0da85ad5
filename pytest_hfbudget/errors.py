"""The exceptions, and the messages that several modules raise.

A message says what happened, with the amounts that were compared, and what to do next. A message
that only one module raises is in that module.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from pytest_hfbudget.money import beside, to_usd


class HFBudgetError(Exception):
    """Anything that pytest-hfbudget raises on purpose."""


class HFBudgetWarning(UserWarning):
    """A budget has crossed its ``warn_at``, or a call could not be sent with the ``fallback``."""


class ConfigError(HFBudgetError, ValueError):
    """An option, a marker argument or a price file that can't be used."""


class EndpointError(HFBudgetError):
    """An Inference Endpoint that can't be found, resumed, reached or paused."""


class UnaffordableEndpointError(EndpointError):
    """An endpoint that stays paused, because a budget of the run can't pay for its next minute."""


class HistoryError(HFBudgetError):
    """The usage log, or a budget over many runs, can't be read or written."""


class Figures(NamedTuple):
    """The state of a budget when it refused a call, in nano-USD.

    Attributes:
        held: set aside for calls in flight.
        needed: the most that the call could have cost.
    """

    cap: int = 0
    spent: int = 0
    held: int = 0
    needed: int = 0

    @property
    def left(self) -> int:
        """What is neither spent nor held; 0 if more than the cap is."""
        return max(self.cap - self.spent - self.held, 0)


NO_FIGURES = Figures()


class BudgetExceededError(HFBudgetError):
    """A call that was not sent, because a cap would not hold it.

    Attributes:
        scope, scope_key: the name of the budget that refused, and its key in the ledger.
        figures: the amounts that were compared, in nano-USD.
        model: the model that the call asked for, or the URL or endpoint that it went to.
        used_up: whether too little was left, so that a higher cap would have let the call through.
        details: what the call would have held, in one line; empty if that was not the reason.
    """

    used_up = True
    details = ""

    def __init__(
        self,
        message: str,
        *,
        scope: str = "",
        scope_key: str = "",
        model: str = "",
        figures: Figures = NO_FIGURES,
    ) -> None:
        super().__init__(message)
        self.scope, self.scope_key, self.model, self.figures = scope, scope_key, model, figures

    def explain(self, details: str) -> None:
        """Add a line that a traceback shows below the message."""
        self.details = details
        self.__notes__ = [details]  # as `add_note` does, which came with Python 3.11

    @property
    def spent(self) -> Decimal:
        """USD that the refusing budget had been charged."""
        return to_usd(self.figures.spent)

    @property
    def limit(self) -> Decimal:
        """USD cap of the refusing budget."""
        return to_usd(self.figures.cap)

    @property
    def held(self) -> Decimal:
        """USD set aside for calls in flight."""
        return to_usd(self.figures.held)

    @property
    def needed(self) -> Decimal:
        """USD that the refused call could have cost at most."""
        return to_usd(self.figures.needed)


class UnpricedCallError(BudgetExceededError):
    """A call without a known price, under a cap. Its cost can't be bounded, so it was not sent."""

    used_up = False


class ServiceRefusalError(BudgetExceededError):
    """The service refuses every call: no credit is left, or the token lacks a permission."""


class UnseenCallError(BudgetExceededError):
    """A request to a paid host by a client whose requests the plugin can't read."""

    used_up = False


class LedgerUnreachableError(BudgetExceededError):
    """The process that keeps the ledger is gone, so nothing more may be spent."""

    used_up = False


class RunOverError(BudgetExceededError):
    """A call before its run has begun, or after it has ended: no budget can hold it."""

    used_up = False


class LedgerBusyError(BudgetExceededError):
    """A call of a signal handler that has interrupted the ledger in the middle of a change."""

    used_up = False


SMALLER = "The call was not sent. Raise the cap, or give the call a smaller max_tokens."
IN_VAIN = (
    "Waiting can't help: the calls in flight belong to this caller, or to callers that wait for "
    "it. The call was not sent. Read their streams to the end or close them, or raise the cap."
)


def interrupted(what: str) -> LedgerBusyError:
    """The refusal of a call by a signal handler that has interrupted a change of the ledger.

    Args:
        what: the model, or what else the message begins with.
    """
    return LedgerBusyError(
        f"{what}: a signal handler interrupted a change of the ledger, and made this call. The "
        "call was not sent. Let the handler only set a flag, and make the call after the handler "
        "has returned.",
        model=what,
    )


ONLY_HELP = "pytest only shows its help, so no budget holds the call. It was not sent."
NOT_YET = "pytest has not configured this worker yet, so no budget holds the call. It was not sent."
NO_ENDPOINTS = (
    "Inference Endpoints need Linux or macOS. On this system no process can outlive pytest to "
    "pause them, so none is resumed. Leave their tests out, for example by -m 'not hf_endpoint'."
)
AFTER_THE_REPORT = (
    "the run is over and its report is written, so the call was not sent. Make it in a test, in a "
    "fixture, or in a pytest_sessionfinish hook that is not a hook wrapper."
)


def too_late(seconds: float) -> str:
    """The advice for a call that has waited as long as hf_hold_wait allows."""
    return (
        f"Calls in flight did not end within {seconds:g} s (hf_hold_wait). The call was not sent. "
        "Raise the cap or hf_hold_wait, or give each call a smaller max_tokens."
    )


def over_cap(
    *,
    scope: str,
    scope_key: str,
    model: str,
    figures: Figures,
    advice: str = SMALLER,
) -> BudgetExceededError:
    """The refusal of a call that does not fit into what a cap has left."""
    needed, left, spent, held, cap = beside(
        figures.cap, figures.needed, figures.left, figures.spent, figures.held
    )
    in_flight = f", {held} held for calls in flight" if figures.held else ""
    return BudgetExceededError(
        f"{scope}: {model} may cost up to {needed}, but only {left} of {cap} is left "
        f"({spent} spent{in_flight}). {advice}",
        scope=scope,
        scope_key=scope_key,
        model=model,
        figures=figures,
    )
