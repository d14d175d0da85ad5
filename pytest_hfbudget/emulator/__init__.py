"""A local Hugging Face: control plane, router, Hub, dedicated endpoints, and their invoice.

It is spoken to over real HTTP by the real `huggingface_hub`, and it shares no code with the rest
of this package, so that what the package counts can be checked against what it bills.
"""

from __future__ import annotations

from pytest_hfbudget.emulator.client import EmulatorClient

try:
    from pytest_hfbudget.emulator.server import Emulator
except ModuleNotFoundError as error:
    if error.name not in ("starlette", "uvicorn", "h11"):
        raise
    raise ModuleNotFoundError(
        f"The emulator needs {error.name}: pip install 'pytest-hfbudget[emulator]'.",
        name=error.name,
    ) from error

__all__ = ["Emulator", "EmulatorClient"]
