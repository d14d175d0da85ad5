"""Tests that only replay, as pytest-recording tells: their endpoints stay asleep.

It plays back what is marked ``vcr``, unless a record mode says otherwise, and it can block the
network. How one test is meant it knows only from fixtures, so it is asked when its own are set up:
before its cassette is in place, or the calls that resume an endpoint would be recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import EndpointError
from pytest_hfbudget.settings import ROUTER, Settings

if TYPE_CHECKING:
    from huggingface_hub import InferenceEndpoint

HUB = "https://huggingface.co"
# The fixtures of pytest-recording that begin to block or to play; both are set up for every test.
FIXTURES = ("block_network", "vcr")
# With these some requests go around the cassette.
LEAKS = ("ignore_hosts", "skip_patchers")


def undecided(item: pytest.Item) -> bool:
    """Whether pytest-recording may keep a test from the network, which it will know later."""
    option = item.config.option
    if getattr(option, "disable_recording", None) is None:
        return False  # it is not installed
    if item.get_closest_marker("vcr") is not None and not option.disable_recording:
        return option.record_mode in (None, "none")
    return _blocked(item)


def decided(fixturedef: pytest.FixtureDef[Any]) -> bool:
    """Whether pytest-recording is about to do what it has been told to do with a test."""
    module = getattr(fixturedef.func, "__module__", "")
    return fixturedef.argname in FIXTURES and module.startswith("pytest_recording")


def only_replayed(request: pytest.FixtureRequest) -> bool:
    """Whether no call of a test can leave this process."""
    item = request.node
    marks = list(item.iter_markers("vcr"))
    if item.config.option.disable_recording or not marks:
        return _blocked(item) and not request.getfixturevalue("allowed_hosts")
    terms = dict(request.getfixturevalue("vcr_config"))
    for mark in reversed(marks):
        terms.update(mark.kwargs)
    mode = terms.get("record_mode") or item.config.option.record_mode or "none"
    return mode == "none" and not any(terms.get(leak) for leak in LEAKS)


def recorded(name: str, request: pytest.FixtureRequest, settings: Settings) -> InferenceEndpoint:
    """An endpoint that sleeps, with the URL that a cassette has answers of.

    Raises:
        EndpointError: there is none, or more than one.
    """
    from huggingface_hub import HfApi, InferenceEndpoint

    cassette = request.getfixturevalue("vcr")
    asked = [str(past.uri) for past in cassette.requests] if cassette is not None else []
    others = (settings.router, settings.endpoints_api, settings.hub or HUB, ROUTER)
    own = [uri for uri in asked if not uri.startswith(others)]
    urls = {uri.partition("/v1/")[0] for uri in own}
    if len(urls) != 1:
        raise EndpointError(
            f"{name} was not resumed, because this test is only replayed, and its cassette has "
            f"answers of {len(urls)} endpoints, so its URL is not known. Give the URL to "
            "InferenceClient yourself, or record with --record-mode=once."
        )
    namespace, _, short = name.partition("/")
    long_ago = "1970-01-01T00:00:00Z"
    raw = {
        "name": short,
        "type": "authenticated",
        "healthRoute": "/health",
        "model": dict.fromkeys(("repository", "framework", "revision", "task"), ""),
        "status": {
            "state": "paused",
            "url": urls.pop(),
            "createdAt": long_ago,
            "updatedAt": long_ago,
        },
    }
    return InferenceEndpoint.from_raw(raw, namespace=namespace, api=HfApi())


def _blocked(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("block_network") is not None
    return marked or bool(item.config.option.block_network)
