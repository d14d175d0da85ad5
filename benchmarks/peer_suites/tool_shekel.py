"""shekel: a block around the code.

Its documentation wants a budget for each thread and task ("Budget objects are not thread-safe when
shared"), and Redis where several budgets are to share a cap.
"""

import shekel
from common import CAP, NAME, PRICES, REDIS, SHARED, ask, ask_async, join, stream
from shekel.backends.redis import RedisBackend

__all__ = ["ask", "ask_async", "budget", "join", "stream", "worker_budget"]
_more = {}
if PRICES:
    of_prompt, of_answer = PRICES
    _more["price_per_1k_tokens"] = {"input": of_prompt * 1000, "output": of_answer * 1000}


def budget():
    return worker_budget() if SHARED else shekel.budget(max_usd=float(CAP), **_more)


def worker_budget():
    return shekel.budget(f"${CAP}/hr", name=NAME, backend=RedisBackend(url=REDIS), **_more)
