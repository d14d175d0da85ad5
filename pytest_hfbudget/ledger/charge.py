"""What the ledger remembers: settled calls, and refused calls."""

from __future__ import annotations

from typing import NamedTuple


class Charge(NamedTuple):
    """One settled call. Money is nano-USD; None where the call had no price and no cap.

    ``estimated`` says that no usage came back and the amount is an upper bound. ``status`` is
    the HTTP status, or a word where none came back: ``timeout``, ``lost``, ``closed``,
    ``refused`` (the connection). ``over`` is what it cost beyond its hold: it took longer
    than that was for. ``scopes`` are the keys of every budget that was charged. ``replayed`` says
    that a recording or a mock answered, so that it cost nothing. ``instead_of`` is the
    model that the caller had asked for, where a budget's fallback has put another in its place.
    ``cached_tokens`` are the part of the input that a provider took from its cache, as its usage
    says. ``session_id`` is the inference session that the router was told, to be found on the
    bill; empty for none. ``at`` is when the call was made, in unix seconds. ``endpoint`` is the
    endpoint of the run, by ``namespace/name``, that the call went to; None for every other call.
    ``above`` is the part of an estimated charge that is above what provably came back. ``waited``
    is for how many seconds it waited until calls in flight had settled.
    """

    test: str | None
    task: str
    model: str
    provider: str | None
    input_tokens: int
    output_tokens: int
    nano_usd: int | None
    price_source: str
    status: str
    estimated: bool
    seconds: float
    where: str = ""
    scopes: tuple[str, ...] = ()
    over: int = 0
    replayed: bool = False
    instead_of: str = ""
    at: float = 0.0
    endpoint: str | None = None
    above: int = 0
    waited: float = 0.0
    session_id: str = ""
    cached_tokens: int = 0


class Refusal(NamedTuple):
    """One call that was not sent.

    Attributes:
        details: what it would have held, in one line.
        cap, spent, held, needed: of the budget as it refused, in nano-USD, as in `Figures`; all 0
            where the budget is not the reason.
    """

    test: str | None
    scope: str
    model: str
    message: str
    scope_key: str = ""
    details: str = ""
    cap: int = 0
    spent: int = 0
    held: int = 0
    needed: int = 0
