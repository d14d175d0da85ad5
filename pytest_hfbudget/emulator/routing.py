"""Which provider serves a model: the suffix rules of the router.

`:fastest` (and no suffix) takes the highest throughput, `:cheapest` the lowest price per output
token, `:preferred` the user's order, `:PROVIDER` that one (hub-docs inference-providers/index.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from pytest_hfbudget.emulator.catalogue import PROVIDERS, Model, Offer
from pytest_hfbudget.emulator.refusal import refused_by_model
from pytest_hfbudget.emulator.world import World

_POLICIES = ("fastest", "cheapest", "preferred")


def split_model(said: str) -> tuple[str, str]:
    """The Hub id and the suffix of a `model` field; the suffix is empty when there is none."""
    name, _, suffix = said.partition(":")
    return name, suffix


def choose_offer(world: World, name: str, suffix: str) -> Offer:
    """The offer that the router takes. Raises Refusal (400) when there is none."""
    model = world.models.get(name)
    if suffix and suffix not in _POLICIES:
        return named_offer(world, name, suffix)
    if model is None or not model.offers:
        return Offer(world.switches.default_provider)
    live = [offer for offer in model.offers if offer.status != "error"]
    if not live:
        raise _unsupported(name, "any provider that is up")
    routing = world.switches.routing
    if not suffix and routing.startswith("pin:"):
        return named_offer(world, name, routing.removeprefix("pin:"))
    if not suffix and routing == "round_robin":
        return live[next(world.turns) % len(live)]
    return _ranked(live, suffix or "fastest", world.switches.preferred_providers)[0]


def named_offer(world: World, name: str, provider: str) -> Offer:
    """The offer of one provider. Raises Refusal: 400 without one, 503 while it is down."""
    model = world.models.get(name)
    if model is None or not model.offers:
        return Offer(provider)  # Every provider serves an unconfigured model.
    offer = model.offer_of(provider)
    if offer is None:
        raise _unsupported(name, provider)
    if offer.status == "error" and not world.switches.error_provider_serves:
        raise refused_by_model(503, f"{provider} is unavailable for {name}", "provider_down")
    return offer


def mapping(model: Model | None, name: str, task: str) -> list[object]:
    """The model's `inferenceProviderMapping` on the Hub.

    An unconfigured model is offered by every provider: first by those that serve its
    task, since a client without a provider takes the first; then by the others, for the task that
    each is best known for.
    """
    served = "conversational" if task == "text-generation" else task
    offers: Sequence[Offer] = model.offers if model is not None else ()
    if not offers:
        anyone = [
            Offer(provider, task=served if served in tasks else tasks[0])
            for provider, tasks in PROVIDERS.items()
        ]
        offers = sorted(anyone, key=lambda offer: offer.task != served)
    return [
        {
            "provider": offer.provider,
            "providerId": offer.provider_id or name,
            "status": offer.status,
            "task": offer.task or served,
            "isModelAuthor": False,
        }
        for offer in offers
    ]


def _ranked(offers: Sequence[Offer], policy: str, preferred: Sequence[str]) -> list[Offer]:
    if policy == "fastest":
        return sorted(offers, key=lambda offer: -offer.throughput)
    if policy == "cheapest":
        return sorted(offers, key=_output_price)
    order = {provider: rank for rank, provider in enumerate(preferred)}
    return sorted(offers, key=lambda offer: order.get(offer.provider, len(order)))


def _output_price(offer: Offer) -> tuple[bool, Fraction]:
    """Unpublished prices rank last."""
    pricing = offer.listing.get("pricing")
    return pricing is None, Fraction(str(pricing["output"])) if pricing else Fraction(0)


def _unsupported(name: str, by: str) -> Exception:
    return refused_by_model(
        400, f"The requested model '{name}' is not supported by {by}.", "model_not_supported"
    )
