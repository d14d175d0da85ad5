"""The report as a JSON file, schema 1: money as decimal strings in USD.

Reading passes over keys that a later release has added, and gives those that an earlier one did
not have yet their defaults, so that the files of a year can be looked at together.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from pytest_hfbudget.errors import Figures
from pytest_hfbudget.files import write_whole
from pytest_hfbudget.ledger import Charge, Refusal, RunsBudget
from pytest_hfbudget.money import usd_text
from pytest_hfbudget.reporting import REPLAYED, EndpointLine, Report, SharedLine, TestLine
from pytest_hfbudget.reporting.json_fields import JsonFields, ReportFileError
from pytest_hfbudget.reporting.timeline import Lane, Minutes, Stretch, TestSpan, Timeline
from pytest_hfbudget.text import undirected

T = TypeVar("T")

SCHEMA = 1
# Of a refusal, in USD.
FIGURES = Figures._fields
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data; `SCHEMA_FILE` is its JSON Schema."""
    return {
        "schema": SCHEMA,
        "run": report.run,
        "project": report.project,
        "session_id": report.session_id or None,
        "date": report.date.isoformat(timespec="seconds"),
        "rehearsal": report.rehearsal,
        "session": _session(report),
        "tests": [_test(test) for test in report.tests],
        "shared": [_shared(budget) for budget in report.shared],
        "over_runs": [_over_runs(budget) for budget in report.over_runs],
        "calls": [_call(charge) for charge in report.charges],
        "notes": list(report.notes),
        "refusals": [_refusal(refusal) for refusal in report.refusals],
        "endpoints": [_endpoint(endpoint) for endpoint in report.endpoints],
        "timeline": None if report.timeline is None else _timeline(report.timeline),
    }


def write(report: Report, path: Path) -> None:
    """Write the file whole or not at all; a run that is killed meanwhile leaves the old file.

    Raises:
        OSError: it can't be written.
    """
    write_whole(path, json.dumps(as_json(report), indent=1) + "\n")


def _session(report: Report) -> dict[str, Any]:
    return {
        "spent_usd": usd_text(report.spent),
        "cap_usd": _usd(report.cap),
        "calls": report.calls,
        "refused": report.refused,
        "replayed": len(report.remarked(REPLAYED)),
        "unmetered": dict(report.unmetered),
        "estimated_above_usd": usd_text(report.above),
        "waited_s": round(sum(charge.waited for charge in report.waited), 6),
    }


def _test(test: TestLine) -> dict[str, Any]:
    return {
        "id": test.id,
        "outcome": test.outcome,
        "spent_usd": usd_text(test.spent),
        "cap_usd": _usd(test.cap),
        "calls": test.calls,
        "refused": test.refused,
        "replayed": test.replayed,
        "uptime_usd": usd_text(test.uptime),
    }


def _over_runs(budget: RunsBudget) -> dict[str, Any]:
    return {
        "name": budget.label,
        "cap_usd": usd_text(budget.cap),
        "spent_usd": usd_text(budget.cap - budget.left),
        "jobs": budget.jobs,
    }


def _shared(budget: SharedLine) -> dict[str, Any]:
    return {
        "name": budget.name,
        "level": budget.level,
        "spent_usd": usd_text(budget.spent),
        "cap_usd": _usd(budget.cap),
        "max_calls": budget.max_calls,
        "calls": budget.calls,
        "refused": budget.refused,
    }


def _call(charge: Charge) -> dict[str, Any]:
    """One call; ``usd`` is null where it had no known price."""
    return {
        "test": charge.test,
        "task": charge.task,
        "model": charge.model,
        "provider": charge.provider,
        "input_tokens": charge.input_tokens,
        "output_tokens": charge.output_tokens,
        "cached_tokens": charge.cached_tokens,
        "usd": _usd(charge.nano_usd),
        "price_source": charge.price_source,
        "status": charge.status,
        "estimated": charge.estimated,
        "replayed": charge.replayed,
        "seconds": charge.seconds,
        "over_hold_usd": usd_text(charge.over),
        "where": charge.where,
        "instead_of": charge.instead_of or None,
        "estimated_above_usd": usd_text(charge.above),
        "waited_s": charge.waited,
        "session_id": charge.session_id or None,
        "endpoint": charge.endpoint,
    }


def _endpoint(endpoint: EndpointLine) -> dict[str, Any]:
    return {
        "name": endpoint.name,
        "state": endpoint.state,
        "usd": usd_text(endpoint.nano_usd),
        "minutes": endpoint.minutes,
        "resumed": endpoint.resumed,
        "paused": endpoint.paused,
        "verified": endpoint.verified,
        "resumed_at": _moment(endpoint.resumed_at),
        "paused_at": _moment(endpoint.paused_at),
        "kept": endpoint.kept,
        "left_to": endpoint.left_to,
        "shares": {test: usd_text(nano) for test, nano in endpoint.shares},
        "idle_usd": _usd(endpoint.idle),
        "cold_start_usd": _usd(endpoint.cold_start),
    }


def _timeline(told: Timeline) -> dict[str, Any]:
    """Seconds since ``began_at``, to the millisecond."""
    figures = (("paid", told.paid), ("least", told.least), ("collected", told.collected))
    return {
        "began_at": _moment(told.began_at),
        "seconds": round(told.seconds, 3),
        **{f"{name}_minutes": minutes.minutes for name, minutes in figures},
        **{f"{name}_usd": usd_text(minutes.nano_usd) for name, minutes in figures},
        "endpoints": [
            {"name": lane.endpoint, "stretches": [_rounded(each) for each in lane.stretches]}
            for lane in told.lanes
        ],
        "tests": [_rounded(test) for test in told.tests],
    }


def _rounded(span: TestSpan | Stretch) -> dict[str, Any]:
    return {**span._asdict(), "start": round(span.start, 3), "stop": round(span.stop, 3)}


def _moment(unix_s: float | None) -> str | None:
    """RFC 3339, in UTC."""
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, timezone.utc).isoformat(timespec="milliseconds")


def _usd(amount: int | None) -> str | None:
    return None if amount is None else usd_text(amount)


def read(path: Path) -> Report:
    """The report in a file; a report without a date has the date of its file.

    Raises:
        ReportFileError: it can't be read, or is not a report.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        written = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        return parse(content, written=written)
    except OSError as error:
        raise ReportFileError(f"{path} could not be read: {error.strerror}") from None
    except RecursionError:
        raise ReportFileError(f"{path} is not a report of --hf-report: nested too deeply") from None
    except ValueError as error:
        raise ReportFileError(f"{path} is not a report of --hf-report: {error}") from None


def parse(content: object, *, written: datetime) -> Report:
    """The report in parsed JSON; ``written`` is its date if it has none.

    Raises:
        ReportFileError: it has another form.
    """
    top = JsonFields.of(content, "the report")
    if (schema := top.count("schema")) != SCHEMA:
        raise ReportFileError(f"its schema is {schema}, and this release reads {SCHEMA}")
    session = top.inner("session")
    unmetered = session.inner("unmetered")
    return Report(
        spent=session.usd("spent_usd") or 0,
        cap=session.usd("cap_usd"),
        calls=session.count("calls"),
        refused=session.count("refused"),
        tests=tuple(map(_read_test, top.each("tests"))),
        charges=tuple(map(_read_call, top.each("calls"))),
        refusals=tuple(map(_read_refusal, top.each("refusals"))),
        endpoints=tuple(map(_read_endpoint, top.each("endpoints"))),
        run=top.text("run"),
        project=top.text("project"),
        session_id=top.text("session_id"),
        date=top.date("date") or written,
        rehearsal=top.flag("rehearsal"),
        shared=tuple(map(_read_shared, top.each("shared"))),
        over_runs=tuple(map(_read_over_runs, top.each("over_runs"))),
        notes=tuple(top.texts("notes")),
        unmetered=tuple((why, unmetered.count(why)) for why in unmetered.values),
        timeline=_read_timeline(top.inner("timeline")) if top.values.get("timeline") else None,
    )


def _read_test(row: JsonFields) -> TestLine:
    return TestLine(
        id=row.text("id"),
        outcome=row.text("outcome"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        calls=row.count("calls"),
        refused=row.count("refused"),
        replayed=row.count("replayed"),
        uptime=row.usd("uptime_usd") or 0,
    )


def _read_over_runs(row: JsonFields) -> RunsBudget:
    cap, jobs = row.usd("cap_usd") or 0, row.values.get("jobs")
    left = cap - (row.usd("spent_usd") or 0)
    return RunsBudget(row.text("name"), cap, left, None if jobs is None else row.count("jobs"))


def _read_shared(row: JsonFields) -> SharedLine:
    return SharedLine(
        name=row.text("name"),
        level=row.text("level"),
        spent=row.usd("spent_usd") or 0,
        cap=row.usd("cap_usd"),
        max_calls=None if row.values.get("max_calls") is None else row.count("max_calls"),
        calls=row.count("calls"),
        refused=row.count("refused"),
    )


def _read_call(row: JsonFields) -> Charge:
    status = row.text("status")
    return Charge(
        test=row.text("test") or None,
        task=row.text("task"),
        model=row.text("model"),
        provider=row.text("provider") or None,
        input_tokens=row.count("input_tokens"),
        output_tokens=row.count("output_tokens"),
        nano_usd=row.usd("usd"),
        price_source=row.text("price_source"),
        status=status,
        estimated=row.flag("estimated"),
        seconds=row.seconds("seconds"),
        where=row.text("where"),
        over=row.usd("over_hold_usd") or 0,
        replayed=row.flag("replayed") or status == "replayed",
        instead_of=row.text("instead_of"),
        above=row.usd("estimated_above_usd") or 0,
        waited=row.seconds("waited_s"),
        session_id=row.text("session_id"),
        cached_tokens=row.count("cached_tokens"),
        endpoint=row.text("endpoint") or None,
    )


def _refusal(refusal: Refusal) -> dict[str, Any]:
    fields = refusal._asdict()
    figures = {f"{name}_usd": usd_text(fields.pop(name)) for name in FIGURES}
    return {**fields, **figures}


def _read_refusal(row: JsonFields) -> Refusal:
    return Refusal(
        test=row.text("test") or None,
        scope=row.text("scope"),
        model=row.text("model"),
        message=row.text("message"),
        scope_key=row.text("scope_key"),
        details=row.text("details"),
        **{name: row.usd(f"{name}_usd") or 0 for name in FIGURES},
    )


def _read_endpoint(row: JsonFields) -> EndpointLine:
    shares = row.inner("shares")
    return EndpointLine(
        name=row.text("name"),
        state=row.text("state"),
        nano_usd=row.usd("usd") or 0,
        minutes=row.count("minutes"),
        resumed=row.flag("resumed"),
        paused=row.flag("paused"),
        verified=row.flag("verified"),
        left_to=row.text("left_to") or None,
        kept=row.flag("kept"),
        resumed_at=row.unix_s("resumed_at"),
        paused_at=row.unix_s("paused_at"),
        shares=tuple((undirected(test), shares.usd(test) or 0) for test in shares.values),
        idle=row.usd("idle_usd"),
        cold_start=row.usd("cold_start_usd"),
    )


def _read_timeline(top: JsonFields) -> Timeline:
    paid, least, collected = (
        Minutes(top.count(f"{name}_minutes"), top.usd(f"{name}_usd") or 0)
        for name in ("paid", "least", "collected")
    )
    return Timeline(
        top.unix_s("began_at") or 0.0,
        top.seconds("seconds"),
        tuple(
            Lane(
                lane.text("name"),
                tuple(
                    Stretch(row.text("state"), row.seconds("start"), row.seconds("stop"))
                    for row in lane.each("stretches")
                ),
            )
            for lane in top.each("endpoints")
        ),
        tuple(
            TestSpan(
                row.text("test"),
                row.text("worker"),
                row.seconds("start"),
                row.seconds("stop"),
                tuple(undirected(str(name)) for name in row.values.get("endpoints") or ()),
            )
            for row in top.each("tests")
        ),
        paid,
        least,
        collected,
    )
