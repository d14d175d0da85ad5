"""USD caps for Hugging Face inference in tests, and endpoints that are paused at the end.

PYTEST_DONT_REWRITE: it has no assertions, and may be imported before pytest is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_hfbudget.errors import (
        BudgetExceededError,
        ConfigError,
        EndpointError,
        HFBudgetError,
        HFBudgetWarning,
        UnpricedCallError,
    )
    from pytest_hfbudget.metering.budget import budget, with_budget

__version__ = "0.1.0"

__all__ = [
    "BudgetExceededError",
    "ConfigError",
    "EndpointError",
    "HFBudgetError",
    "HFBudgetWarning",
    "UnpricedCallError",
    "__version__",
    "budget",
    "with_budget",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: pytest imports this package in suites that never call anything.
    if name == "budget":
        from pytest_hfbudget.metering.budget import budget

        return budget
    if name == "with_budget":
        from pytest_hfbudget.metering.budget import with_budget

        return with_budget
    if name in __all__:
        from pytest_hfbudget import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
