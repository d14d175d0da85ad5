"""The plugin's own waiting, kept apart from the event loop that a test runs.

A test may forbid blocking calls in its event loop. What the plugin writes down there takes
microseconds and is no call of the code under test, so it is done as if no loop were running.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def off_loop() -> Iterator[None]:
    """Run a block, or a function, as if this thread had no running event loop."""
    events = sys.modules.get("asyncio.events")  # who has not imported it has no loop either
    loop = events._get_running_loop() if events else None
    if events is None or loop is None:
        yield
        return
    events._set_running_loop(None)
    try:
        yield
    finally:
        events._set_running_loop(loop)
