"""What the tables of a report add up."""

from __future__ import annotations

from written_report import LEAST, full, saved

from pytest_hfbudget.reporting.tables import Cell, Table, shares, tables


def _tables(*contents: dict) -> dict[str, Table]:  # type: ignore[type-arg]
    return {table.key: table for table in tables([saved(content) for content in contents])}


def _records(table: Table) -> list[dict[str, Cell]]:
    labels = [column.label for column in table.columns]
    return [dict(zip(labels, row, strict=True)) for row in table.rows]


def test_a_run_that_called_nothing_has_no_tables() -> None:
    assert _tables(LEAST) == {}


def test_calls_of_no_test_are_a_row_among_the_tests() -> None:
    outside, _ = sorted(_records(_tables(full())["tests"]), key=lambda row: str(row["test"]))
    assert (outside["test"], outside["calls"], outside["spent"]) == ("(no test)", 1, 4_900)


def test_models_providers_and_prices_each_add_up_to_calls_and_uptime() -> None:
    made = _tables(full())
    for key in ("models", "providers", "prices"):
        assert sum(int(row["spent"] or 0) for row in _records(made[key])) == 9_800 + 550_000


def test_a_test_has_its_share_of_the_uptime_of_endpoints_in_what_it_has_spent() -> None:
    row = next(row for row in _records(_tables(full())["tests"]) if row["test"] != "(no test)")
    assert (row["spent"], row["of which uptime"], row["cap"]) == (304_900, 300_000, 10_000_000)


def test_without_uptime_there_is_no_column_for_it() -> None:
    content = full()
    del content["tests"][0]["uptime_usd"]
    assert "of which uptime" not in _records(_tables(content)["tests"])[0]


def test_a_call_to_an_endpoint_has_its_name_and_not_its_address() -> None:
    content = full()
    content["calls"][0].update(
        model="https://x.endpoints.huggingface.cloud/v1/chat/completions",
        provider=None,
        usd="0",
        price_source="uptime of acme/llm",
        endpoint="acme/llm",
    )
    made = _tables(content)
    (call, *_), (model, *_) = _records(made["calls"]), _records(made["models"])
    assert (call["model"], call["provider"]) == ("acme/llm", "endpoints")
    assert (model["model"], model["spent"], model["calls"]) == ("acme/llm", 550_000, 1)
    assert not [
        text for table in made.values() for row in table.rows for text in row if "http" in str(text)
    ]


def test_estimates_calls_without_a_price_and_replays_are_marked() -> None:
    content = full()
    content["calls"].append({**content["calls"][0], "status": "replayed", "usd": None})
    remarks = [row["remarks"] for row in _records(_tables(content)["calls"])]
    assert remarks == ["", "estimated", "no price", "replayed"]


def test_price_sources_have_the_day_of_their_prices() -> None:
    uptime, first, second = _records(_tables(full())["prices"])
    assert (uptime["source"], uptime["spent"]) == ("uptime of acme/llm", 550_000)
    assert (first["source"], first["of"], first["calls"]) == (
        "router catalogue of 2026-11-21",
        "2026-11-21",
        2,
    )
    assert (second["source"], second["calls"]) == ("(no price)", 1)


def test_an_endpoint_says_how_it_was_left_and_what_no_test_used() -> None:
    (row,) = _records(_tables(full())["endpoints"])
    assert (row["state"], row["idle"]) == ("NOT VERIFIED AS PAUSED (running)", 250_000)
    (share,) = _records(shares(saved(full())))
    assert (share["test"], share["share"]) == ("test_a.py::test_a", 300_000)


def test_a_deleted_endpoint_is_not_told_as_paused() -> None:
    content = full()
    content["endpoints"] = [{**content["endpoints"][0], "state": "gone", "verified": True}]
    assert [row["state"] for row in _records(_tables(content)["endpoints"])] == ["deleted"]


def test_one_run_is_no_history_and_several_are_newest_first() -> None:
    assert "runs" not in _tables(full())
    later = {**full(), "date": "2026-11-23T00:00:00Z", "run": "later"}
    assert [row["run"] for row in _records(_tables(full(), later)["runs"])] == [
        "later",
        "5f0c2d9e71ab",
    ]
