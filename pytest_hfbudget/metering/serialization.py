"""What a process sends its children beside the answers of the ledger: their place, and prices."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from pytest_hfbudget.ledger import Scope
from pytest_hfbudget.metering.budget_context import RunningTest
from pytest_hfbudget.metering.instrumentation.addresses import Addresses
from pytest_hfbudget.pricing import CallRequest, Price, Quote


class ParentPlace(NamedTuple):
    """Where a process stands that has just joined a run: who pays for it, and what it talks to.

    Attributes:
        test: the test that was running then, if one was.
        around: the blocks that were open then.
        explicit: the price that a block or the test's marker stated.
        worker: begins the keys of blocks in the process that was joined.
    """

    session: Scope
    test: RunningTest | None
    around: tuple[Scope, ...]
    explicit: Quote | None
    where: str
    worker: str
    router: str
    addresses: Addresses

    def packed(self) -> dict[str, Any]:
        """As JSON can hold it."""
        # Warnings and fallbacks are the parent's affair, and refusals are told to it.
        kept: dict[str, Any] = {"explicit": None, "refusals": [], "thresholds": ()}
        test = self.test and {**asdict(self.test), **kept}
        return {
            **self._asdict(),
            "test": test,
            "explicit": pack_quote(self.explicit),
            "addresses": asdict(self.addresses),
        }

    @classmethod
    def unpacked(cls, fields: dict[str, Any]) -> ParentPlace:
        """What was packed."""
        test = fields["test"] and RunningTest(
            **{**fields["test"], "scopes": _scopes(fields["test"]["scopes"]), "thresholds": ()}
        )
        return cls(
            **{
                **fields,
                "session": Scope(*fields["session"]),
                "test": test,
                "around": _scopes(fields["around"]),
                "explicit": unpack_quote(fields["explicit"]),
                "addresses": Addresses(**fields["addresses"]),
            }
        )


def _scopes(rows: list[Any]) -> tuple[Scope, ...]:
    return tuple(Scope(*row) for row in rows)


def pack_quote(quote: Quote | None) -> list[Any] | None:
    """A quote as JSON can hold it."""
    return [[asdict(price), source] for price, source in quote.options] if quote else None


def unpack_quote(rows: list[Any] | None) -> Quote | None:
    """What was packed."""
    return Quote(tuple((Price(**price), source) for price, source in rows)) if rows else None


def pack_request(request: CallRequest) -> dict[str, Any]:
    """A request as JSON can hold it."""
    return request._asdict()


def unpack_request(fields: dict[str, Any]) -> CallRequest:
    """What was packed."""
    return CallRequest(**fields)
