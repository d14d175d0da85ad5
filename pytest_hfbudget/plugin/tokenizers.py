"""The tokenizers of models, from the local Hugging Face cache; nothing is fetched during a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import pytest

from pytest_hfbudget.ledger.locks import off_loop
from pytest_hfbudget.metering.prompts import Tokenizer
from pytest_hfbudget.plugin.console import say
from pytest_hfbudget.settings import Settings

FILE = "tokenizer.json"
# A run knows its models from earlier runs and from its table of prices.
MOST_DOWNLOADS = 20


def tokenizers(settings: Settings) -> Callable[[str], Tokenizer | None]:
    """Returns the tokenizer of a model, if it lies on this machine and is to be used."""
    found: dict[str, Tokenizer | None] = {}

    def tokenizer(model: str) -> Tokenizer | None:
        if model not in found:
            found[model] = _cached(model)
        return found[model]

    # The emulator counts by a rule of its own.
    unused = settings.tokenizer == "off" or settings.emulator
    return (lambda model: None) if unused else tokenizer


def download(config: pytest.Config, models: Iterable[str]) -> None:
    """Fetch the tokenizers of models that are not on this machine, and say so."""
    if find_spec("tokenizers") is None:
        wanted = "hf_tokenizer = download needs pip install 'pytest-hfbudget[tokenizer]'"
        say(config, f"hfbudget: {wanted}; prompts are bounded by their bytes", yellow=True)
        return
    from huggingface_hub import hf_hub_download

    missing = [model for model in dict.fromkeys(models) if "/" in model and not _file(model)]
    for model in missing[:MOST_DOWNLOADS]:
        say(config, f"hfbudget: downloading the tokenizer of {model}")
        try:
            hf_hub_download(model, FILE)
        except Exception as error:  # a gated model, no network, a name of the price table
            why = " ".join(str(error).split())[:200]
            said = f"the tokenizer of {model} could not be downloaded ({why})"
            say(config, f"hfbudget: {said}; its prompts are bounded by their bytes", yellow=True)


@off_loop()
def _cached(model: str) -> Tokenizer | None:
    path = _file(model)
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer as Loaded

        loaded: Any = Loaded.from_file(path)
        loaded.no_truncation()
        loaded.no_padding()
        # What a user writes is text, also where it looks like a mark of the template.
        loaded.encode_special_tokens = True
    except Exception:  # without the extra, or a file that another release has written
        return None

    def count(text: str) -> int:
        try:
            return len(loaded.encode(text, add_special_tokens=False).ids)
        except Exception:  # a surrogate
            return len(text.encode("utf-8", "surrogatepass"))

    return count


def _file(model: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(model, FILE)
    except ValueError:  # a URL, or another name that is no model's
        return None
    return path if isinstance(path, str) else None
