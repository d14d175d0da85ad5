"""Reports that are hard to show: large, long, and with hostile names."""

from __future__ import annotations

from typing import Any

ENDPOINT = "my-org/ci-llm"
ADDRESS = "https://x1y2z3.us-east-1.aws.endpoints.huggingface.cloud/v1/chat/completions"
EVIL = "<script>document.title='owned'</script>"
NAMES = (
    "tests/test_chat.py::test_answers_in_one_sentence",
    "tests/test_chat.py::test_streams[llama-3.1-8b]",
    "tests/test_images.py::TestFlux::test_draws_a_cat",
    "tests/test_embeddings.py::test_ähnlich_ist_nah[日本語]",
    "tests/test_rag.py::test_cites_its_sources",
)
MODELS = (
    ("meta-llama/Llama-3.1-8B-Instruct", "groq", "conversational"),
    ("meta-llama/Llama-3.3-70B-Instruct", "novita", "conversational"),
    ("black-forest-labs/FLUX.1-schnell", "fal-ai", "text-to-image"),
    ("BAAI/bge-small-en-v1.5", "hf-inference", "feature-extraction"),
)


def usd(nano: int) -> str:
    return f"{nano // 10**9}.{nano % 10**9:09}"


def report(calls: int, *, tests: int = 40, day: int = 22, hostile: bool = False) -> dict[str, Any]:
    """A report of so many calls; what it says adds up."""
    names = [f"{NAMES[n % len(NAMES)]}[{n}]" for n in range(tests)]
    if hostile:
        names[0] = f"tests/test_{EVIL}.py::test[{'x' * 4000}\u202e</td><img src=http://evil/>]"
    made = [_call(number, names) for number in range(calls)]
    if hostile and made:
        made[0] = {**made[0], "model": f"</script>{EVIL}", "provider": '"><b onclick=alert(1)>'}
    nanos, counts = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for call in made:
        nanos[call["test"]] += round(float(call["usd"] or 0) * 10**9)
        counts[call["test"]] += 1
    endpoint, shares = 26_666_667, {names[0]: 12_000_000, names[1]: 4_000_000}
    return {
        "schema": 1,
        "run": f"{day:02}5f0c2d9e71",
        "project": "rag-service",
        "date": f"2026-11-{day:02}T03:10:00+00:00",
        "session": {
            "spent_usd": usd(sum(nanos.values()) + endpoint),
            "cap_usd": usd(max(5 * 10**7, round((sum(nanos.values()) + endpoint) * 1.4))),
            "calls": calls,
            "refused": 2,
        },
        "tests": [
            {
                "id": name,
                "outcome": "failed" if n % 17 == 3 else "passed",
                "spent_usd": usd(nanos[name]),
                "cap_usd": "0.01" if n % 2 else None,
                "calls": counts[name],
                "refused": 2 if n == 3 else 0,
                "uptime_usd": usd(shares.get(name, 0)),
            }
            for n, name in enumerate(names)
        ],
        "calls": made,
        "refusals": [
            {
                "test": names[min(3, tests - 1)],
                "scope": names[min(3, tests - 1)],
                "model": MODELS[1][0],
                "message": f"{names[min(3, tests - 1)]}: {MODELS[1][0]} may cost up to $0.0200806, "
                "but only $0.0012 of $0.01 is left ($0.0088 spent). The call was not sent. "
                "Raise the cap, or give the call a smaller max_tokens.",
            }
        ]
        * 2,
        "endpoints": [
            {
                "name": ENDPOINT,
                "state": "paused",
                "usd": usd(endpoint),
                "minutes": 2,
                "resumed": True,
                "paused": True,
                "verified": True,
                "shares": {name: usd(share) for name, share in shares.items()},
                "idle_usd": usd(10_666_667),
            }
        ],
    }


def _call(number: int, names: list[str]) -> dict[str, Any]:
    provider: str | None
    model, provider, task = MODELS[(number * 7 // 3) % len(MODELS)]
    replayed = number % 41 == 7
    tokens_in, tokens_out = 20 + number * 37 % 900, number * 13 % 400
    nano = tokens_in * 50 + tokens_out * 80
    if at_endpoint := number % 29 == 1:
        model, provider, nano = ADDRESS, None, 0
    return {
        "test": names[number * 31 % len(names)],
        "where": "",
        "task": task,
        "model": model,
        "provider": provider,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "usd": "0" if replayed else usd(nano),
        "price_source": f"uptime of {ENDPOINT}"
        if at_endpoint
        else f"router catalogue of 2026-11-21: {model}:{provider}",
        "endpoint": ENDPOINT if at_endpoint else None,
        "status": "replayed" if replayed else "200",
        "estimated": number % 23 == 5,
        "seconds": 0.2 + number % 700 / 100,
    }
