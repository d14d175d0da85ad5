"""States and replicas of one endpoint, without a server and without waiting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("starlette")

from pytest_hfbudget.emulator.endpoint import STATES, Endpoint
from pytest_hfbudget.emulator.endpoint_form import short_form
from pytest_hfbudget.emulator.refusal import Refusal
from pytest_hfbudget.emulator.world import World


def endpoint(world: World, **form: Any) -> Endpoint:
    return world.add_endpoint(short_form({"namespace": "org", "name": "ci", **form}))


def refusal_of(action: Any) -> tuple[int, str] | None:
    """Status and words of the refusal of `action`, or None when it is done."""
    try:
        action()
    except Refusal as refusal:
        return refusal.status, refusal.body["error"]
    return None


RUNNING = (400, "Endpoint is already running")


@pytest.mark.parametrize(
    ("state", "refusal"),
    [
        ("running", RUNNING),
        ("pending", RUNNING),
        ("initializing", RUNNING),
        ("updating", RUNNING),
        ("paused", None),
        ("scaledToZero", None),
        ("failed", None),
        ("updateFailed", (400, "Endpoint has a configuration error, update it instead")),
    ],
)
def test_resume_by_state(world: World, state: str, refusal: tuple[int, str] | None) -> None:
    one = endpoint(world, state=state)
    assert refusal_of(one.resume) == refusal
    if refusal is None:
        world.clock.run_due()
        assert one.state == "running"


@pytest.mark.parametrize("state", STATES)
def test_pause_is_good_in_every_state(world: World, state: str) -> None:
    one = endpoint(world, state=state)
    one.pause()
    assert (one.state, one.target, one.present) == ("paused", 0, [])


def test_a_deleted_endpoint_can_be_neither_paused_nor_resumed(world: World) -> None:
    world.change_switches({"delete_lag_s": 5.0})
    one = endpoint(world, state="running")
    world.delete_endpoint(one)
    assert refusal_of(one.pause) == refusal_of(one.resume) == (400, "Endpoint is being deleted")
    world.clock.advance(5)
    assert "org/ci" not in world.endpoints


def test_a_failure_of_the_configuration_cannot_be_resumed(world: World) -> None:
    one = endpoint(world, state="failed", failure="config")
    assert refusal_of(one.resume) is not None


def test_quota_is_checked_by_resume(world: World) -> None:
    one = endpoint(world, quota_ok=False)
    assert refusal_of(one.resume) == (400, "Quota exceeded for this hardware")


def test_resume_while_starting_is_a_matter_of_a_switch(world: World) -> None:
    one = endpoint(world, state="initializing")
    world.change_switches({"resume_while_starting": "ok"})
    assert refusal_of(one.resume) is None
    assert one.state == "initializing"


def test_a_resume_goes_through_its_states_at_exact_times(world: World) -> None:
    one = endpoint(world, pending_s=2, initializing_s=30)
    one.resume()
    start = one.updated
    world.clock.advance(60)
    entries = [entry for entry in world.log.entries if entry["kind"] == "state"]
    steps = [(entry["state"], entry["at"] - start) for entry in entries]
    assert steps == [("pending", 0), ("initializing", 2_000_000), ("running", 32_000_000)]


@pytest.mark.parametrize(
    ("outcome", "state"),
    [("failed", "failed"), ("updateFailed", "updateFailed"), ("stuck", "initializing")],
)
def test_a_resume_can_end_badly(world: World, outcome: str, state: str) -> None:
    one = endpoint(world, resume_to=outcome, initializing_s=1)
    one.resume()
    world.clock.advance(100)
    assert one.state == state
    assert not one.ready


def test_a_pause_during_the_start_ends_the_start(world: World) -> None:
    one = endpoint(world, initializing_s=10)
    one.resume()
    world.clock.advance(1)
    one.pause()
    world.clock.advance(100)
    assert one.state == "paused"


def test_a_lagging_pause_shows_the_old_state_with_target_zero(world: World) -> None:
    one = endpoint(world, state="running", pause_lag_s=3)
    one.pause()
    assert (one.state, one.target, one.ready) == ("running", 0, False)
    assert refusal_of(one.resume) == RUNNING
    one.pause()  # again, which does not start the lag anew
    world.clock.advance(3)
    assert one.state == "paused"


def test_scale_to_zero_needs_a_timeout(world: World) -> None:
    without = endpoint(world, state="running")
    assert refusal_of(without.scale_to_zero) == (400, "workload cannot be scaled to zero")
    one = endpoint(world, name="with", state="running", scale_to_zero_timeout=15)
    one.scale_to_zero()
    assert (one.state, one.present) == ("scaledToZero", [])


def test_an_idle_endpoint_scales_to_zero_after_its_timeout(world: World) -> None:
    one = endpoint(world, state="running", scale_to_zero_timeout=15)
    world.clock.advance(14 * 60)
    one.use()
    world.clock.advance(14 * 60)
    assert one.state == "running"
    world.clock.advance(60)
    assert one.state == "scaledToZero"


def test_scaling_to_zero_can_come_late_or_never(world: World) -> None:
    world.change_switches({"scale_to_zero_late_s": 29 * 60.0})
    late = endpoint(world, name="late", state="running", scale_to_zero_timeout=15)
    busy = endpoint(world, name="busy", state="running", scale_to_zero_timeout=15, min_replica=1)
    world.clock.advance(43 * 60)
    assert late.state == "running"
    world.clock.advance(60)
    assert (late.state, busy.state) == ("scaledToZero", "running")


def test_the_old_rule_of_pause_and_resume_rewrites_the_scaling(world: World) -> None:
    world.change_switches({"resume_rewrites_scaling": True})
    one = endpoint(world, state="running", max_replica=4, min_replica=2)
    one.pause()
    assert (one.scaling.minimum, one.scaling.maximum) == (0, 0)
    one.resume()
    assert (one.scaling.minimum, one.scaling.maximum) == (1, 1)


def test_a_pause_that_flips_back_is_undone_later(world: World) -> None:
    one = endpoint(world, state="running")
    one.pause()
    one.flip_back(2)
    assert one.state == "paused"
    world.clock.advance(2)
    assert one.state == "running"


def test_replicas_come_and_go_with_the_scale(world: World) -> None:
    one = endpoint(world, state="running", max_replica=3, initializing_s=5)
    one.scale(3)
    assert [replica.stage for replica in one.present] == ["running", *["initializing"] * 2]
    world.clock.advance(5)
    assert all(replica.live for replica in one.present)
    one.scale(1)
    assert len(one.present) == 1


def test_an_update_shows_when_it_takes_time(world: World) -> None:
    one = endpoint(world, state="running", updating_s=5)
    one.apply_update(None)
    assert one.state == "updating"
    world.clock.advance(5)
    assert one.state == "running"


def test_an_update_to_other_hardware_starts_new_replicas_at_the_new_price(world: World) -> None:
    one = endpoint(world, state="running", instance_type="nvidia-t4")
    bigger = next(each for each in world.hardware if each.instance_type == "nvidia-l40s")
    one.apply_update(bigger)
    assert [str(replica.price_per_hour) for replica in one.replicas] == ["1/2", "9/5"]


def test_an_update_wakes_a_paused_endpoint_only_by_a_switch(world: World) -> None:
    one = endpoint(world)
    one.apply_update(None)
    assert one.state == "paused"
    world.change_switches({"update_resumes": True})
    one.apply_update(None)
    assert one.state == "pending"


def test_an_update_mends_what_failed(world: World) -> None:
    one = endpoint(world, state="updateFailed")
    one.apply_update(None)
    assert one.state == "running"


def test_a_view_that_lags_tells_an_older_state(world: World) -> None:
    one = endpoint(world, state="running", view_lag_s=3)
    world.clock.advance(10)
    one.pause()
    assert (one.state, one.shown_state) == ("paused", "running")
    world.clock.advance(3)
    assert one.shown_state == "paused"


def test_an_endpoint_scales_with_its_load_as_far_as_its_scaling_allows(world: World) -> None:
    one = endpoint(world, state="running", max_replica=3, load=5)
    world.clock.advance(59)
    assert len(one.present) == 1
    world.clock.advance(1)
    assert len(one.present) == 3


def test_a_paused_endpoint_does_not_scale(world: World) -> None:
    one = endpoint(world, state="running", max_replica=3, load=3)
    one.pause()
    world.clock.advance(600)
    assert one.present == []


def test_an_endpoint_scales_again_after_a_resume(world: World) -> None:
    one = endpoint(world, max_replica=3, load=3)
    one.resume()
    world.clock.advance(60)
    assert len(one.present) == 3


def test_an_endpoint_scales_down_when_its_scaling_is_lowered(world: World) -> None:
    one = endpoint(world, state="running", max_replica=3, load=3)
    world.clock.advance(60)
    one.scaling = replace(one.scaling, maximum=2)
    world.clock.advance(60)
    assert len(one.present) == 2
