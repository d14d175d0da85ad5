"""What the emulated Hub says of the bill, held against the emulator's own invoice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import Answer

from pytest_hfbudget.emulator import EmulatorClient

Call = Callable[..., Answer]
PERSONAL = "/hub/api/settings/billing"
CHAT = {"model": "emulator/chat:groq", "messages": [{"role": "user", "content": "Hello"}]}


def ask(call: Call, session: str | None = "one", **headers: str) -> None:
    own = {"X_HF_Session_id": session} if session is not None else {}
    done = call("POST", "/router/v1/chat/completions", CHAT, **own, **headers)
    assert done.status == 200


def sessions(call: Call, path: str = PERSONAL, query: str = "") -> dict[str, tuple[int, float]]:
    """Requests and cents by session, of one page."""
    told = call("GET", f"{path}/usage-by-inference-session{query}").json()
    assert told["currency"] == "USD"
    rows = [row for period in told["periods"] for row in period["sessions"]]
    return {row["id"]: (row["requestCount"], row["costCents"]) for row in rows}


def cents(control: EmulatorClient) -> float:
    return float(control.invoice()["calls_nano_usd"] / 10**7)


def test_each_session_has_its_requests_and_its_cents(call: Call, control: EmulatorClient) -> None:
    ask(call)
    ask(call)
    assert sessions(call) == {"one": (2, cents(control))}
    ask(call, "two")
    ask(call, None)
    assert {name: count for name, (count, _) in sessions(call).items()} == {"one": 2, "two": 1}


def test_fractions_of_a_cent_are_told_or_rounded(call: Call, control: EmulatorClient) -> None:
    ask(call)
    assert 0 < sessions(call)["one"][1] < 1
    control.configure(cent_rounding="up")
    assert sessions(call)["one"][1] == 1
    control.configure(cent_rounding="nearest")
    assert sessions(call)["one"][1] == 0


def test_what_failed_is_not_on_it(call: Call, control: EmulatorClient) -> None:
    control.add_fault("chat", status=503)
    call("POST", "/router/v1/chat/completions", CHAT, X_HF_Session_id="one")
    assert sessions(call) == {}


def test_it_is_late(call: Call, control: EmulatorClient) -> None:
    control.configure(billing_lag_s=60.0)
    ask(call)
    assert sessions(call) == {}
    control.advance(61)
    assert sessions(call) == {"one": (1, cents(control))}


def test_a_placeholder_stands_for_what_is_not_settled(call: Call, control: EmulatorClient) -> None:
    control.configure(billing_lag_s=60.0, placeholder_usd="0.01")
    ask(call)
    assert sessions(call) == {"one": (1, 1.0)}
    control.advance(61)
    assert sessions(call) == {"one": (1, cents(control))}


def test_a_session_over_the_end_of_a_month_is_in_two_periods(
    call: Call, control: EmulatorClient
) -> None:
    ask(call)
    control.advance(31 * 86_400)
    ask(call)
    told = call("GET", f"{PERSONAL}/usage-by-inference-session").json()
    assert [[row["id"] for row in each["sessions"]] for each in told["periods"]] == [["one"]] * 2
    assert len({each["period"] for each in told["periods"]}) == 2


def test_only_what_lies_between_the_dates_is_told(call: Call) -> None:
    ask(call)
    tomorrow = (datetime.now(timezone.utc) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    assert sessions(call, query=f"?startDate={tomorrow}") == {}
    assert list(sessions(call, query=f"?endDate={tomorrow}")) == ["one"]
    assert call("GET", f"{PERSONAL}/usage-by-inference-session?startDate=today").status == 400


def test_pages_follow_each_other_by_the_link_header(call: Call, control: EmulatorClient) -> None:
    for name in "abcde":
        ask(call, name)
    control.configure(billing_page_limit=2)
    path, found = f"{PERSONAL}/usage-by-inference-session", []
    while path:
        page = call("GET", path)
        found += [row["id"] for each in page.json()["periods"] for row in each["sessions"]]
        link = {name.lower(): value for name, value in page.headers.items()}.get("link", "")
        path = "/hub" + link[1:].partition(">")[0].partition("/hub")[2] if link else ""
    assert found == list("abcde")


@pytest.mark.parametrize(
    ("path", "missing"),
    [(PERSONAL, "billing.read"), ("/hub/api/organizations/acme/billing", "org.billing.read")],
)
def test_a_token_may_not_be_allowed_to_read_it(call: Call, path: str, missing: str) -> None:
    for name in ("usage-by-inference-session", "usage-v2", "usage"):
        answer = call("GET", f"{path}/{name}", token="hf_nobilling")
        assert answer.status == 403
        assert missing in answer.json()["error"]


def test_an_organisation_has_a_bill_of_its_own(call: Call, control: EmulatorClient) -> None:
    ask(call, "mine")
    ask(call, "theirs", X_HF_Bill_To="acme")
    assert list(sessions(call)) == ["mine"]
    assert list(sessions(call, "/hub/api/organizations/acme/billing")) == ["theirs"]


def test_the_usage_between_two_times_is_in_nano_dollars(
    call: Call, control: EmulatorClient
) -> None:
    ask(call)
    now = int(time.time())
    query = f"startDate={now - 60}&endDate={now + 60}"
    used = call("GET", f"{PERSONAL}/usage-v2?{query}").json()["usage"]["inferenceProviders"]
    invoice = control.invoice()["calls_nano_usd"]
    assert (used["usedNanoUsd"], used["numRequests"]) == (invoice, 1)
    in_ms = f"startDate={now}000&endDate={now}000"
    assert call("GET", f"{PERSONAL}/usage-v2?{in_ms}").status == 500
    assert call("GET", f"{PERSONAL}/usage-v2?startDate=2026-11-01&endDate=now").status == 400


def test_the_usage_of_now_is_an_event(call: Call, control: EmulatorClient) -> None:
    ask(call)
    said = call("GET", f"{PERSONAL}/usage/live").body.decode()
    told = json.loads(said.removeprefix("data: "))
    assert told["inference"]["usedNanoUsd"] == control.invoice()["calls_nano_usd"]


def test_an_endpoint_is_a_row_of_the_period(call: Call, control: EmulatorClient) -> None:
    control.configure(renewal_day=7)
    control.add_endpoint("acme/llm", state="running", instance_type="nvidia-l4")
    control.advance(120)
    told = call("GET", f"{PERSONAL}/usage").json()
    (row,) = told["usage"]["endpoints"]
    assert (row["label"], row["active"]) == ("acme/llm", True)
    assert row["product"] == "endpoints/aws/nvidia-l4/x1"
    assert row["totalCostMicroUSD"] * 1000 == control.invoice()["endpoints_nano_usd"]
    assert told["period"]["periodStart"][8:10] == told["period"]["periodEnd"][8:10] == "07"


def test_a_resource_group_has_inference_and_endpoints(call: Call, control: EmulatorClient) -> None:
    control.configure(organizations=["acme"])
    control.add_endpoint("acme/llm", state="running")
    control.add_endpoint("me/llm", state="running")
    control.advance(60)
    ask(call, "theirs", X_HF_Bill_To="acme")
    path = "/hub/api/organizations/acme/billing/usage-by-resource-group"
    (group,) = call("GET", path).json()["periods"][0]["resourceGroups"]
    bill: dict[str, Any] = control.invoice()
    minutes = {one["name"]: one for one in bill["endpoints"]}["acme/llm"]
    assert group["inference"] == {"requestCount": 1, "costCents": bill["calls_nano_usd"] / 10**7}
    assert group["compute"]["endpoints"]["costCents"] == minutes["nano_usd"] / 10**7
    (row,) = call("GET", f"{PERSONAL}/usage").json()["usage"]["endpoints"]
    assert row["label"] == "me/llm"
