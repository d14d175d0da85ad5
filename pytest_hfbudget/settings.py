"""Options, environment and ini, merged in one place; the first that says something wins."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pytest_hfbudget import values
from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_usd

T = TypeVar("T")


class Setting(NamedTuple):
    """One setting under its three names; a name that does not exist is empty."""

    option: str = ""
    variable: str = ""
    ini: str = ""
    help: str = ""


SETTINGS = {
    "session_cap": Setting(
        "--hf-session-budget", "HFBUDGET_SESSION", "hf_session_budget", "USD cap of the whole run"
    ),
    "test_cap": Setting(
        "--hf-test-budget",
        "HFBUDGET_TEST",
        "hf_test_budget",
        "USD cap of each test whose own marker has no max_usd",
    ),
    "on_exhausted": Setting(
        "--hf-on-exhausted",
        "HFBUDGET_ON_EXHAUSTED",
        "hf_on_exhausted",
        "what becomes of a test that the session budget refuses a call: skip (not run, and the "
        "run is red), stop (the same, and the run ends), fail",
    ),
    "daily_cap": Setting(
        "--hf-daily-budget",
        "HFBUDGET_DAILY",
        "hf_daily_budget",
        "USD cap of all runs of this project on this machine in a day (UTC)",
    ),
    "weekly_cap": Setting(
        "--hf-weekly-budget",
        "HFBUDGET_WEEKLY",
        "hf_weekly_budget",
        "USD cap of all runs of this project on this machine from Monday to Sunday (UTC)",
    ),
    "monthly_cap": Setting(
        "--hf-monthly-budget",
        "HFBUDGET_MONTHLY",
        "hf_monthly_budget",
        "USD cap of all runs of this project on this machine in a calendar month (UTC)",
    ),
    "project": Setting(
        "",
        "HFBUDGET_PROJECT",
        "hf_project",
        "name of the project, for checkouts that share its budgets (the rootdir)",
    ),
    "log_days": Setting(
        "",
        "HFBUDGET_LOG_DAYS",
        "hf_log_days",
        "days that a run stays in the usage log (90); 0 keeps no log",
    ),
    "prices": Setting("--hf-prices", "HFBUDGET_PRICES", "hf_prices", "TOML file of prices"),
    "unpriced": Setting(
        "--hf-unpriced",
        "HFBUDGET_UNPRICED",
        "hf_unpriced",
        "what a call without a price does under a cap: refuse, free, assume:IN/OUT "
        "in USD per 1M tokens",
    ),
    "endpoints": Setting(
        "--hf-endpoint",
        "HFBUDGET_ENDPOINTS",
        "hf_endpoints",
        "Inference Endpoint that the whole run needs, namespace/name; may be repeated",
    ),
    "namespace": Setting(
        "--hf-namespace", "HFBUDGET_NAMESPACE", "hf_namespace", "for endpoint names without one"
    ),
    "report": Setting("--hf-report", "HFBUDGET_REPORT", "hf_report", "write a JSON report"),
    "costs": Setting(
        "--hf-costs",
        "HFBUDGET_COSTS",
        "hf_costs",
        "file of what each test has cost (hf-costs.json in the root directory)",
    ),
    "store_costs": Setting(
        "--hf-store-costs",
        "HFBUDGET_STORE_COSTS",
        "",
        "write to that file what each test that passes has cost",
    ),
    "plan": Setting(
        "--hf-plan", "HFBUDGET_PLAN", "", "show what the tests are expected to cost; run nothing"
    ),
    "plan_gate": Setting(
        "--hf-plan-gate",
        "HFBUDGET_PLAN_GATE",
        "hf_plan_gate",
        "what becomes of a run that is expected to cost more than its session budget: "
        "stop, warn (default), off",
    ),
    "max_increase": Setting(
        "--hf-max-increase",
        "HFBUDGET_MAX_INCREASE",
        "hf_max_increase",
        "fail tests whose calls cost more than recorded by more than this, for example 20 percent "
        "written with its sign",
    ),
    "emulator": Setting(
        "--hf-emulator", "HFBUDGET_EMULATOR", "", "rehearse against the local emulator, at $0"
    ),
    "endpoints_api": Setting(
        "", "HFBUDGET_ENDPOINTS_API", "hf_endpoints_api", "base URL of the Inference Endpoints API"
    ),
    "router": Setting(
        "", "HFBUDGET_ROUTER", "hf_router", "base URL of the Inference Providers router"
    ),
    "hold_wait": Setting(
        "",
        "HFBUDGET_HOLD_WAIT",
        "hf_hold_wait",
        "seconds that a call waits for calls in flight, where only these are in its way (60)",
    ),
    "endpoint_wait": Setting(
        "",
        "HFBUDGET_ENDPOINT_WAIT",
        "hf_endpoint_wait",
        "seconds that a resumed endpoint may take to answer (900)",
    ),
    "endpoint_looks": Setting(
        "",
        "HFBUDGET_ENDPOINT_LOOKS",
        "hf_endpoint_looks",
        "seconds after a verified pause at which the keeper looks again (30 120); 0: never",
    ),
    "cold_start": Setting(
        "",
        "HFBUDGET_ENDPOINT_COLD_START",
        "hf_endpoint_cold_start",
        "seconds that an endpoint is expected to take until it serves, if none are recorded (180)",
    ),
    "max_uptime": Setting(
        "--hf-max-uptime",
        "HFBUDGET_MAX_UPTIME",
        "hf_max_uptime",
        "minutes after which the run's endpoints are paused, whatever it is doing",
    ),
    "idle_timeout": Setting(
        "--hf-idle-timeout",
        "HFBUDGET_IDLE_TIMEOUT",
        "hf_idle_timeout",
        "minutes after which the server itself scales a leased endpoint to zero (15)",
    ),
    "billing_minute": Setting(
        "",
        "HFBUDGET_BILLING_MINUTE",
        "hf_billing_minute",
        "seconds in a billed minute (60); only a rehearsal has another",
    ),
}

FOLDERS = ("HFBUDGET_STATE_DIR", "HFBUDGET_CACHE_DIR")

ON_EXHAUSTED = ("skip", "stop", "fail")
PLAN_GATE = ("stop", "warn", "off")
ENDPOINTS_API = "https://api.endpoints.huggingface.cloud/v2"
ROUTER = "https://router.huggingface.co"
HOLD_WAIT_S = 60.0


@dataclass(frozen=True)
class Settings:
    """What a run was asked for. Money in nano-USD, times in seconds unless a name says more."""

    session_cap: int | None = None
    test_cap: int | None = None
    on_exhausted: str = "skip"
    daily_cap: int | None = None
    weekly_cap: int | None = None
    monthly_cap: int | None = None
    project: str | None = None
    log_days: int = 90
    prices: Path | None = None
    unpriced: str = "refuse"
    endpoints: tuple[str, ...] = ()
    namespace: str | None = None
    report: Path | None = None
    costs: Path | None = None
    store_costs: bool = False
    plan: bool = False
    plan_gate: str = "warn"
    max_increase: Fraction | None = None
    emulator: str | None = None
    endpoints_api: str = ENDPOINTS_API
    router: str = ROUTER
    hub: str | None = None
    hold_wait: float = HOLD_WAIT_S
    endpoint_wait: float = 900.0
    endpoint_looks: tuple[float, ...] = (30.0, 120.0)
    cold_start: float = 180.0
    idle_timeout: int = 15
    max_uptime: float | None = None
    billing_minute: float = 60.0

    @property
    def capped(self) -> bool:
        """Whether every call of the run is under some cap."""
        own = self.session_cap is not None or self.test_cap is not None
        return own or self.capped_over_runs

    @property
    def capped_over_runs(self) -> bool:
        """Whether this run shares a cap with others."""
        caps = (self.daily_cap, self.weekly_cap, self.monthly_cap)
        return any(cap is not None for cap in caps)

    @property
    def worth_a_header(self) -> bool:
        """Whether a run says in its header what it was asked for."""
        return self.capped or bool(self.endpoints or self.emulator)


def merge(
    options: Mapping[str, Any], environ: Mapping[str, str], ini: Callable[[str], Any]
) -> Settings:
    """Command line over environment over ini.

    Raises:
        ConfigError: one line that names the setting by the name under which it was given.
    """

    def given(key: str, parse: Callable[[Any], T], default: T) -> T:
        name, value = _find(SETTINGS[key], options.get(key), environ, ini)
        if value in (None, "", [], ()):
            return default
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(" ".join(f"{name}={value}: {error}".split())) from None

    for name in FOLDERS:
        if (folder := environ.get(name)) and not os.path.isabs(folder):
            raise ConfigError(f"{name}={folder}: write an absolute path; tests may change folders")
    base = Settings()
    return Settings(
        session_cap=given("session_cap", parse_usd, None),
        test_cap=given("test_cap", parse_usd, None),
        on_exhausted=given("on_exhausted", values.one_of(ON_EXHAUSTED), base.on_exhausted),
        daily_cap=given("daily_cap", parse_usd, None),
        weekly_cap=given("weekly_cap", parse_usd, None),
        monthly_cap=given("monthly_cap", parse_usd, None),
        project=given("project", str, None),
        log_days=given("log_days", values.days, base.log_days),
        prices=given("prices", Path, None),
        unpriced=given("unpriced", values.policy, base.unpriced),
        endpoints=given("endpoints", values.names, ()),
        namespace=given("namespace", str, None),
        report=given("report", Path, None),
        costs=given("costs", Path, None),
        store_costs=given("store_costs", values.switch, False),
        plan=given("plan", values.switch, False),
        plan_gate=given("plan_gate", values.one_of(PLAN_GATE), base.plan_gate),
        max_increase=given("max_increase", values.share, None),
        emulator=given("emulator", str, None),
        endpoints_api=given("endpoints_api", values.url, base.endpoints_api),
        router=given("router", values.url, base.router),
        hold_wait=given("hold_wait", values.seconds_or_none, base.hold_wait),
        endpoint_wait=given("endpoint_wait", values.seconds, base.endpoint_wait),
        endpoint_looks=given("endpoint_looks", values.later, base.endpoint_looks),
        cold_start=given("cold_start", values.seconds_or_none, base.cold_start),
        max_uptime=given("max_uptime", values.seconds_of_minutes, None),
        idle_timeout=given("idle_timeout", values.minutes, base.idle_timeout),
        billing_minute=given("billing_minute", values.seconds, base.billing_minute),
    )


def full_name(name: str, namespace: str | None) -> str:
    """``namespace/name`` of an endpoint that may be named without its namespace.

    Raises:
        ConfigError: there is no namespace to add, or the name is no name.
    """
    given = name.strip()
    parts = (f"{namespace}/{given}" if namespace and "/" not in given else given).split("/")
    if len(parts) != 2 or not all(parts):  # noqa: PLR2004 - namespace and name
        raise ConfigError(
            f"endpoint {name!r}: write namespace/name, or give the namespace with --hf-namespace"
        )
    return "/".join(parts)


def hold_wait_of(environ: Mapping[str, str]) -> float:
    """What ``HFBUDGET_HOLD_WAIT`` says, where there is nothing but the environment.

    Raises:
        ConfigError: it is no number of seconds.
    """
    variable = SETTINGS["hold_wait"].variable
    given = {variable: environ[variable]} if variable in environ else {}
    return merge({}, given, lambda name: None).hold_wait


def _find(
    setting: Setting, option: Any, environ: Mapping[str, str], ini: Callable[[str], Any]
) -> tuple[str, Any]:
    if setting.option and option not in (None, []):
        return setting.option, option
    if environ.get(setting.variable):
        return setting.variable, environ[setting.variable]
    return setting.ini, ini(setting.ini) if setting.ini else None
