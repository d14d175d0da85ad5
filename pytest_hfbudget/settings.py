"""The table of settings; command line over environment over ini, merged in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fractions import Fraction

from pytest_hfbudget import values
from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.money import parse_usd
from pytest_hfbudget.values import Guard, Setting

# The folder of the leases, the budgets over many runs and the usage log; without it caps are lost.
STATE_DIR = "HFBUDGET_STATE_DIR"
CACHE_DIR = "HFBUDGET_CACHE_DIR"
SHARED_PASSWORD = "HFBUDGET_SHARED_PASSWORD"  # noqa: S105 - no option: `ps` would show it
# The plugin sets these two, for child processes and for workers: the address of the run's ledger.
LEDGER = "HFBUDGET_LEDGER"
WORKERS = "HFBUDGET_WORKERS"
# The outcome of a test that the session budget had too little left for.
NOT_RUN = "not run"
ON_EXHAUSTED = ("skip", "stop", "fail")
PLAN_GATE = ("stop", "warn", "off")
ADOPT = ("pause", "report", "off")
TOKENIZER = ("cached", "download", "off")
ENDPOINTS_API = "https://api.endpoints.huggingface.cloud/v2"
ROUTER = "https://router.huggingface.co"
DEDICATED_HOST = ".endpoints.huggingface.cloud"
HOLD_WAIT_S = 60.0
UNKNOWN_TASK = "POST"  # the task of a request whose path names none


class Settings:
    """The settings of a run, and the one table of settings: a new option is one entry.

    Money in nano-USD, times in seconds unless a name says more.

    Attributes:
        by_name: every value by the name of its setting; each is an attribute, too.
    """

    __slots__ = ("by_name",)

    session_cap = Guard[int | None](
        None,
        parse_usd,
        "--hf-session-budget=USD HFBUDGET_SESSION hf_session_budget",
        "USD cap of the whole run",
    )
    test_cap = Guard[int | None](
        None,
        parse_usd,
        "--hf-test-budget=USD HFBUDGET_TEST hf_test_budget",
        "USD cap of each test whose own marker has no max_usd",
    )
    on_exhausted = Setting[str](
        "skip",
        values.one_of(ON_EXHAUSTED),
        "--hf-on-exhausted=HOW HFBUDGET_ON_EXHAUSTED hf_on_exhausted",
        "when the session budget refuses a call of a test: skip (the test counts as not run, and "
        "the run is red), stop (the same, and the run ends), fail (the test fails)",
    )
    daily_cap = Guard[int | None](
        None,
        parse_usd,
        "--hf-daily-budget=USD HFBUDGET_DAILY hf_daily_budget",
        "USD cap of all runs of this project on this machine in a day (UTC)",
    )
    weekly_cap = Guard[int | None](
        None,
        parse_usd,
        "--hf-weekly-budget=USD HFBUDGET_WEEKLY hf_weekly_budget",
        "USD cap of all runs of this project on this machine from Monday to Sunday (UTC)",
    )
    monthly_cap = Guard[int | None](
        None,
        parse_usd,
        "--hf-monthly-budget=USD HFBUDGET_MONTHLY hf_monthly_budget",
        "USD cap of all runs of this project on this machine in a calendar month (UTC)",
    )
    shared = Guard[str | None](
        None,
        values.shared_server,
        "--hf-shared=URL HFBUDGET_SHARED hf_shared",
        "Redis or Valkey server over which the budgets and endpoints of this run are shared with "
        "other machines; its password comes from HFBUDGET_SHARED_PASSWORD",
    )
    shared_run = Guard[str | None](
        None,
        values.label,
        "HFBUDGET_SHARED_RUN",
        "name of the run that several jobs belong to (from the CI's own variables)",
    )
    shared_expiry = Setting[float](
        30.0,
        values.seconds,
        "HFBUDGET_SHARED_EXPIRY hf_shared_expiry",
        "seconds without a sign of life after which a job counts as lost (30)",
    )
    project = Guard[str | None](
        None,
        str,
        "HFBUDGET_PROJECT hf_project",
        "name of the project, for checkouts that share its budgets (the rootdir)",
    )
    log_days = Setting[int](
        90,
        values.days,
        "HFBUDGET_LOG_DAYS hf_log_days",
        "days that a run stays in the usage log (90); 0 keeps no log",
    )
    tokenizer = Setting[str](
        "cached",
        values.one_of(TOKENIZER),
        "HFBUDGET_TOKENIZER hf_tokenizer",
        "tokenizer that bounds a prompt until its server has counted it: cached (the model's own, "
        "if it is in the Hugging Face cache), download (before the first test), off",
    )
    image_tokens = Setting[int](
        16_384,
        values.tokens,
        "HFBUDGET_IMAGE_TOKENS hf_image_tokens",
        "upper bound in tokens for an image in a message (16384); once the server has counted an "
        "image of that size, its count is used",
    )
    prices = Guard[Path | None](
        None, Path, "--hf-prices=FILE HFBUDGET_PRICES hf_prices", "TOML file of prices"
    )
    unpriced = Setting[str](
        "refuse",
        values.policy,
        "--hf-unpriced=HOW HFBUDGET_UNPRICED hf_unpriced",
        "how a cap treats a call without a price: refuse, free, assume:IN/OUT in USD per 1M tokens",
    )
    endpoints = Setting[tuple[str, ...]](
        (),
        values.names,
        "--hf-endpoint=NAME HFBUDGET_ENDPOINTS hf_endpoints",
        "Inference Endpoint that the whole run needs, namespace/name; may be repeated",
        repeatable=True,
    )
    namespace = Setting[str | None](
        None,
        str,
        "--hf-namespace=NAME HFBUDGET_NAMESPACE hf_namespace",
        "namespace of endpoints that are named without one",
    )
    report = Setting[Path | None](
        None, Path, "--hf-report=FILE HFBUDGET_REPORT hf_report", "write a JSON report"
    )
    costs = Setting[Path | None](
        None,
        Path,
        "--hf-costs=FILE HFBUDGET_COSTS hf_costs",
        "file with the recorded cost of each test (hf-costs.json in the root directory)",
    )
    store_costs = Setting[bool](
        False,
        values.switch,
        "--hf-store-costs HFBUDGET_STORE_COSTS",
        "record the cost of each test that passes in the file of --hf-costs",
    )
    plan = Guard[bool](
        False,
        values.switch,
        "--hf-plan HFBUDGET_PLAN",
        "show what the tests are expected to cost; run nothing",
    )
    plan_gate = Guard[str](
        "warn",
        values.one_of(PLAN_GATE),
        "--hf-plan-gate=HOW HFBUDGET_PLAN_GATE hf_plan_gate",
        "when a run is expected to cost more than its session budget: stop, warn (default), off",
    )
    max_increase: Guard[Fraction | None] = Guard(
        None,
        values.percentage,
        "--hf-max-increase=PERCENT HFBUDGET_MAX_INCREASE hf_max_increase",
        "share, with a percent sign, by which the calls of a test may cost more than recorded; "
        "above it, the test fails",
    )
    emulator = Guard[str | None](
        None,
        values.emulator,
        "--hf-emulator HFBUDGET_EMULATOR",
        "rehearse against the local emulator, at $0",
    )
    endpoints_api = Guard[str](
        ENDPOINTS_API,
        values.url,
        "HFBUDGET_ENDPOINTS_API hf_endpoints_api",
        "base URL of the Inference Endpoints API",
    )
    router = Guard[str](
        ROUTER,
        values.url,
        "HFBUDGET_ROUTER hf_router",
        "base URL of the Inference Providers router",
    )
    paid_hosts = Guard[tuple[str, ...]](
        (),
        values.hosts,
        "HFBUDGET_PAID_HOSTS hf_paid_hosts",
        "more hosts or URLs whose calls cost money, such as a vLLM of your own",
        repeatable=True,
    )
    adopt = Guard[str](
        "pause",
        values.one_of(ADOPT),
        "HFBUDGET_ADOPT hf_adopt",
        "an endpoint that the tested code itself resumes or creates: pause (at the end of the run; "
        "its uptime counts), report (only name it), off",
    )
    hold_wait = Setting[float](
        HOLD_WAIT_S,
        values.seconds_or_zero,
        "HFBUDGET_HOLD_WAIT hf_hold_wait",
        "seconds that a call waits until calls in flight have settled and it fits its budget (60)",
    )
    endpoint_wait = Setting[float](
        900.0,
        values.seconds,
        "HFBUDGET_ENDPOINT_WAIT hf_endpoint_wait",
        "seconds that a resumed endpoint may take to answer (900)",
    )
    endpoint_looks = Setting[tuple[float, ...]](
        (30.0, 120.0),
        values.delays,
        "HFBUDGET_ENDPOINT_LOOKS hf_endpoint_looks",
        "seconds after a verified pause at which the reaper looks again (30 120); 0: never",
    )
    cold_start = Setting[float](
        180.0,
        values.seconds_or_zero,
        "HFBUDGET_ENDPOINT_COLD_START hf_endpoint_cold_start",
        "seconds that an endpoint is expected to take until it serves, if none are recorded (180)",
    )
    order = Setting[str](
        "cost",
        values.one_of(("cost", "collected")),
        "--hf-order=HOW HFBUDGET_ORDER hf_order",
        "order of the tests of a run with endpoints: cost (few endpoint minutes), collected",
    )
    endpoint_gaps = Setting[str](
        "keep",
        values.one_of(("keep", "pause")),
        "HFBUDGET_ENDPOINT_GAPS hf_endpoint_gaps",
        "what becomes of an endpoint between tests that lie far apart: keep (default), pause",
    )
    max_uptime = Guard[float | None](
        None,
        values.seconds_of_minutes,
        "--hf-max-uptime=MIN HFBUDGET_MAX_UPTIME hf_max_uptime",
        "minutes after which the run's endpoints are paused, even if tests are still running",
    )
    idle_timeout = Guard[int](
        15,
        values.minutes,
        "--hf-idle-timeout=MIN HFBUDGET_IDLE_TIMEOUT hf_idle_timeout",
        "idle minutes after which the server itself scales a leased endpoint to zero (15)",
    )
    billing_minute = Setting[float](
        60.0,
        values.seconds,
        "HFBUDGET_BILLING_MINUTE hf_billing_minute",
        "seconds in a billed minute (60); only a rehearsal has another",
    )
    session_header = Setting[str](
        "on",
        values.one_of(("on", "off")),
        "HFBUDGET_SESSION_HEADER hf_session_header",
        "whether calls carry X-HF-Session-id, so that `hfbudget bill` can find the bill of the "
        "run: on (default), off",
    )
    hub = Setting[str | None](None, str, "", "")  # base URL of the Hub; only a rehearsal sets it
    session_id = Setting[str]("", str, "", "")  # inference session of the run; empty for none

    def __init__(self, **values: Any) -> None:
        if unknown := values.keys() - DEFAULTS.keys():
            raise TypeError(f"unknown settings: {', '.join(sorted(unknown))}")
        self.by_name: Mapping[str, Any] = {**DEFAULTS, **values}

    def replaced(self, **changes: Any) -> Settings:
        """A copy with other values for some settings."""
        return Settings(**{**self.by_name, **changes})

    @property
    def capped(self) -> bool:
        """Whether every call of the run is under some cap."""
        return self.session_cap is not None or self.test_cap is not None or self.capped_over_runs

    @property
    def capped_over_runs(self) -> bool:
        """Whether this run shares a cap with other runs."""
        of_run = None if self.shared is None else self.session_cap
        caps = (of_run, self.daily_cap, self.weekly_cap, self.monthly_cap)
        return any(cap is not None for cap in caps)

    @property
    def own_cap(self) -> int | None:
        """The session cap, if no other job shares it, in nano-USD; else None."""
        return None if self.shared is not None else self.session_cap

    @property
    def worth_a_header(self) -> bool:
        """Whether pytest's header shows these settings."""
        return self.capped or bool(self.endpoints or self.emulator)


_ENTRIES = {k: each for k, each in vars(Settings).items() if isinstance(each, Setting)}
DEFAULTS = {key: each.default for key, each in _ENTRIES.items()}
# The settings that a user can give.
SETTINGS: dict[str, Setting[Any]] = {key: each for key, each in _ENTRIES.items() if each.variable}
VARIABLES = {each.variable for each in SETTINGS.values()}
VARIABLES |= {STATE_DIR, CACHE_DIR, LEDGER, WORKERS, SHARED_PASSWORD}
INI_KEYS = {each.ini for each in SETTINGS.values() if each.ini}


def merge(
    options: Mapping[str, Any],
    environ: Mapping[str, str],
    ini: Callable[[str], Any],
    *,
    only: Collection[str] = tuple(SETTINGS),
) -> Settings:
    """The settings of a run. The command line wins over the environment, and that over the ini.

    Args:
        options: the values of the command line, by the attribute of the setting.
        environ: the environment variables.
        ini: returns the value of an ini key.
        only: the attributes of the settings to read; the others keep their defaults.

    Raises:
        ConfigError: a value is invalid; the message has the name under which it was given.
    """
    for name in (STATE_DIR, CACHE_DIR):
        folder = environ.get(name)
        if folder and not os.path.isabs(folder):
            raise ConfigError(f"{name}={folder}: write an absolute path; tests may change folders")
        if name == STATE_DIR and folder is not None and not folder.strip():
            raise _empty(name)
    found = {key: _find(SETTINGS[key], options.get(key), environ, ini) for key in only}
    return Settings(
        **{key: _parse(SETTINGS[key], *each) for key, each in found.items() if each is not None}
    )


def _find(
    setting: Setting[Any], option: Any, environ: Mapping[str, str], ini: Callable[[str], Any]
) -> tuple[str, Any] | None:
    """The name under which a setting is given, and its value; None if it is not given.

    Raises:
        ConfigError: the setting guards money, and its value is empty.
    """
    if setting.option and option not in (None, [], ()):
        given = setting.option, option
        return None if _is_empty(setting, *given) else given
    in_ini = ini(setting.ini) if setting.ini else None
    for name, value in ((setting.variable, environ.get(setting.variable)), (setting.ini, in_ini)):
        if value not in (None, [], ()) and not _is_empty(setting, name, value):
            return name, value
    return None


def _is_empty(setting: Setting[Any], name: str, value: Any) -> bool:
    empty = isinstance(value, str) and not value.strip()
    if empty and setting.guards_money:
        raise _empty(name)
    return empty


def _empty(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is empty. Without its value a run could spend more than you allow: "
        f"write one, or remove {name}."
    )


def _parse(setting: Setting[Any], name: str, value: Any) -> Any:
    try:
        parsed = setting.parse(value)
        if setting is SETTINGS["shared"] and name != setting.variable:
            values.refuse_password(value)
    except ValueError as error:
        from pytest_hfbudget.text import public_value  # few values are wrong

        shown = public_value(value if isinstance(value, str) else " ".join(map(str, value)))
        raise ConfigError(" ".join(f"{name}={shown}: {error}".split())) from None
    return parsed
