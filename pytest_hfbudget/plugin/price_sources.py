"""What a run prices and bounds its calls with: price book, catalogue and tokenizers.

The run reads the catalogue before its first test, and fetches nothing during a test.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from pytest_hfbudget.errors import HFBudgetError
from pytest_hfbudget.locks import off_loop
from pytest_hfbudget.plugin.console import SILENCE_S, announced, say
from pytest_hfbudget.pricing import CallRequest, Price
from pytest_hfbudget.pricing.book import PriceBook, project_book
from pytest_hfbudget.pricing.catalogue import Catalogue, CatalogueFile, kept_catalogue
from pytest_hfbudget.pricing.table import parse_price
from pytest_hfbudget.settings import Settings
from pytest_hfbudget.text import public_url

if TYPE_CHECKING:
    from pytest_hfbudget.metering.bounds import TokenCounts
    from pytest_hfbudget.metering.prompts import Fact, Tokenizer


@dataclass(frozen=True)
class PriceTimeouts:
    """How long a run waits for prices, in seconds.

    Attributes:
        needed_s: for one request under a cap.
        unneeded_s: for one request of a run without a cap, which can do without prices.
        most_s: for all together. A silent name server can take a minute, which the time-out of a
            request does not cover.
        silence_s: after this time a line says what the run waits for.
    """

    needed_s: float = 10.0
    unneeded_s: float = 3.0
    most_s: float = 15.0
    silence_s: float = SILENCE_S


def book(
    config: pytest.Config,
    settings: Settings,
    leased: dict[str, str],
    load_catalogue: Callable[[], Catalogue] = Catalogue,
) -> PriceBook:
    """The price book of a run: all its price sources.

    Args:
        leased: the names of the run's endpoints by their URLs; it grows during the run.
        load_catalogue: returns the router's catalogue; called for the first price it has to give.

    Raises:
        ConfigError: a table, a variable or ``--hf-unpriced`` is invalid.
    """
    return project_book(
        settings,
        os.environ,
        root=config.rootpath,
        here=config.invocation_params.dir,
        load_catalogue=load_catalogue,
        hook=partial(_ask_hook, config),
        leased=leased,
    )


def check(config: pytest.Config, settings: Settings) -> None:
    """Find an invalid price before the first test, not in the middle of the run.

    Raises:
        ConfigError: as `book`.
    """
    book(config, settings, {})


class RunPrices:
    """The catalogue and the token counts of a run, read once, before the first test."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._config, self._settings = config, settings
        self._read: Catalogue | None = None
        self._ready = self._prefetched = False
        self._counts: TokenCounts | None = None

    def prepare(self) -> None:
        """Read the prices that a cap may depend on, once.

        Raises:
            ConfigError: as `book`.
        """
        if not self._ready:
            check(self._config, self._settings)
            self._read = refresh(self._config, self._settings, needed=True)
            self._ready = True
            if self._settings.tokenizer == "download" and not self._settings.emulator:
                download_tokenizers(self._config, self._models())

    def _models(self) -> Iterator[str]:
        """The models that this run may call: those of earlier runs, and of the price table."""
        from pytest_hfbudget.plugin import run_history

        yield from run_history.models(self._config, self._settings)
        for name in book(self._config, self._settings, {}).table.rows:
            yield name if "://" in name else name.partition(":")[0]

    def prefetch(self, expected: bool) -> None:
        """Read prices that only the report needs; ``expected``: calls are likely to come."""
        if not self._prefetched and self._read is None:
            self._prefetched = True
            self._read = refresh(self._config, self._settings, needed=False, quiet=not expected)

    @property
    def counts(self) -> TokenCounts:
        """The tokens that servers have counted in prompts, in this run and in earlier ones."""
        if self._counts is None:
            from pytest_hfbudget.metering.bounds import TokenCounts

            load = off_loop()(partial(_remembered, self._config, self._settings))
            own = self._settings
            self._counts = TokenCounts(own.router, load, tokenizers(own), own.image_tokens)
        return self._counts

    def catalogue(self) -> Catalogue:
        """The catalogue that was read, or else the copy on disk."""
        return self._read or kept_catalogue(self._settings.router)


def refresh(
    config: pytest.Config,
    settings: Settings,
    *,
    needed: bool,
    quiet: bool = False,
    timeouts: PriceTimeouts = PriceTimeouts(),
) -> Catalogue | None:
    """The router's catalogue, read anew if the copy on disk is older than a day.

    Without a network, returns the old copy and prints its age; None if there is no copy. If the
    copy can't be written, this run uses what it has read all the same.

    Args:
        needed: a cap may depend on the prices, so wait longer for them.
        quiet: print nothing if the catalogue can't be read, since maybe no call needs it.
    """
    from pytest_hfbudget.endpoints.transport import read_public_json

    file, now = CatalogueFile.of(settings.router), time.time()
    kept = file.load(settings.router)
    if kept and kept.is_fresh(now) and not settings.emulator:
        return kept
    if _offline() and not settings.emulator:
        return kept  # huggingface_hub's calls fail then, so there is nothing to be priced
    try:
        within_s = timeouts.needed_s if needed else timeouts.unneeded_s
        read = partial(_read_within, timeouts.most_s, partial(read_public_json, within_s=within_s))
        waited_for = f"hfbudget: reading the prices of {public_url(settings.router)} …"
        with announced(config, waited_for, timeouts.silence_s):
            return file.refresh(settings.router, read, now)
    except (OSError, ValueError, RuntimeError) as error:  # the last is how suites block sockets
        what = f"those of {kept.age(now)} are used" if kept else "no prices were read before"
        where = f"the prices of {public_url(settings.router)}"
        if not quiet:
            say(config, f"hfbudget: could not read {where} ({error}); {what}", yellow=True)
        return kept


def _remembered(config: pytest.Config, settings: Settings, model: str) -> Iterable[Fact]:
    """The token counts of a model's prompts from the usage log and the costs file."""
    if settings.emulator or model.startswith("http"):  # a URL may serve another model tomorrow
        return ()
    from pytest_hfbudget.plugin import run_history

    return run_history.counts(config, settings, model)


def _read_within(most_s: float, read: Callable[[str], bytes], url: str) -> bytes:
    """What ``read`` returns, within ``most_s``.

    Raises:
        OSError: ``read`` takes longer.
        Exception: whatever ``read`` raises.
    """
    answer: Future[bytes] = Future()

    def ask() -> None:
        try:
            answer.set_result(read(url))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=ask, name="hfbudget-prices", daemon=True).start()
    try:
        return answer.result(most_s)
    except NotYet:
        raise OSError(f"no answer within {most_s:g} s") from None


def _offline() -> bool:
    # The same values as huggingface_hub accepts.
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _ask_hook(config: pytest.Config, request: CallRequest) -> Price | None:
    hook = config.hook.pytest_hfbudget_price
    if not hook.get_hookimpls():
        return (
            None  # calling a hook without implementations takes longer than all the rest of a call
        )
    try:
        answer: object = hook(request=request)
    except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:
        if _of_a_timeout(error):
            raise
        plugins = ", ".join(each.plugin_name for each in hook.get_hookimpls())
        raise HFBudgetError(
            f"the hook pytest_hfbudget_price raised {type(error).__name__}: {error} "
            f"({plugins}), so this call has no known price. Under a cap it is not sent."
        ) from error
    if answer is None or isinstance(answer, Price):
        return answer
    return parse_price(answer, "hook pytest_hfbudget_price")


def _of_a_timeout(error: BaseException) -> bool:
    """Whether pytest-timeout has raised an error in a hook, to end the running test."""
    steps = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == "pytest_timeout" for frame, _ in steps)


# --- tokenizers, from the local Hugging Face cache

TOKENIZER_FILE = "tokenizer.json"
# The most tokenizers that one run downloads: earlier runs may have used many models.
MOST_DOWNLOADS = 20


def tokenizers(settings: Settings) -> Callable[[str], Tokenizer | None]:
    """A function that returns the tokenizer of a model; None if it is not cached or not wanted."""
    found: dict[str, Tokenizer | None] = {}

    def tokenizer(model: str) -> Tokenizer | None:
        if model not in found:
            found[model] = _cached_tokenizer(model)
        return found[model]

    # The emulator counts by a rule of its own.
    unused = settings.tokenizer == "off" or settings.emulator
    return (lambda model: None) if unused else tokenizer


def download_tokenizers(config: pytest.Config, models: Iterable[str]) -> None:
    """Download the tokenizers of models that are not cached on this machine, and say so."""
    if find_spec("tokenizers") is None:
        needed = "hf_tokenizer = download needs pip install 'pytest-hfbudget[tokenizer]'"
        say(config, f"hfbudget: {needed}; prompts are bounded by their bytes", yellow=True)
        return
    from huggingface_hub import hf_hub_download

    missing = [
        model for model in dict.fromkeys(models) if "/" in model and not _tokenizer_file(model)
    ]
    for model in missing[:MOST_DOWNLOADS]:
        say(config, f"hfbudget: downloading the tokenizer of {model}")
        try:
            hf_hub_download(model, TOKENIZER_FILE)
        except Exception as error:  # a gated model, no network, a price table's invented name
            why = " ".join(str(error).split())[:200]
            said = f"the tokenizer of {model} could not be downloaded ({why})"
            say(config, f"hfbudget: {said}; its prompts are bounded by their bytes", yellow=True)


@off_loop()
def _cached_tokenizer(model: str) -> Tokenizer | None:
    path = _tokenizer_file(model)
    if path is None:
        return None
    try:
        from tokenizers import Tokenizer as Loaded

        loaded: Any = Loaded.from_file(path)
        loaded.no_truncation()
        loaded.no_padding()
        # A prompt is plain text, even if it contains the text of a special token.
        loaded.encode_special_tokens = True
    except Exception:  # the extra is missing, or another release has written the file
        return None

    def count(text: str) -> int:
        try:
            return len(loaded.encode(text, add_special_tokens=False).ids)
        except Exception:  # the text has a lone surrogate
            return len(text.encode("utf-8", "surrogatepass"))

    return count


def _tokenizer_file(model: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    try:
        path = try_to_load_from_cache(model, TOKENIZER_FILE)
    except ValueError:  # a URL, or another name that is no model id
        return None
    return path if isinstance(path, str) else None
