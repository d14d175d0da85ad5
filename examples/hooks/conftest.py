"""Each hook that pytest-hfbudget has, put to use. A real one might write to a database."""

from dataclasses import dataclass, field

import pytest


@dataclass
class Told:
    """What the hooks were told so far."""

    nano_usd: dict[str, int] = field(default_factory=dict)  # by model
    refused: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)


TOLD = Told()


def pytest_hfbudget_price(request):
    if request.task == "sentence-similarity":
        return {"call": 0.0001}  # USD for each call
    return None  # the next source is asked


def pytest_hfbudget_charge(charge):
    TOLD.nano_usd[charge.model] = TOLD.nano_usd.get(charge.model, 0) + (charge.nano_usd or 0)


def pytest_hfbudget_refusal(refusal):
    TOLD.refused.append(f"{refusal.scope}: {refusal.model}")


def pytest_hfbudget_endpoint(event):
    TOLD.endpoints.append(f"{event.name}: {event.what}")


@pytest.fixture
def told():
    return TOLD
