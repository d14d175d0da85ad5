"""The control plane by way of the real HfApi, and by plain HTTP where HfApi does not go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from pytest_hfbudget.emulator import Emulator, EmulatorClient

ONE = "/v2/endpoint/org/ci"


@pytest.fixture
def api(hub: Emulator) -> HfApi:
    return HfApi(token="hf_tester")


def test_resume_then_wait_then_pause_as_the_client_does_it(
    api: HfApi, control: EmulatorClient
) -> None:
    control.add_endpoint("org/ci", pending_s=0.01, initializing_s=0.05)
    endpoint = api.get_inference_endpoint("ci", namespace="org")
    assert endpoint.status == "paused"
    endpoint.resume()
    assert endpoint.status == "pending"
    endpoint.wait(timeout=5, refresh_every=0.01)  # type: ignore[arg-type]
    assert endpoint.client.chat_completion([{"role": "user", "content": "hi"}]).choices
    endpoint.pause()
    assert endpoint.status == "paused"
    states = [entry["state"] for entry in control.log(kind="state")]
    assert states == ["pending", "initializing", "running", "paused"]
    [bill] = control.invoice()["endpoints"]
    assert (bill["name"], bill["minutes"], bill["state"]) == ("org/ci", 1, "paused")
    assert bill["nano_usd"] == 550_000  # 0.033 USD per hour / 60


def test_resume_of_a_running_endpoint_is_swallowed_by_the_client_unless_told_otherwise(
    api: HfApi, control: EmulatorClient
) -> None:
    control.add_endpoint("org/ci", state="running")
    assert api.resume_inference_endpoint("ci", namespace="org").status == "running"
    with pytest.raises(BadRequestError, match="already running"):
        api.resume_inference_endpoint("ci", namespace="org", running_ok=False)


def test_an_endpoint_that_is_created_starts_and_is_billed(
    api: HfApi, control: EmulatorClient
) -> None:
    made = api.create_inference_endpoint(
        "fresh",
        namespace="org",
        repository="org/model",
        framework="pytorch",
        task="text-generation",
        accelerator="gpu",
        vendor="aws",
        region="us-east-1",
        type="authenticated",
        instance_size="x1",
        instance_type="nvidia-l4",
        min_replica=0,
        scale_to_zero_timeout=15,
    )
    assert (made.status, made.repository) == ("pending", "org/model")
    made.fetch()
    assert made.status == "running"
    made.pause()
    assert control.invoice()["endpoints_nano_usd"] == 13_333_334


def test_update_changes_what_it_names_and_leaves_the_rest(
    api: HfApi, control: EmulatorClient
) -> None:
    control.add_endpoint("org/ci", max_replica=2)
    updated = api.update_inference_endpoint("ci", namespace="org", scale_to_zero_timeout=30)
    scaling = updated.raw["compute"]["scaling"]
    assert (scaling["scaleToZeroTimeout"], scaling["maxReplica"]) == (30, 2)
    assert updated.status == "paused"


def test_tags_of_an_update_are_kept_for_the_filter_of_the_list(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci")
    control.add_endpoint("org/other", tags=["mine"])
    assert call("PUT", ONE, {"tags": ["run-1", "mine"]}).json()["tags"] == ["run-1", "mine"]
    found = call("GET", "/v2/endpoint/org?tags=run-1&tags=mine").json()
    assert [item["name"] for item in found["items"]] == ["ci"]


def test_an_update_beyond_reason_changes_nothing(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    before = control.add_endpoint("org/ci")
    body = {"compute": {"scaling": {"minReplica": 3, "maxReplica": 2}}}
    assert call("PUT", ONE, body).status == 400
    assert call("PUT", ONE, {"compute": {"instanceType": "abacus"}}).status == 400
    assert call("GET", ONE).json()["compute"] == before["compute"]


def test_scale_to_zero_and_delete(api: HfApi, control: EmulatorClient) -> None:
    control.add_endpoint("org/ci", state="running", scale_to_zero_timeout=15)
    assert api.scale_to_zero_inference_endpoint("ci", namespace="org").status == "scaledToZero"
    api.delete_inference_endpoint("ci", namespace="org")
    with pytest.raises(HfHubHTTPError, match="404"):
        api.get_inference_endpoint("ci", namespace="org")


def test_the_client_lists_only_the_first_page_of_twenty(
    api: HfApi, control: EmulatorClient
) -> None:
    for number in range(23):
        control.add_endpoint(f"org/ci-{number:02d}")
    control.add_endpoint("elsewhere/ci")
    assert len(api.list_inference_endpoints("org")) == 20


def test_pages_follow_each_other_by_cursor(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    for number in range(5):
        control.add_endpoint(f"org/ci-{number}")
    seen, query = [], "limit=2&sortBy=name"
    while True:
        page = call("GET", f"/v2/endpoint/org?{query}").json()
        assert page["totalItems"] == 5
        seen.append([item["name"] for item in page["items"]])
        if "nextCursor" not in page:
            break
        query = f"limit=2&sortBy=name&cursor={page['nextCursor']}"
    assert seen == [["ci-0", "ci-1"], ["ci-2", "ci-3"], ["ci-4"]]
    assert "prevCursor" in page
    assert call("GET", "/v2/endpoint/org?cursor=junk!").status == 400


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("state=running", ["run"]),
        ("state=paused", ["rest"]),
        ("search=ru", ["run"]),
        ("sortBy=name&direction=desc", ["run", "rest"]),
        ("sortBy=name", ["rest", "run"]),
        ("task=summarization", ["rest"]),
        ("type=public", ["run"]),
    ],
)
def test_the_list_filters_and_sorts(
    control: EmulatorClient, call: Callable[..., Any], query: str, names: list[str]
) -> None:
    control.add_endpoint("org/run", state="running", type="public")
    control.add_endpoint("org/rest", model={"task": "summarization"})
    page = call("GET", f"/v2/endpoint/org?{query}").json()
    assert [item["name"] for item in page["items"]] == names


@pytest.mark.parametrize(
    "query", ["state=pending", "state=initializing", "sortBy=price", "limit=few"]
)
def test_the_list_refuses_a_filter_that_the_api_does_not_have(
    emulator: Emulator, call: Callable[..., Any], query: str
) -> None:
    assert call("GET", f"/v2/endpoint/org?{query}").status == 400


def test_the_hardware_list_is_public_and_has_the_documented_prices(
    call: Callable[..., Any],
) -> None:
    vendors = call("GET", "/v2/provider", token=None).json()["vendors"]
    prices = {
        (vendor["name"], each["instanceType"], each["instanceSize"]): each["pricePerHour"]
        for vendor in vendors
        for region in vendor["regions"]
        for each in region["computes"]
    }
    assert prices["aws", "nvidia-t4", "x1"] == 0.5
    assert prices["aws", "nvidia-l4", "x1"] == 0.8
    assert prices["aws", "nvidia-a10g", "x1"] == 1
    assert prices["aws", "intel-spr", "x1"] == 0.033
    assert prices["gcp", "nvidia-l4", "x1"] == 0.7


def test_the_hardware_of_a_namespace_tells_what_is_in_use(
    hub: Emulator, control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/run", state="running", instance_type="nvidia-l4")
    control.add_endpoint("org/rest", instance_type="nvidia-l4")
    path = "/v2/provider/org"
    computes = [
        each
        for vendor in call("GET", path).json()["vendors"]
        for region in vendor["regions"]
        for each in region["computes"]
    ]
    used = {each["id"]: each["quota"]["usedAccelerators"] for each in computes}
    assert used["aws-us-east-1-nvidia-l4-x1"] == 1
    if hasattr(HfApi, "list_inference_endpoints_hardware"):
        listed = HfApi(token="hf_tester").list_inference_endpoints_hardware(namespace="org")
        assert {each.id for each in listed} == set(used)


def test_replicas_show_the_spans_that_the_invoice_bills(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", state="running", max_replica=3)
    control.change_endpoint("org/ci", replicas=3)
    control.advance(90)
    control.change_endpoint("org/ci", replicas=2)
    call("POST", ONE + "/pause")
    replicas = call("GET", ONE + "/replica").json()["items"]
    shown = [
        {
            "replica": each["id"],
            "start": each["status"]["startedAt"],
            "stop": each["status"]["stoppedAt"],
        }
        for each in replicas
    ]
    [bill] = control.invoice()["endpoints"]
    assert bill["spans"] == shown
    assert bill["minutes"] == 6
    assert all(each["status"]["stage"] == "stopped" for each in replicas)


def test_the_replica_timeline_is_cut_to_its_window(
    control: EmulatorClient, call: Callable[..., Any]
) -> None:
    control.add_endpoint("org/ci", initializing_s=10)
    call("POST", ONE + "/resume")
    control.advance(30)
    call("POST", ONE + "/pause")
    [span] = control.invoice()["endpoints"][0]["spans"]
    window = {"start": "2020-01-01T00:00:00Z", "stop": "2100-01-01T00:00:00Z"}
    series = call("POST", ONE + "/metrics/replica-status", window).json()
    by_stage = {each["stage"]: each["data"] for each in series}
    assert by_stage["initializing"][0]["x"] == span["start"]
    assert by_stage["running"][0]["x2"] == span["stop"]
    assert by_stage["running"][0]["x"] == by_stage["initializing"][0]["x2"]
    past = {**window, "stop": "2020-01-02T00:00:00Z"}
    assert call("POST", ONE + "/metrics/replica-status", past).json() == []
    assert call("POST", ONE + "/metrics/replica-status", {}).status == 400


@pytest.mark.parametrize("name", ["", "Has-Capitals", "much-too-long-for-the-name-of-an-endpoint"])
def test_a_name_that_the_api_does_not_take_is_refused(
    emulator: Emulator, call: Callable[..., Any], name: str
) -> None:
    assert call("POST", "/v2/endpoint/org", {"name": name}).status == 400


def test_one_name_is_one_endpoint(control: EmulatorClient, call: Callable[..., Any]) -> None:
    control.add_endpoint("org/ci")
    assert call("POST", "/v2/endpoint/org", {"name": "ci"}).status == 409


def test_who_am_i_is_answered_for_endpoints_without_a_namespace(
    api: HfApi, control: EmulatorClient
) -> None:
    control.add_endpoint("emulator/mine")
    assert [endpoint.name for endpoint in api.list_inference_endpoints()] == ["mine"]
