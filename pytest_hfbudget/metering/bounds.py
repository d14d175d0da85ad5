"""`TokenCounts` keeps how many tokens servers have counted in prompts, and bounds later prompts.

A count is kept by a hash of the request, never with its text. It gets a margin until its provider
has counted some prompt of the model twice with the same result. A provider is not believed any more
if it counts a prompt differently within one run, or counts more than a bound that was learned from
it. If it only differs from an earlier run, its counts of earlier runs are forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from typing import Any

from pytest_hfbudget.metering.prompt_size import (
    IMAGE_TOKENS,
    ImageBound,
    InputBound,
    by_bytes,
    image_rules,
    may_change,
)
from pytest_hfbudget.metering.prompts import (
    ALIKE,
    BESIDE,
    COUNTED,
    DOUBT,
    FORGET,
    IMAGE,
    LONGEST,
    MISCOUNTED,
    NEUTRAL,
    OUTGROWN,
    PLAIN,
    SHAPES,
    TEMPLATE,
    TOKENIZER,
    UNDERSTATED,
    Counts,
    Fact,
    Measured,
    Tokenizer,
    bound_of,
    measured,
    outline,
    with_margin,
)
from pytest_hfbudget.metering.request import Parameters, payload_of
from pytest_hfbudget.pricing import SIZED, STATED, UNLEARNED, CallRequest, Prompt, Usage
from pytest_hfbudget.pricing.book import PriceBook

HASH_BYTES = 12
MOST_KEPT = 1000
# Facts that a run keeps: more would take hundreds of megabytes.
MOST_FACTS = 50_000

# The ``heard`` of a forked process: its copies of all facts must not be confirmed by themselves.
NOTHING_MORE = -1

Share = Callable[[list[Fact], int], tuple[list[Fact], int]]
_packed = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


class TokenCounts:
    """What servers have counted, and the bounds that follow from it.

    Threads may learn at the same time. Each step is one operation of a dictionary, and an operation
    of another thread between two steps can only make a bound larger.

    Args:
        router: the base URL of the router; the counts of one router don't hold for another.
        load: returns what is known of a model from earlier runs and from other processes.
        tokenizer: returns the tokenizer of a model; None if there is none on this machine.
        image_tokens: the most tokens of an image, until its server has counted one of its size.

    Attributes:
        share: tells the process that leads this run what was learned here, and returns what was
            learned elsewhere since the last time; None in that process itself.
        disproved: (model, key of a `Fact`): what is not believed of a model any more.
    """

    def __init__(
        self,
        router: str = "",
        load: Callable[[str], Iterable[Fact]] = lambda model: (),
        tokenizer: Callable[[str], Tokenizer | None] = lambda model: None,
        image_tokens: int = IMAGE_TOKENS,
    ) -> None:
        self.share: Share | None = None
        self.disproved: set[tuple[str, str]] = set()
        self._image_tokens, self._stated = image_tokens, dict[str, int]()
        self._salt, self._load, self._tokenizer = router.encode(), load, tokenizer
        self._learned: list[tuple[str, Fact]] = []  # with its origin: empty for this process
        self._shared = self._heard = 0
        self._models: dict[str, dict[str, Counts]] = {}
        self._loaded: set[str] = set()
        # The bounds of prompts that no server has counted, such as replayed ones.
        self._kept: dict[tuple[str, str | None, str], InputBound] = {}

    # --- bounds

    def bound(
        self, parameters: Parameters, book: PriceBook, model: str, provider: str | None
    ) -> InputBound:
        """The most input tokens that the payload of a request can make."""
        payload = parameters.json
        if type(payload) is not dict:
            payload = payload_of(parameters)
        if model.startswith("http"):
            payload = _with_served(model, payload)
        if model not in self._loaded:
            self._load_model(model)
        hashes = self._hashes(payload)
        if not hashes:
            return self.unlearned(parameters, book, model, provider)
        asked, providers = provider, self._models[model]
        if provider is None and model.startswith("http"):
            provider = ""
        counts = None if provider is None else providers.get(provider)
        if counts is not None and (tokens := counts.tokens.get(hashes[-1])) is not None:
            if not counts.alike:
                tokens = with_margin(tokens)
            return InputBound(tokens, COUNTED, (), Prompt(hashes[-1]))
        estimates, key = self._kept, (model, provider, hashes[-1])
        if (kept := estimates.get(key)) is None:
            strict = self.unlearned(parameters, book, model, asked)
            kept = self._estimated(payload, strict, model, provider, hashes)
            if len(estimates) < MOST_KEPT:  # an old dictionary, if something was learned meanwhile
                estimates[key] = kept
        return kept

    def unlearned(
        self, parameters: Parameters, book: PriceBook, model: str, provider: str | None
    ) -> InputBound:
        """The most input tokens of a payload by its bytes, whatever servers have counted."""
        images = self.images(model, provider)
        body = parameters.json, parameters.data
        return InputBound(*by_bytes(*body, book, model, provider, images))

    def images(self, model: str, provider: str | None) -> ImageBound:
        """The most tokens that a model makes of an image, if none of its size was counted."""
        most = self._stated.get(model, self._image_tokens)
        if most != IMAGE_TOKENS or model in self._stated or (model, OUTGROWN) in self.disproved:
            return ImageBound(most)
        return ImageBound(most, image_rules(model, provider))

    def _estimated(
        self,
        payload: Mapping[str, Any],
        unlearned: InputBound,
        model: str,
        provider: str | None,
        hashes: list[str],
    ) -> InputBound:
        """The bound on a prompt that was not counted before.

        Args:
            unlearned: the bound by its bytes.
            provider: None if the router chooses; empty for a server by URL.
        """
        providers, strict = self._models[model], unlearned[:2]
        tokenizer = None if (model, MISCOUNTED) in self.disproved else self._tokenizer(model)
        new = self._measured(payload, hashes, tokenizer, self.images(model, provider or None))
        if provider is not None:
            bound, basis = bound_of(new, strict, providers.get(provider))
            return InputBound(bound, basis, (), new.prompt)
        inputs = tuple(
            (name, *bound_of(new, strict, counts)) for name, counts in tuple(providers.items())
        )
        other, basis = bound_of(new, strict, None)
        return InputBound(other, basis, inputs, new.prompt)

    def same(self, request: CallRequest, payload: Mapping[str, Any]) -> bool:
        """Whether a payload has the prompt that a request was bounded by."""
        if request.prompt is None:
            return False
        return self._hashes(_with_served(request.model, payload))[-1:] == [request.prompt.exact]

    def _hashes(self, payload: Mapping[str, Any], *, beginnings: bool = False) -> list[str]:
        """The hash of a prompt; with ``beginnings``, first the hashes of its beginnings.

        Empty if it has no text, or shows something by its URL: what lies there may change.
        """
        name, parts = _said_in(payload)
        if not name:
            return []
        found, digest = [], blake2b(self._salt, digest_size=HASH_BYTES)
        try:
            rest = _rest_of(payload, name)
            digest.update(_packed([name, rest]).encode() if rest else name.encode())
            for number, part in enumerate(parts):
                if beginnings and number:
                    found.append(digest.hexdigest())
                if type(part) is dict and part.keys() == PLAIN and type(part["content"]) is str:
                    text = part["content"]  # most are like this, and JSON takes four times as long
                    packed = f"{part['role']!r}{len(text)}:{text}"
                    digest.update(packed.encode("utf-8", "surrogatepass"))
                    continue
                if may_change(part):
                    return []
                digest.update(_packed(part).encode())
        except (TypeError, ValueError, RecursionError):
            return []  # a mock, or something else that is not JSON
        return [*found, digest.hexdigest()]

    def _measured(
        self,
        payload: Mapping[str, Any],
        hashes: list[str],
        tokenizer: Tokenizer | None,
        images: ImageBound,
    ) -> Measured:
        name, said = _said_in(payload)
        drawn = repr((name, _rest_of(payload, name), [outline(part) for part in said]))
        packed = drawn.encode("utf-8", "surrogatepass")
        shape = blake2b(self._salt + packed, digest_size=HASH_BYTES).hexdigest()
        if len(said) > 1:
            hashes = self._hashes(payload, beginnings=True)
        return measured(said, shape, hashes, tokenizer, images)

    # --- learning

    def learn(self, request: CallRequest, answered_by: str | None, usage: Usage) -> None:
        """Learn how many tokens a server has counted in the prompt of a request.

        Args:
            answered_by: the provider; None if it is not known.
            usage: the server's own.
        """
        prompt, tokens, model = request.prompt, usage.input_tokens, request.model
        provider = "" if request.is_url else answered_by
        if usage.estimated or tokens <= 0 or provider is None:
            return
        asked = request.for_provider(provider)
        if tokens > asked.input_bound and asked.basis in (STATED, SIZED):
            self._note(Fact(model, "", UNDERSTATED if asked.basis == STATED else OUTGROWN))
        if prompt is None or (request.provider and provider != request.provider):
            return
        counts = self._models[model].get(provider) or self._counts(model, provider)
        before = counts.tokens.get(prompt.exact)
        if counts.doubted or (before == tokens and counts.alike and prompt.exact in counts.seen):
            return
        if tokens > asked.input_bound and asked.basis == TOKENIZER:
            self._note(Fact(model, "", MISCOUNTED))
        elif tokens > asked.input_bound and asked.basis not in UNLEARNED:
            # A provider that has changed since an earlier run may count alike from now on.
            stale = not counts.alike and any(key not in counts.seen for key in counts.tokens)
            self._note(Fact(model, provider, FORGET if stale else DOUBT))
            before = None
            if not stale:
                return
        if before is None and len(self._learned) >= MOST_FACTS:
            return
        if prompt.shape:
            self._narrow(model, provider, prompt, tokens)
        if before == tokens:
            self._note(Fact(model, provider, ALIKE))
        elif before is not None:
            live = prompt.exact in counts.seen
            self._note(Fact(model, provider, DOUBT if live else FORGET))
        self._note(Fact(model, provider, prompt.exact, tokens))

    def _narrow(self, model: str, provider: str, prompt: Prompt, tokens: int) -> None:
        """Learn from one prompt what bounds others of its shape."""
        known = self._counts(model, provider).tokens
        template = known.get(TEMPLATE + prompt.shape)
        if template is None or tokens < template:
            self._note(Fact(model, provider, TEMPLATE + prompt.shape, tokens))
        if prompt.tokens is not None:
            beside = max(tokens - prompt.tokens, 1)
            for kind, most in ((BESIDE, beside), (LONGEST, prompt.size)):
                if most > known.get(kind + prompt.shape, 0):
                    self._note(Fact(model, provider, kind + prompt.shape, most))

    def take(self, facts: Iterable[Fact], *, live: bool) -> None:
        """Take over what other processes or runs have learned.

        Args:
            live: whether they learned it in this run.
        """
        for fact in facts:
            counts = self._counts(fact.model, fact.provider)
            known, here = counts.tokens.get(fact.key), live and fact.key in counts.seen
            if here and known is not None and fact.key[0] not in SHAPES:
                word = ALIKE if known == fact.tokens else DOUBT
                self._note(fact._replace(key=word, tokens=0))
            else:
                self._apply(fact._replace(tokens=max(known or 0, fact.tokens)), live=live)

    @property
    def facts(self) -> list[Fact]:
        """What was learned in this run, in order."""
        return [fact for _, fact in self._learned]

    def facts_about(self, model: str) -> list[Fact]:
        """All facts about a model, those included that say what is not to be believed."""
        if model not in self._loaded:
            self._load_model(model)
        found = [Fact(name, "", key) for name, key in tuple(self.disproved) if name == model]
        if (most := self._stated.get(model, self._image_tokens)) != IMAGE_TOKENS:
            found.append(Fact(model, "", IMAGE, most))
        for provider, counts in tuple(self._models[model].items()):
            found += [Fact(model, provider, DOUBT)] if counts.doubted else []
            found += [Fact(model, provider, key, n) for key, n in tuple(counts.tokens.items())]
        return found

    def exchange(self) -> None:
        """Tell the process that leads the run what was learned here, and hear what others learned.

        Raises:
            HFBudgetError: the process that leads the run is gone.
        """
        learned = self._learned[self._shared :]
        if self.share is None or not learned:
            return
        self._shared += len(learned)
        news, self._heard = self.share([fact for _, fact in learned], self._heard)
        self.take(news, live=True)

    def disown(self) -> None:
        """In a forked child: leave it to the parent to share what was learned so far."""
        self._shared, self._heard = len(self._learned), NOTHING_MORE

    def shared_by(self, origin: str, facts: Iterable[Fact], heard: int) -> tuple[list[Fact], int]:
        """Take the facts of another process, and return those that it has not heard, and ``heard``.

        Args:
            origin: an id of that process.
            heard: how many entries of what is learned here it has heard already.
        """
        learned = [] if heard == NOTHING_MORE else self._learned[heard:]
        for fact in facts:
            self.take((fact,), live=True)
            self._learned.append((origin, fact))
        return [fact for who, fact in learned if who != origin], heard + len(learned)

    def _note(self, fact: Fact) -> None:
        self._apply(fact, live=True)
        self._learned.append(("", fact))

    def _apply(self, fact: Fact, *, live: bool) -> None:
        self._kept = {}
        if fact.key in (MISCOUNTED, OUTGROWN):
            self.disproved.add((fact.model, fact.key))
            return
        if fact.key in (IMAGE, UNDERSTATED):
            if live or fact.key == IMAGE:  # a later run states it anew
                self._stated[fact.model] = fact.tokens or IMAGE_TOKENS
            return
        counts = self._counts(fact.model, fact.provider)
        if fact.key == DOUBT:
            counts.doubted, counts.tokens = True, {}
        elif fact.key == FORGET:
            counts.tokens = {key: n for key, n in counts.tokens.items() if key in counts.seen}
        elif fact.key == ALIKE:
            counts.alike = counts.alike or live
        elif not counts.doubted:
            counts.tokens[fact.key] = fact.tokens
            if live:
                counts.seen.add(fact.key)

    def _counts(self, model: str, provider: str) -> Counts:
        return self._models.setdefault(model, {}).setdefault(provider, Counts())

    def _load_model(self, model: str) -> None:
        self._models.setdefault(model, {})
        self.take(self._load(model), live=False)
        self._loaded.add(model)


def _said_in(payload: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The key under which a payload has its prompt, and the parts of it; empty if it has none."""
    messages = payload.get("messages")
    if isinstance(messages, list):
        return ("messages", messages) if messages else ("", [])
    for name in ("inputs", "input", "prompt"):
        if payload.get(name) is not None:
            return name, [payload[name]]
    return "", []


def _with_served(model: str, payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """A payload to hash. A server by URL may have several models, so there it names the model."""
    is_url = model.startswith(("http://", "https://"))
    return {**payload, "served": payload.get("model")} if is_url else payload


def _rest_of(payload: Mapping[str, Any], said: str) -> dict[str, Any]:
    """The rest of a payload that may change the tokens of its prompt, which is in ``said``."""
    if not payload.keys() - NEUTRAL - {said}:
        return {}  # as in most calls
    rest = {
        name: value
        for name, value in payload.items()
        if value is not None and name != said and name not in NEUTRAL
    }
    if isinstance(parameters := rest.get("parameters"), dict):
        rest["parameters"] = _rest_of(parameters, "")
    return rest
