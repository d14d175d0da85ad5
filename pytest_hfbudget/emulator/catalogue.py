"""The models, and each provider's offer for a model.

The shape follows the router's public `GET /v1/models` (hub-docs inference-providers/hub-api.md),
where every field of a provider but `provider`, `status` and `is_model_author` is optional and
prices are USD per one million tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_hfbudget.emulator.price import Price
from pytest_hfbudget.emulator.task_names import HF_TASKS

DEFAULT_CONTEXT = 8192
_CHAT = ("conversational",)
_BOTH = ("conversational", "text-generation")
# Which tasks huggingface_hub can ask each provider for, in all the releases since 0.34. An unknown
# model is offered by all of them, by the one first that serves nearly every task: it is the one
# that a client without a provider of its own takes.
PROVIDERS: dict[str, tuple[str, ...]] = {
    "hf-inference": (
        *_BOTH,
        *sorted({*HF_TASKS} - {"tabular-regression", "image-to-video", "text-to-video"}),
    ),
    "baseten": _CHAT,
    "cerebras": _CHAT,
    "cohere": _CHAT,
    "deepinfra": (
        *_BOTH,
        *("feature-extraction", "automatic-speech-recognition", "text-to-speech"),
    ),
    "fal-ai": (
        *("text-to-image", "image-to-image", "image-segmentation"),
        *("text-to-video", "image-to-video"),
        *("text-to-speech", "automatic-speech-recognition"),
    ),
    "featherless-ai": _BOTH,
    "fireworks-ai": _CHAT,
    "groq": _CHAT,
    "novita": (*_BOTH, "text-to-video"),
    "nscale": (*_CHAT, "text-to-image"),
    "ovhcloud": _CHAT,
    "publicai": _CHAT,
    "replicate": (
        *("text-to-image", "image-to-image", "text-to-video"),
        *("text-to-speech", "automatic-speech-recognition"),
    ),
    "scaleway": (*_CHAT, "feature-extraction"),
    "together": (
        *(*_BOTH, "feature-extraction", "text-to-image", "image-to-image"),
        *("text-to-video", "image-to-video", "text-to-speech"),
    ),
    "wavespeed": ("text-to-image", "image-to-image", "text-to-video", "image-to-video"),
    "zai-org": (*_CHAT, "text-to-image"),
    "black-forest-labs": ("text-to-image",),
    "clarifai": _CHAT,
    "hyperbolic": (*_BOTH, "text-to-image"),
    "nebius": (*_BOTH, "feature-extraction", "text-to-image"),
    "sambanova": (*_CHAT, "feature-extraction"),
    "openai": _CHAT,
}

_PUBLIC = (
    "context_length",
    "pricing",
    "is_free",
    "supports_tools",
    "supports_structured_output",
    "first_token_latency_ms",
    "throughput",
)
_PRIVATE = (
    "price",
    "provider_id",
    "task",
    "stream_usage",
)


@dataclass(frozen=True)
class Offer:
    """One provider's offer of one model.

    `listing` is what the router publishes; `price` is what is billed, which a test may set apart
    from the published one; None means that there is no known price.
    """

    provider: str
    status: str = "live"
    listing: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    provider_id: str | None = None
    task: str | None = None
    stream_usage: str = "on_request"

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Offer:
        """From JSON. Raises ValueError for a field that an offer does not have."""
        known = {"provider", "status", "is_model_author", *_PUBLIC, *_PRIVATE}
        if unknown := set(raw) - known:
            raise ValueError(f"a provider's offer has no {sorted(unknown)}; it has {sorted(known)}")
        listing = {name: raw[name] for name in _PUBLIC if raw.get(name) is not None}
        billed = raw.get("price") or listing.get("pricing")
        return cls(
            provider=str(raw["provider"]),
            status=str(raw.get("status", "live")),
            listing={**listing, "is_model_author": bool(raw.get("is_model_author", False))},
            price=Price() if listing.get("is_free") else Price.parse(billed) if billed else None,
            provider_id=raw.get("provider_id"),
            task=raw.get("task"),
            stream_usage=str(raw.get("stream_usage", "on_request")),
        )

    @property
    def context_length(self) -> int:
        """Tokens that prompt and answer may take together."""
        return int(self.listing.get("context_length", DEFAULT_CONTEXT))

    @property
    def throughput(self) -> float:
        """Tokens per second, by which `:fastest` ranks; 0 when unpublished."""
        return float(self.listing.get("throughput", 0))

    def public(self) -> dict[str, Any]:
        """As the router lists it; published prices are numbers there."""
        shown = {"provider": self.provider, "status": self.status, **self.listing}
        if "pricing" in self.listing:
            pricing = self.listing["pricing"]
            shown["pricing"] = {kind: float(value) for kind, value in pricing.items()}
        return shown


@dataclass(frozen=True)
class Model:
    """A model of the Hub and the offers for it, in the order in which the Hub lists them."""

    id: str
    offers: tuple[Offer, ...] = ()
    task: str = "text-generation"
    listed: bool = True
    created: int = 1_750_000_000
    input_modalities: tuple[str, ...] = ("text",)

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Model:
        """From JSON: `id`, `providers`, and optionally `task`, `listed`, `input_modalities`.

        Only chat models are listed by default, as on the real router.
        """
        task = str(raw.get("task", "text-generation"))
        return cls(
            id=str(raw["id"]),
            offers=tuple(Offer.parse(offer) for offer in raw.get("providers", ())),
            task=task,
            listed=bool(raw.get("listed", task == "text-generation")),
            input_modalities=tuple(raw.get("input_modalities", ("text",))),
        )

    def offer_of(self, provider: str) -> Offer | None:
        """The offer of `provider`, if it has one."""
        return next((offer for offer in self.offers if offer.provider == provider), None)

    def with_offer(self, offer: Offer) -> Model:
        """A copy in which `offer` takes the place of the same provider's earlier one."""
        others = tuple(old for old in self.offers if old.provider != offer.provider)
        return replace(self, offers=(*others, offer))

    def public(self) -> dict[str, Any]:
        """As the router lists it."""
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": self.id.split("/", maxsplit=1)[0],
            "architecture": {
                "input_modalities": list(self.input_modalities),
                "output_modalities": ["text"],
            },
            "providers": [offer.public() for offer in self.offers],
        }
