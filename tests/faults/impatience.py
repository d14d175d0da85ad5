"""Shorter waits than a user has, for runs in front of a server that fails for long.

Given with ``-p impatience``; only waits are changed, and nothing of what is done.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings

GIVEN = json.loads(os.environ["FAULTS_IMPATIENCE"])
_init = EndpointSettings.__init__


def impatient(self: EndpointSettings, *args: Any, **fields: Any) -> None:
    """The settings as they come, but for what the test has given."""
    _init(self, *args, **fields)
    given = dict(GIVEN)
    for part in ("waits", "timings"):
        times = getattr(self, part)
        ours = {name: given.pop(name) for name in vars(times).keys() & given.keys()}
        object.__setattr__(self, part, replace(times, **ours))
    assert not given, f"there are no such times: {given}"


EndpointSettings.__init__ = impatient  # type: ignore[method-assign]
