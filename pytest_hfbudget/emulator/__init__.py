"""A local Hugging Face: control plane, router, Hub, dedicated endpoints, and their invoice.

The real `huggingface_hub` calls it over real HTTP. It shares no code with the rest of this package,
so its invoice can check what the package counts.

    with Emulator() as emulator:
        client = InferenceClient(base_url=f"{emulator.router}/v1", api_key="hf_any")
        client.chat_completion(messages, model="emulator/chat")
        emulator.client.invoice()["total_nano_usd"]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_hfbudget.emulator.client import EmulatorClient

if TYPE_CHECKING:
    from pytest_hfbudget.emulator.server import Emulator

__all__ = ["Emulator", "EmulatorClient"]


def __getattr__(name: str) -> object:
    """Import the server only when it is used: the client needs nothing but the standard library."""
    if name != "Emulator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from pytest_hfbudget.emulator.server import Emulator
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("starlette", "uvicorn", "h11"):
            raise
        raise ModuleNotFoundError(
            f'The emulator needs {missing}: pip install "pytest-hfbudget[emulator]"', name=missing
        ) from error
    return Emulator
