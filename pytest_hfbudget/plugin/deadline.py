"""Until when the session's cap pays for the endpoints that run."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import NamedTuple

HORIZON_S = 86_400.0

# A pause takes its time on the way; this share of a minute is left for it.
MARGIN = 0.03


class Running(NamedTuple):
    """An endpoint since its resume, or its further replicas since they may run.

    Every started minute costs as much as the first.

    Attributes:
        since: seconds on the clock of whoever asks.
        nano_per_minute: nano-USD of a billing minute of these replicas.
    """

    since: float
    nano_per_minute: int

    def cost(self, until: float, minute_s: float) -> int:
        """Nano-USD of the minutes that have started by then."""
        return (int(max(until - self.since, 0.0) / minute_s) + 1) * self.nano_per_minute


def seconds_left(budget: int, running: Iterable[Running], now: float, minute_s: float) -> float:
    """Seconds until the first minute starts that ``budget`` nano-USD does not pay any more.

    0 where it is over already; never more than a day, after which it is to be asked again.
    """
    starts = []
    for endpoint in running:
        started = int(max(now - endpoint.since, 0.0) / minute_s) + 1
        budget -= started * endpoint.nano_per_minute
        starts.append((endpoint.since + started * minute_s, endpoint.nano_per_minute))
    heapq.heapify(starts)
    while budget >= 0 and starts:
        at, cost = starts[0]
        if cost == 0 or at - now > HORIZON_S:
            heapq.heappop(starts)
            continue
        budget -= cost
        if budget < 0:
            return max(at - now - MARGIN * minute_s, 0.0)
        heapq.heapreplace(starts, (at + minute_s, cost))
    return 0.0 if budget < 0 else HORIZON_S
