"""Fixtures: the live endpoints of a test, and its budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_hfbudget.plugin.run import RUN

if TYPE_CHECKING:
    from huggingface_hub import InferenceEndpoint

    from pytest_hfbudget.metering.budget import budget


@pytest.fixture
def hf_endpoints(request: pytest.FixtureRequest) -> dict[str, InferenceEndpoint]:
    """The live endpoints of this test by their full names, those of the closest marker first."""
    return request.config.stash[RUN].requirements.live(request)


@pytest.fixture
def hf_endpoint(hf_endpoints: dict[str, InferenceEndpoint]) -> InferenceEndpoint:
    """The live endpoint that this test needs: ``hf_endpoint.client`` talks to it.

    Named by ``@pytest.mark.hf_endpoint("namespace/name")``, or by ``--hf-endpoint``.
    """
    if not hf_endpoints:
        pytest.fail(
            'the fixture hf_endpoint needs @pytest.mark.hf_endpoint("namespace/name"), '
            "or --hf-endpoint namespace/name",
            pytrace=False,
        )
    return next(iter(hf_endpoints.values()))


@pytest.fixture
def hf_budget() -> Iterator[budget]:
    """What this test spends, without a cap of its own: ``hf_budget.spent``."""
    from pytest_hfbudget.metering.budget import budget

    with budget(name="hf_budget") as counter:
        yield counter
