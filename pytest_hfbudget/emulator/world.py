"""The state of the emulator; a reset replaces the world by a new one.

There is no lock: only the server's event loop touches a world, and no method suspends.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import IO, Any

from pytest_hfbudget.emulator.behaviour import Behaviour
from pytest_hfbudget.emulator.catalogue import Model, Offer
from pytest_hfbudget.emulator.clock import Clock
from pytest_hfbudget.emulator.default_models import default_models
from pytest_hfbudget.emulator.endpoint import STATES, Endpoint
from pytest_hfbudget.emulator.endpoint_form import short_form
from pytest_hfbudget.emulator.endpoint_json import (
    DEFAULT_MODEL,
    apply_form,
    behaviour_from,
    hardware_named,
)
from pytest_hfbudget.emulator.faults import Faults
from pytest_hfbudget.emulator.hardware import DEFAULT_HARDWARE, Hardware
from pytest_hfbudget.emulator.invoice import Invoice
from pytest_hfbudget.emulator.log import Log
from pytest_hfbudget.emulator.price import Price
from pytest_hfbudget.emulator.refusal import refused
from pytest_hfbudget.emulator.switches import Switches
from pytest_hfbudget.emulator.task_names import guess_task

PARTS = ("switches", "models", "prices", "endpoints", "faults")
_NAME = re.compile(r"[a-z0-9-]{1,32}")


class World:
    """Models, endpoints, switches, faults, the log and the invoice."""

    def __init__(self, log_file: IO[str] | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.log = Log(log_file)
        self.switches = Switches()
        self.faults = Faults()
        self.invoice = Invoice()
        self.models: dict[str, Model] = default_models()
        self.provider_prices: dict[str, Price] = {}
        self.hardware: list[Hardware] = list(DEFAULT_HARDWARE)
        self.endpoints: dict[str, Endpoint] = {}
        self.deleted: list[Endpoint] = []
        self.turns = itertools.count()  # of round-robin routing
        self.ids = itertools.count(1)
        self.counted: Counter[str] = Counter()  # how often each prompt was
        self.polls = 0  # that the queue will still answer with "not yet"
        self.tasks: set[asyncio.Task[Any] | None] = set()  # requests on their way

    def configure(self, config: Mapping[str, Any]) -> None:
        """Apply a configuration, which has some of `PARTS`.

        Raises ValueError or Refusal for what it does not know; what came before it stays applied.
        """
        if unknown := set(config) - set(PARTS):
            raise ValueError(f"a configuration has {', '.join(PARTS)}; not {sorted(unknown)}")
        self.change_switches(config.get("switches", {}))
        for raw in config.get("models", ()):
            self.add_model(raw)
        self.price_providers(config.get("prices", {}))
        for raw in config.get("endpoints", ()):
            self.add_endpoint(short_form(raw))
        self.faults.extend(config.get("faults", ()))

    def change_switches(self, values: Mapping[str, Any]) -> None:
        """Turn some switches. Raises ValueError for one that there is not."""
        self.switches = self.switches.changed(values)

    # -- models

    def add_model(self, raw: Mapping[str, Any]) -> None:
        """Add or replace a model; a form with `provider` and `price` only prices that offer."""
        if "provider" not in raw:
            model = Model.parse(raw)
            self.models[model.id] = model
            return
        id_, provider, price = str(raw["id"]), str(raw["provider"]), Price.parse(raw["price"])
        model = self.models.get(id_) or Model(id_, task=guess_task(id_), listed=False)
        offer = model.offer_of(provider) or Offer(provider)
        self.models[id_] = model.with_offer(replace(offer, price=price))

    def price_providers(self, prices: Mapping[str, Mapping[str, Any]]) -> None:
        """Set prices that hold for all models of a provider."""
        self.provider_prices |= {name: Price.parse(price) for name, price in prices.items()}

    def price_of(self, model: str, provider: str) -> Price | None:
        """What a call is billed at; None where it has no known price."""
        known = self.models.get(model)
        offer = known.offer_of(provider) if known else None
        if offer is not None and offer.price is not None:
            return offer.price
        return self.provider_prices.get(provider) or self.provider_prices.get("*")

    def task_of(self, model: str) -> str:
        """The task that a model is for; that of an unknown one is guessed from its name."""
        known = self.models.get(model)
        return known.task if known else guess_task(model)

    def hub_id(self, provider: str, provider_id: str) -> str:
        """The Hub id of the model that a provider calls `provider_id`."""
        for model in self.models.values():
            offer = model.offer_of(provider)
            if offer is not None and offer.provider_id == provider_id:
                return model.id
        return provider_id

    # -- endpoints

    def add_endpoint(self, form: Mapping[str, Any]) -> Endpoint:
        """Add a dedicated endpoint: the API's create form, `namespace`, `state`, behaviour.

        Raises Refusal: 400 for a name, state or hardware that there is not, 409 for a second one.
        """
        namespace, name = str(form.get("namespace", "emulator")), str(form.get("name", ""))
        state = form.get("state", "paused")
        if not _NAME.fullmatch(name):
            raise refused(400, "name: 1 to 32 characters of a-z, 0-9 and -")
        if state not in STATES:
            raise refused(400, f"state is one of {', '.join(STATES)}")
        if f"{namespace}/{name}" in self.endpoints:
            raise refused(409, f"endpoint {name} exists already")
        endpoint = Endpoint(
            namespace,
            name,
            hardware_named(self.hardware, form, self.hardware[0]),
            self.clock,
            self.log,
            lambda: self.switches,
            behaviour_from(form, Behaviour()),
            model=dict(DEFAULT_MODEL),
        )
        apply_form(endpoint, form)
        self.endpoints[endpoint.full_name] = endpoint
        if state != "paused":
            endpoint.force(state)
        return endpoint

    def endpoint(self, namespace: str, name: str) -> Endpoint:
        """The endpoint of that name. Raises Refusal (404)."""
        found = self.endpoints.get(f"{namespace}/{name}")
        if found is None:
            raise refused(404, f"Endpoint {name} not found")
        return found

    def delete_endpoint(self, endpoint: Endpoint) -> None:
        """Delete it; its bill stays."""
        endpoint.delete()

        def forget() -> None:
            if self.endpoints.pop(endpoint.full_name, None):
                self.deleted.append(endpoint)

        if self.switches.delete_lag_s:
            self.clock.after(self.switches.delete_lag_s, forget)
        else:
            forget()

    def bill(self) -> dict[str, Any]:
        """The invoice up to now."""
        everything = [*self.deleted, *self.endpoints.values()]
        return self.invoice.bill(everything, self.switches, self.clock.now())
