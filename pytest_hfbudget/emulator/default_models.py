"""The chat models that the emulated router knows from the start.

The ids are of real models and the figures realistic, but no more than that. As on the real router
some offers have no price, or nothing but a name.
"""

from __future__ import annotations

from typing import Any

from pytest_hfbudget.emulator.catalogue import Model


def _offer(
    provider: str,
    prices: str = "",
    context: int | None = None,
    speed: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One row of the table below; `prices` is "input output"."""
    row: dict[str, Any] = {"provider": provider, "context_length": context, "throughput": speed}
    if prices:
        row["pricing"] = dict(zip(("input", "output"), prices.split(), strict=True))
    return {**row, **more}


_DEFAULT: dict[str, list[dict[str, Any]]] = {
    "emulator/chat": [
        _offer("novita", "0.02 0.05", 8192, 60.0),
        _offer("groq", "0.05 0.08", 8192, 600.0),
        _offer("together", "0.10 0.10", 8192, 120.0),
    ],
    "meta-llama/Llama-3.1-8B-Instruct": [
        _offer("novita", "0.02 0.05", 16384, 71.3, supports_tools=True),
        _offer("cerebras", "0.1 0.1", 32768, 1834.0, first_token_latency_ms=211),
        _offer("nscale", "0.06 0.06", 131072, 55.1),
        _offer("scaleway", "0.2 0.2", 128000),
        _offer("featherless-ai"),
    ],
    "meta-llama/Llama-3.2-1B-Instruct": [
        _offer("novita", "0.01 0.02", 131000, 140.2),
        _offer("featherless-ai", speed=21.0),
    ],
    "meta-llama/Llama-3.3-70B-Instruct": [
        _offer("groq", "0.59 0.79", 131072, 290.7, supports_tools=True),
        _offer("together", "0.88 0.88", 131072, 98.4, supports_tools=True),
        _offer("novita", "0.13 0.39", 131072, 38.9),
        _offer("ovhcloud", "0.79 0.79", 131072, status="error"),
    ],
    "Qwen/Qwen2.5-7B-Instruct": [
        _offer("together", "0.3 0.3", 32768, 101.0, supports_tools=True),
        _offer("featherless-ai"),
    ],
    "Qwen/Qwen2.5-VL-7B-Instruct": [
        _offer("deepinfra", "0.2 0.2", 32768, 44.0),
    ],
    "openai/gpt-oss-120b": [
        _offer("groq", "0.15 0.6", 131072, 486.0, supports_tools=True),
        _offer("novita", "0.05 0.25", 131072, 88.2, supports_tools=True),
        _offer("fireworks-ai", context=131072, speed=151.5, supports_tools=True),
        _offer("cerebras", "0.25 0.69", 131072, 1980.0),
    ],
    "openai/gpt-oss-20b": [
        _offer("groq", "0.075 0.3", 131072, 905.0, supports_tools=True),
        _offer("publicai", "0 0", 32768, 33.0, is_free=True),
    ],
    "deepseek-ai/DeepSeek-V3.1": [
        _offer("novita", "0.27 1", 131072, 29.4, supports_tools=True),
        _offer("deepinfra", "0.21 0.79", 163840, 26.6, stream_usage="finish_chunk"),
        _offer("fireworks-ai", context=163840),
    ],
    "zai-org/GLM-4.6": [
        _offer(
            "zai-org", "0.6 2.2", 200000, 47.0, stream_usage="finish_chunk", is_model_author=True
        ),
        _offer("novita", "0.55 2.2", 204800, 40.1),
    ],
    "CohereLabs/c4ai-command-r7b-12-2024": [
        _offer("cohere", "0.0375 0.15", 132000, 66.0, is_model_author=True),
    ],
}


def default_models() -> dict[str, Model]:
    """The shipped models, by id."""
    parsed = [Model.parse({"id": name, "providers": offers}) for name, offers in _DEFAULT.items()]
    return {model.id: model for model in parsed}
