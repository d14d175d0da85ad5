"""`hfbudget prices`: what a call costs, who says so, and what that overrides."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from command_line import Shell

from pytest_hfbudget.emulator import Emulator
from pytest_hfbudget.files import write_cache
from pytest_hfbudget.pricing.catalogue import Catalogue, CatalogueFile

VARIABLES = {
    "HUGGINGFACE_INPUT_TOKEN_COST": "0.000001",
    "HUGGINGFACE_OUTPUT_TOKEN_COST": "0.000003",
}


@pytest.fixture
def router(
    hfbudget: Shell, emulator_of_the_commands: Emulator, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.setenv("HFBUDGET_ROUTER", emulator_of_the_commands.router)
    return emulator_of_the_commands.router


def kept(router: str, *, age_s: float, **prices: tuple[float, float]) -> float:
    """Have a catalogue on disk, in which groq serves models; returns when it was read."""
    pricing = {name: dict(zip(("input", "output"), usd)) for name, usd in prices.items()}  # noqa: B905
    offers = {
        name: [{"provider": "groq", "status": "live", "pricing": price}]
        for name, price in pricing.items()
    }
    data = [{"id": f"org/{name}", "providers": each} for name, each in offers.items()]
    read_at = time.time() - age_s
    catalogue = Catalogue.parse({"data": data}, read_at=read_at, origin=router)
    write_cache(CatalogueFile.of(router).path, catalogue.as_read())
    return read_at


def used(told: Any) -> list[str]:
    return [word["source"] for word in told["said"] if word["used"]]


def test_a_price_is_explained_with_what_it_overrides(hfbudget: Shell, router: str) -> None:
    kept(router, age_s=60, model=(1, 2))
    (hfbudget.directory / "pyproject.toml").write_text(
        '[tool.hfbudget.prices]\n"org/model" = { input = 3, output = 4 }\n'
    )
    (hfbudget.directory / "more.toml").write_text('["org/model"]\ninput = 5\noutput = 6\n')
    done = hfbudget("prices", "org/model:groq", "--prices", "more.toml")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "org/model by groq: input $5.00, output $6.00 per 1M tokens"
    rows = [line for line in lines if line.startswith("groq")]
    assert [("used" in row, "overridden" in row) for row in rows] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    assert 'more.toml: ["org/model"] ' in rows[0]
    assert "the model, by any provider" in rows[0]
    assert 'pyproject.toml: ["org/model"]' in rows[1]
    assert "router catalogue of " in rows[2]
    assert "(1 minute old)" in done.stdout


def test_json_has_every_source_in_order(hfbudget: Shell, router: str) -> None:
    kept(router, age_s=60, model=(1, 2))
    told = hfbudget.json("prices", "org/model:groq", "--unpriced", "assume:1/4")
    assert (told["schema"], told["model"], told["provider"]) == (1, "org/model", "groq")
    assert [word["price"] for word in told["said"]] == [
        {"input": "1", "output": "2"},
        None,
        {"input": "1", "output": "4"},
    ]
    assert [word["used"] for word in told["said"]] == [True, False, False]
    assert told["catalogue"]["models"] == told["catalogue"]["priced"] == 1


def test_a_model_that_the_router_routes_shows_all_who_may_answer(
    hfbudget: Shell, router: str
) -> None:
    hfbudget("prices", "--refresh")
    told = hfbudget.json("prices", "emulator/chat")
    assert len(used(told)) == 3
    told = hfbudget.json("prices", "emulator/chat:fastest")
    assert (told["provider"], len(used(told))) == (None, 3)


def test_the_two_variables_are_verified_with_the_example_of_their_document(
    hfbudget: Shell, router: str
) -> None:
    done = hfbudget("prices", "openai/gpt-oss-120b:groq", "--tokens", "1000/500", **VARIABLES)
    assert "1,000 tokens in and 500 out cost at most $0.0025." in done.stdout


def test_an_unknown_price_shows_the_lines_to_add(hfbudget: Shell, router: str) -> None:
    done = hfbudget("prices", "acme/unheard-of:groq")
    assert done.returncode == 1
    assert '["acme/unheard-of:groq"]\ninput = 0.00' in done.stdout


def test_a_server_is_priced_by_the_start_of_its_url(hfbudget: Shell, router: str) -> None:
    (hfbudget.directory / "prices.toml").write_text('["http://localhost:8080"]\nfree = true\n')
    done = hfbudget("prices", "http://localhost:8080/v1", HFBUDGET_PRICES="prices.toml")
    assert done.returncode == 0
    assert done.stdout.startswith("http://localhost:8080/v1: free\n")


def test_without_a_model_everything_that_is_configured_is_listed(
    hfbudget: Shell, router: str
) -> None:
    kept(router, age_s=3 * 86_400, model=(1, 2))
    (hfbudget.directory / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nhf_unpriced = "assume:1/4"\n'
        '[tool.hfbudget.prices]\n"org/model" = { image = 0.003 }\n'
    )
    done = hfbudget("prices", **VARIABLES)
    assert done.returncode == 0
    assert 'org/model  $0.003 per image  pyproject.toml: ["org/model"]' in done.stdout
    assert "environment: HUGGINGFACE_*_TOKEN_COST: input $1.00, output $3.00 per 1M" in done.stdout
    assert "--hf-unpriced=assume:1/4" in done.stdout
    assert "models: 1, offers: 1, with a price: 1" in done.stdout
    assert "(3 days old)" in done.stdout


def test_the_project_is_that_of_a_folder_above(hfbudget: Shell, router: str) -> None:
    (hfbudget.directory / "pyproject.toml").write_text(
        '[tool.hfbudget.prices]\n"org/model" = { call = 1 }\n'
    )
    hfbudget.directory = hfbudget.directory / "below"
    hfbudget.directory.mkdir()
    assert used(hfbudget.json("prices", "org/model")) == ['pyproject.toml: ["org/model"]']


# --- the catalogue


def test_nothing_is_fetched_unless_it_is_asked_for(hfbudget: Shell, router: str) -> None:
    hfbudget("prices")
    hfbudget("prices", "emulator/chat")
    assert hfbudget.hub.log(kind="request", phase="arrived", op="models") == []


def test_a_refresh_reads_the_catalogue_and_says_how_old_it_was(
    hfbudget: Shell, router: str
) -> None:
    before = kept(router, age_s=2 * 86_400, model=(1, 2))
    told = hfbudget.json("prices", "--refresh")
    assert told["catalogue"]["models"] > 5
    refreshed = told["refreshed"]
    assert refreshed["before"] == _rfc(before)
    assert refreshed["after"] == told["catalogue"]["read_at"] > refreshed["before"]
    assert len(hfbudget.hub.log(kind="request", phase="arrived", op="models")) == 1


def test_a_first_refresh_says_that_nothing_was_read_before(hfbudget: Shell, router: str) -> None:
    last = hfbudget("prices", "--refresh").stdout.splitlines()[-1]
    assert last == "The catalogue was read just now. Last read before that: never"


def _rfc(at: float) -> str:
    from pytest_hfbudget.cli.output import moment

    return str(moment(at))


def test_offline_the_last_one_is_used_and_its_age_is_said(
    hfbudget: Shell, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = f"http://127.0.0.1:{free_port}"
    monkeypatch.setenv("HFBUDGET_ROUTER", router)
    kept(router, age_s=2 * 86_400, model=(1, 2))
    done = hfbudget("prices", "org/model:groq", "--refresh")
    assert done.returncode == 1
    assert "input $1.00, output $2.00 per 1M tokens" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: could not read the prices of {router} (")
    assert line.endswith("(2 days old) are used")


def test_a_router_that_answers_something_else_is_one_line(hfbudget: Shell, router: str) -> None:
    hfbudget.hub.add_fault("models", status=503, times=None)
    done = hfbudget("prices", "--refresh")
    assert done.returncode == 1
    assert done.stderr == (
        f"Error: could not read the prices of {router} (status 503); no prices were read before\n"
    )


def test_a_model_that_vanished_from_the_catalogue_has_no_price_any_more(
    hfbudget: Shell, router: str
) -> None:
    kept(router, age_s=60, gone=(1, 2))
    assert hfbudget("prices", "org/gone").returncode == 0
    done = hfbudget("prices", "org/gone", "--refresh")
    assert done.returncode == 1
    assert "does not list this model" in done.stdout


def test_a_catalogue_that_can_not_be_kept_is_said(hfbudget: Shell, router: str) -> None:
    done = hfbudget("prices", "--refresh", HFBUDGET_CACHE_DIR="/dev/null/nowhere")
    assert done.returncode == 1
    assert "/dev/null/nowhere" in done.stderr


# --- wrong usage


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (("--prices", "bad.toml"), {}, 'bad.toml: ["a/b"]: input = NaN: '),
        (("--prices", "bad.toml"), {}, "(at line 2)"),
        ((), {"HFBUDGET_PRICES": "nowhere.toml"}, "nowhere.toml: can't be read"),
        ((), {"HUGGINGFACE_INPUT_TOKEN_COST": "cheap"}, "HUGGINGFACE_INPUT_TOKEN_COST: "),
        (("--unpriced", "maybe"), {}, "--hf-unpriced=maybe: write refuse, free"),
        (("a/b", "--tokens", "1000"), {}, "--tokens 1000: write IN/OUT"),
        (("--tokens", "1/2"), {}, "name it"),
    ],
)
def test_what_can_not_be_used_is_one_line(
    hfbudget: Shell, router: str, arguments: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    (hfbudget.directory / "bad.toml").write_text('["a/b"]\ninput = nan\n')
    done = hfbudget("prices", *arguments, **env)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert says in line


def test_no_token_is_needed_and_none_is_sent(hfbudget: Shell, router: str) -> None:
    done = hfbudget("prices", "--refresh", HF_TOKEN="")
    assert done.returncode == 0
    assert os.environ["HF_TOKEN"] not in str(hfbudget.hub.log())


def test_where_the_router_chooses_the_provider_that_makes_the_hold_large_is_named(
    hfbudget: Shell, router: str
) -> None:
    assert hfbudget("prices", "--refresh").returncode == 0
    done = hfbudget("prices", "emulator/chat", "--tokens", "1000/100")
    said = " ".join(done.stdout.split())
    assert "cost at most $0.00011. That is together's price; emulator/chat:novita would" in said
    assert ":cheapest, :fastest and :preferred hold as much as no suffix" in said
    told = hfbudget.json("prices", "emulator/chat", "--tokens", "1000/100")
    assert told["at_most"]["by_provider"] == {
        "groq": "0.000058",
        "novita": "0.000025",
        "together": "0.00011",
    }
    pinned = hfbudget("prices", "emulator/chat:groq", "--tokens", "1000/100")
    assert "would hold" not in pinned.stdout
