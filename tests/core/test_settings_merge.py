"""Settings: command line over environment over ini, and one line about what makes no sense."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.settings import DEFAULTS, SETTINGS, Settings, merge
from pytest_hfbudget.values import full_name

# For each setting three values as they are written, and what each of them means.
VALUES: dict[str, tuple[tuple[Any, Any], ...]] = {
    "session_cap": (("1", 10**9), ("0.5", 5 * 10**8), ("0.25", 25 * 10**7)),
    "test_cap": (("0", 0), ("0.000000001", 1), ("2", 2 * 10**9)),
    "session_header": (("on", "on"), ("off", "off"), ("off", "off")),
    "on_exhausted": (("skip", "skip"), ("stop", "stop"), ("fail", "fail")),
    "daily_cap": (("5", 5 * 10**9), ("0", 0), ("0.1", 10**8)),
    "weekly_cap": (("5", 5 * 10**9), ("0", 0), ("0.1", 10**8)),
    "monthly_cap": (("5", 5 * 10**9), ("0", 0), ("0.1", 10**8)),
    "shared": (
        ("redis://host", "redis://host"),
        ("rediss://user@host:6380/2", "rediss://user@host:6380/2"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ),
    "shared_run": (("a", "a"), (" 42 ", "42"), ("org/repo-7.1", "org/repo-7.1")),
    "shared_expiry": (("1", 1.0), ("30", 30.0), ("0.5", 0.5)),
    "adopt": (("pause", "pause"), ("report", "report"), ("off", "off")),
    "endpoint_gaps": (("keep", "keep"), ("pause", "pause"), ("keep", "keep")),
    "order": (("cost", "cost"), ("collected", "collected"), ("cost", "cost")),
    "tokenizer": (("cached", "cached"), ("download", "download"), ("off", "off")),
    "image_tokens": (("1", 1), ("256", 256), ("20000", 20000)),
    "project": (("", ""), ("mine", "mine"), ("ours", "ours")),
    "log_days": (("", 0), ("0", 0), ("30", 30)),
    "prices": (("a.toml", Path("a.toml")), ("b.toml", Path("b.toml")), ("c", Path("c"))),
    "unpriced": (("refuse", "refuse"), ("free", "free"), ("assume:1/4", "assume:1/4")),
    "endpoints": (
        (["a/b", "c/d"], ("a/b", "c/d")),
        ("e/f,g/h i/j", ("e/f", "g/h", "i/j")),
        (["k/l", "k/l"], ("k/l",)),
    ),
    "namespace": (("acme", "acme"), ("globex", "globex"), ("initech", "initech")),
    "report": (("a.json", Path("a.json")), ("b", Path("b")), ("c", Path("c"))),
    "costs": (("a.json", Path("a.json")), ("b", Path("b")), ("c", Path("c"))),
    "store_costs": (("1", True), ("yes", True), ("", False)),
    "plan": (("1", True), ("TRUE", True), ("", False)),
    "plan_gate": (("stop", "stop"), ("off", "off"), ("warn", "warn")),
    "max_increase": (
        ("20%", Fraction(1, 5)),
        ("0%", Fraction(0)),
        ("12.5 %", Fraction(1, 8)),
    ),
    "emulator": (("start", "start"), ("http://x:1", "http://x:1"), ("start", "start")),
    "endpoints_api": (("", ""), ("http://b/v2/", "http://b/v2"), ("http://c", "http://c")),
    "router": (("", ""), ("https://b/", "https://b"), ("https://c", "https://c")),
    "paid_hosts": (
        ("", ()),
        (
            "api.example.com, http://localhost:8000/v1",
            ("api.example.com", "http://localhost:8000/v1"),
        ),
        (["127.0.0.1:8000"], ("127.0.0.1:8000",)),
    ),
    "hold_wait": (("", 0), ("0", 0.0), ("1.5", 1.5)),
    "endpoint_wait": (("", 0), ("30", 30.0), ("1.5", 1.5)),
    "endpoint_looks": (("", 0), ("0", ()), ("90, 5.5", (5.5, 90.0))),
    "cold_start": (("", 0), ("0", 0.0), ("90.5", 90.5)),
    "max_uptime": (("0.5", 30.0), ("30", 1800.0), ("60", 3600.0)),
    "idle_timeout": (("20", 20), ("30", 30), ("60", 60)),
    "billing_minute": (("", 0), ("0.5", 0.5), ("60", 60.0)),
}
WITH_OPTION = [key for key, setting in SETTINGS.items() if setting.option]
WITH_INI = [key for key, setting in SETTINGS.items() if setting.ini]

BAD = [
    ("session_cap", "a lot"),
    ("session_cap", "nan"),
    ("test_cap", "-1"),
    ("test_cap", "inf"),
    ("on_exhausted", "pass"),
    ("store_costs", "maybe"),
    ("plan", "2"),
    ("plan_gate", "refuse"),
    ("order", "random"),
    ("endpoint_gaps", "stop"),
    ("adopt", "keep"),
    ("max_increase", "0.2"),
    ("max_increase", "-20%"),
    ("max_increase", "nan%"),
    ("max_increase", "inf%"),
    ("max_increase", "1e3%"),
    ("max_increase", "%"),
    ("max_increase", ".%"),
    ("cold_start", "nan"),
    ("cold_start", "-1"),
    ("unpriced", "assume"),
    ("unpriced", "assume:1"),
    ("unpriced", "assume:1/x"),
    ("unpriced", "assume:1/2/3"),
    ("unpriced", "assume:-1/4"),
    ("unpriced", "maybe"),
    ("unpriced", "some\nlines\nof text"),
    ("endpoints_api", "api.example.org"),
    ("router", "ftp://example.org"),
    ("emulator", "maybe"),
    ("paid_hosts", "ftp://example.org"),
    ("paid_hosts", "*.example.org"),
    ("paid_hosts", "example.org:http"),
    ("paid_hosts", "/v1"),
    ("hold_wait", "-1"),
    ("hold_wait", "nan"),
    ("hold_wait", "inf"),
    ("hold_wait", "a while"),
    ("endpoint_wait", "soon"),
    ("endpoint_wait", "0"),
    ("endpoint_wait", "nan"),
    ("endpoint_wait", "inf"),
    ("endpoint_looks", "later"),
    ("endpoint_looks", "-1"),
    ("endpoint_looks", "30 nan"),
    ("endpoint_looks", "1e9"),
    ("endpoint_looks", ","),
    ("idle_timeout", "1.5"),
    ("idle_timeout", "0"),
    ("max_uptime", "0"),
    ("max_uptime", "long"),
    ("billing_minute", "-60"),
    ("daily_cap", "much"),
    ("weekly_cap", "-1"),
    ("monthly_cap", "nan"),
    ("log_days", "-1"),
    ("log_days", "a week"),
    ("image_tokens", "0"),
    ("image_tokens", "some"),
    ("image_tokens", "inf"),
]
BAD_PLACES = [
    (key, value, place)
    for key, value in BAD
    for place in ("option", "variable", "ini")
    if getattr(SETTINGS[key], place)
]

PLACES = [
    (key, place)
    for key in SETTINGS
    for place in ("option", "variable", "ini")
    if getattr(SETTINGS[key], place)
]
URLS = ("shared", "paid_hosts", "router", "endpoints_api", "emulator")
GUARDS = {key for key, setting in SETTINGS.items() if setting.guards_money}


def merged(
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    ini: Mapping[str, Any] | None = None,
) -> Settings:
    return merge(options or {}, environ or {}, (ini or {}).get)


def given(key: str, *, option: bool, variable: bool, ini: bool) -> Settings:
    """The settings when one of them is given in these places, with another value in each."""
    setting, values = SETTINGS[key], VALUES[key]
    return merged(
        {key: values[0][0]} if option else {},
        {setting.variable: values[1][0]} if variable else {},
        {setting.ini: values[2][0]} if ini else {},
    )


def given_in(place: str, key: str, value: str | list[str]) -> Settings:
    """The settings when one of them is given in one place."""
    if place == "option":
        return merged({key: value})
    name = getattr(SETTINGS[key], place)
    if place == "variable":
        assert isinstance(value, str)
        return merged({}, {name: value})
    return merged({}, {}, {name: value})


def test_every_setting_is_tested_here() -> None:
    assert set(VALUES) == set(SETTINGS)


@pytest.mark.parametrize("key", WITH_OPTION)
def test_the_command_line_beats_environment_and_ini(key: str) -> None:
    settings = given(key, option=True, variable=True, ini=bool(SETTINGS[key].ini))
    assert settings.by_name == {**DEFAULTS, key: VALUES[key][0][1]}


@pytest.mark.parametrize("key", SETTINGS)
def test_the_environment_beats_the_ini(key: str) -> None:
    settings = given(key, option=False, variable=True, ini=bool(SETTINGS[key].ini))
    assert settings.by_name == {**DEFAULTS, key: VALUES[key][1][1]}


@pytest.mark.parametrize("key", WITH_INI)
def test_the_ini_counts_where_nothing_else_is_said(key: str) -> None:
    settings = given(key, option=False, variable=False, ini=True)
    assert settings.by_name == {**DEFAULTS, key: VALUES[key][2][1]}


@pytest.mark.parametrize("absent", [None, [], ()])
def test_what_is_absent_is_not_said(absent: object) -> None:
    names = {setting.ini: absent for setting in SETTINGS.values()}
    assert merged(dict.fromkeys(WITH_OPTION, absent), {}, names).by_name == DEFAULTS


@pytest.mark.parametrize(("key", "place"), PLACES)
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_value_is_an_error_where_it_guards_money_and_else_not_said(
    key: str, place: str, empty: str
) -> None:
    if key not in GUARDS:
        assert given_in(place, key, empty).by_name == DEFAULTS
        return
    with pytest.raises(ConfigError) as caught:
        given_in(place, key, empty)
    name = getattr(SETTINGS[key], place)
    assert str(caught.value) == (
        f"{name} is empty. Without its value a run could spend more than you allow: "
        f"write one, or remove {name}."
    )


def test_every_cap_guards_money() -> None:
    caps = {key for key in SETTINGS if key.endswith("_cap")}
    assert caps < GUARDS
    assert {"max_uptime", "max_increase", "emulator", "plan"} < GUARDS


def test_an_empty_cap_in_the_environment_is_an_error_though_the_ini_has_one() -> None:
    with pytest.raises(ConfigError, match="HFBUDGET_SESSION is empty"):
        merged({}, {"HFBUDGET_SESSION": ""}, {"hf_session_budget": "1"})


def test_an_empty_cap_does_not_override_a_committed_one() -> None:
    with pytest.raises(ConfigError, match="--hf-session-budget is empty"):
        merged({"session_cap": ""}, {}, {"hf_session_budget": "1"})


def test_what_a_stronger_place_says_is_enough() -> None:
    assert merged({"session_cap": "1"}, {"HFBUDGET_SESSION": ""}).session_cap == 10**9


def test_an_empty_variable_that_guards_nothing_does_not_hide_the_ini() -> None:
    environ, ini = {"HFBUDGET_NAMESPACE": ""}, {"hf_namespace": "acme"}
    assert merged({}, environ, ini).namespace == "acme"


def test_an_empty_folder_for_the_budgets_over_many_runs_is_an_error() -> None:
    with pytest.raises(ConfigError, match="HFBUDGET_STATE_DIR is empty"):
        merged({}, {"HFBUDGET_STATE_DIR": ""})


@pytest.mark.parametrize(("word", "means"), [("1", "start"), ("yes", "start"), ("0", None)])
def test_a_rehearsal_can_be_switched_on_and_off_by_a_word(word: str, means: str | None) -> None:
    assert merged({}, {"HFBUDGET_EMULATOR": word}).emulator == means


def test_a_cap_of_nothing_is_a_cap() -> None:
    assert merged({"session_cap": "0"}).capped


@pytest.mark.parametrize("key", ["session_cap", "test_cap"])
def test_a_run_with_either_cap_is_capped(key: str) -> None:
    assert merged({key: "1"}).capped


def test_a_run_of_which_nothing_was_asked_is_quiet() -> None:
    assert not Settings().capped
    assert not Settings().worth_a_header


@pytest.mark.parametrize("key", ["session_cap", "endpoints", "emulator"])
def test_a_run_says_what_it_was_asked_for(key: str) -> None:
    assert given(key, option=True, variable=False, ini=False).worth_a_header


@pytest.mark.parametrize(("key", "value", "place"), BAD_PLACES)
def test_a_wrong_value_is_one_line_that_names_where_it_was_given(
    key: str, value: str, place: str
) -> None:
    name = getattr(SETTINGS[key], place)
    places: dict[str, tuple[Any, ...]] = {
        "option": ({key: value},),
        "variable": ({}, {name: value}),
        "ini": ({}, {}, {name: value}),
    }
    with pytest.raises(ConfigError) as caught:
        merged(*places[place])
    message = str(caught.value)
    assert message.startswith(f"{name}={value.split(maxsplit=1)[0]}")
    assert len(message.splitlines()) == 1


# Each has the password ``secret``, or one that begins with ``sec``.
WITH_PASSWORD = (
    "ftp://me:secret@host",
    "ftp://host?password=secret",
    "me:secret@host:port",
    "http://a https://me:secret@b:port",
    "https://me:sec ret@host",
    "https://me:sec,ret@host:port",
    "https://me:sec/ret@host",
    "redis://me:sec/ret@host",
    "https://me:sec\N{ACCOUNT OF}ret@host",
    "redis://me:sec\N{ACCOUNT OF}ret@host",
)


@pytest.mark.parametrize("value", WITH_PASSWORD)
@pytest.mark.parametrize(("key", "place"), [each for each in PLACES if each[0] in URLS])
def test_no_error_repeats_a_password(key: str, place: str, value: str) -> None:
    setting = SETTINGS[key]
    written = value.split() if place != "variable" and setting.repeatable else value
    with pytest.raises(ConfigError) as caught:
        given_in(place, key, written)
    assert "sec" not in str(caught.value)


def test_a_url_whose_scheme_was_forgotten_is_shown_without_its_password() -> None:
    with pytest.raises(ConfigError, match=r"^HFBUDGET_SHARED=\*\*\*@host:6379: write redis://HOST"):
        merged({}, {"HFBUDGET_SHARED": "me:secret@host:6379"})


def test_a_list_of_hosts_names_the_one_that_is_none() -> None:
    with pytest.raises(ConfigError, match=r"^hf_paid_hosts=a b:x: b:x is not a host; write "):
        merged({}, {}, {"hf_paid_hosts": ["a", "b:x"]})


@pytest.mark.parametrize(("key", "value"), [("idle_timeout", "1.5"), ("endpoint_wait", "soon")])
def test_a_wrong_number_is_answered_with_what_to_write(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match="write a"):
        merged({}, {SETTINGS[key].variable: value})


def test_settings_do_not_change_and_a_copy_may_differ() -> None:
    settings = Settings(namespace="acme")
    with pytest.raises(AttributeError, match="namespace can't be set"):
        settings.namespace = "globex"  # type: ignore[assignment]
    assert settings.replaced(namespace="globex").namespace == "globex"
    assert settings.namespace == "acme"


def test_a_setting_that_does_not_exist_can_not_be_given() -> None:
    with pytest.raises(TypeError, match="unknown settings: sesion_cap"):
        Settings(sesion_cap=1)


def test_a_full_name_stays_as_it_is() -> None:
    assert full_name(" acme/llm ", "globex") == "acme/llm"


def test_a_short_name_gets_the_namespace() -> None:
    assert full_name("llm", "acme") == "acme/llm"


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("llm", None),
        ("llm", ""),
        ("", "acme"),
        (" ", "acme"),
        ("/llm", "acme"),
        ("acme/", None),
        ("a/b/c", None),
        ("llm", "acme/"),
        ("llm", "acme/team"),
    ],
)
def test_what_is_no_name_is_answered_with_what_to_write(name: str, namespace: str | None) -> None:
    with pytest.raises(ConfigError, match=r"^endpoint '.*': write namespace/name, or give .*$"):
        full_name(name, namespace)
