"""The router's live catalogue: prices per model and provider, kept on disk with their date."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from pytest_hfbudget.files import cache_file, read_cache, write_cache
from pytest_hfbudget.money import parse_rate
from pytest_hfbudget.pricing import FREE, Price
from pytest_hfbudget.text import parse_json, public_url

DAY_S = 86_400

# Tokens. A shorter context is a mistake in the catalogue: no model on the router has one.
SHORTEST_CONTEXT = 512

# The names that price lists have for the rate of cached input. The router's list had none of them
# in 2026-10.
CACHED = ("cached_input", "cached", "cache_read", "input_cache_read")


@dataclass(frozen=True)
class Offer:
    """One provider's offer of one model; ``price`` is None if the router has none.

    ``status`` is the router's own word for whether it is ``live``.
    """

    provider: str
    price: Price | None
    live: bool = True
    context_length: int | None = None
    status: str = field(default="", compare=False)


class Contexts(NamedTuple):
    """The context lengths of a model's offers, in tokens.

    Attributes:
        longest: None unless every offer has a length.
        shortest: of the offers that have a length; None if none has.
    """

    longest: int | None
    shortest: int | None


@dataclass(frozen=True)
class Catalogue:
    """``GET /v1/models`` of the router: chat models only, prices in USD per 1M tokens.

    Every field but ``provider`` and ``status`` may be missing from an offer, prices among them
    (hub-docs, "Inference Providers: Hub API").
    """

    offers: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    read_at: float = 0.0
    origin: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    # Kept, because each call under a cap needs them, and they never change.
    _contexts: dict[tuple[str, str | None], Contexts] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def parse(cls, payload: Mapping[str, Any], *, read_at: float, origin: str) -> Catalogue:
        """The catalogue in the router's answer, without rows that can't be read.

        Args:
            read_at: when the answer came, in unix seconds.
            origin: the base URL of the router.
        """
        models = payload.get("data")
        rows = [row for row in models if isinstance(row, dict)] if isinstance(models, list) else []
        return cls({str(row.get("id")): _offers(row) for row in rows}, read_at, origin, payload)

    def as_read(self) -> dict[str, Any]:
        """The router's answer with its origin and time, for the cache and for workers."""
        return {"origin": self.origin, "read_at": self.read_at, "models": dict(self.payload)}

    @property
    def source(self) -> str:
        """Where these prices come from, with the day on which they were read."""
        return f"router catalogue of {_day(self.read_at)}"

    def is_fresh(self, now: float) -> bool:
        """Whether it was read within the last day. A clock that was set back makes it old."""
        return 0 <= now - self.read_at < DAY_S

    def age(self, now: float) -> str:
        """When it was read, and how long ago that is: ``2026-11-20 (2 days old)``."""
        return f"{_day(self.read_at)} ({_span(now - self.read_at)} old)"

    def of(self, model: str) -> tuple[Offer, ...]:
        """The offers of a model that can be routed to now."""
        return tuple(offer for offer in self.offers.get(model, ()) if offer.live)

    def contexts(self, model: str, provider: str | None) -> Contexts:
        """How many tokens prompt and answer can have together, at any provider that may answer."""
        key = model, provider
        known = self._contexts.get(key)
        if known is None:
            known = self._contexts[key] = self._longest_and_shortest(*key)
        return known

    def _longest_and_shortest(self, model: str, provider: str | None) -> Contexts:
        lengths = [o.context_length for o in self.of(model) if provider in (None, o.provider)]
        known = [length for length in lengths if length]
        complete = len(known) == len(lengths)
        return Contexts(max(known, default=None) if complete else None, min(known, default=None))


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).date().isoformat()


def _span(seconds: float) -> str:
    """The largest whole unit that fits."""
    for unit, length in (("day", DAY_S), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "seconds"


def _offers(row: Mapping[str, Any]) -> tuple[Offer, ...]:
    providers = row.get("providers")
    found = [p for p in providers if isinstance(p, dict)] if isinstance(providers, list) else []
    return tuple(
        Offer(
            provider=offer["provider"],
            price=_price(offer),
            live=offer.get("status") == "live",
            context_length=_length(offer.get("context_length")),
            status=str(offer.get("status")),
        )
        for offer in found
        if isinstance(offer.get("provider"), str)
    )


def _length(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if value >= SHORTEST_CONTEXT else None


def _price(offer: Mapping[str, Any]) -> Price | None:
    if offer.get("is_free") is True:
        return FREE
    pricing = offer.get("pricing")
    if not isinstance(pricing, dict):
        return None
    try:
        rate_in, rate_out = (parse_rate(pricing[k], units=10**6) for k in ("input", "output"))
    except (KeyError, ValueError):
        return None  # the missing half would be charged as $0
    # A price of zero that is not marked as free is missing data, not a free offer.
    if not (rate_in or rate_out):
        return None
    return Price(input=rate_in, output=rate_out, cached=_cached_rate(pricing))


def _cached_rate(pricing: Mapping[str, Any]) -> int | None:
    """The rate of cached input; None if there is none, so that it is billed as other input."""
    found = next((pricing[name] for name in CACHED if pricing.get(name) is not None), None)
    try:
        return None if found is None else parse_rate(found, units=10**6) or None
    except ValueError:
        return None


@dataclass(frozen=True)
class CatalogueFile:
    """The catalogue on disk, so that a run without a network still has prices."""

    path: Path

    @classmethod
    def of(cls, router: str) -> CatalogueFile:
        """Where the catalogue of a router is kept for this user."""
        return cls(cache_file("catalogue", router))

    def load(self, origin: str) -> Catalogue | None:
        """What was last read from this router; None if there is no usable copy."""
        try:
            copy = read_cache(self.path)
            if copy["origin"] != origin:
                return None
            read_at = float(copy["read_at"])
            _day(read_at)  # raises for an invalid time: a charge names this day
            return Catalogue.parse(copy["models"], read_at=read_at, origin=origin)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None  # missing or damaged; the next refresh writes it anew

    def refresh(self, origin: str, fetch: Callable[[str], bytes], now: float) -> Catalogue:
        """Read the router's catalogue and keep it.

        Raises:
            ValueError: the answer is not a catalogue.
        """
        models = parse_json(fetch(f"{origin.rstrip('/')}/v1/models"))
        if not isinstance(models, dict) or not isinstance(models.get("data"), list):
            raise ValueError(f"{public_url(origin)}/v1/models did not answer with a list of models")
        catalogue = Catalogue.parse(models, read_at=now, origin=origin)
        write_cache(self.path, catalogue.as_read())
        return catalogue


def kept_catalogue(router: str) -> Catalogue:
    """What was last read from a router; an empty catalogue if there is no usable copy."""
    return CatalogueFile.of(router).load(router) or Catalogue()
