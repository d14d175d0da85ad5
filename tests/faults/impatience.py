"""Shorter waits than a user has, for runs in front of a server that fails for long.

Given with ``-p impatience``; only waits are changed, and nothing of what is done.
"""

from __future__ import annotations

import json
import os
from typing import Any

from pytest_hfbudget.endpoints.lifecycle_types import EndpointSettings

GIVEN = json.loads(os.environ["FAULTS_IMPATIENCE"])
_init = EndpointSettings.__init__


def impatient(self: EndpointSettings, *args: Any, **fields: Any) -> None:
    """The settings as they come, but for what the test has given."""
    _init(self, *args, **fields)
    for name, value in GIVEN.items():
        assert hasattr(self, name), f"there is no setting {name}"
        object.__setattr__(self, name, value)


EndpointSettings.__init__ = impatient  # type: ignore[method-assign]
