"""The commands read the ini file, the options and the environment that pytest reads."""

from __future__ import annotations

import pytest
from command_line import Shell

TOML_TABLE = pytest.mark.skipif(
    int(pytest.__version__.partition(".")[0]) < 9, reason="this pytest does not read [tool.pytest]"
)
INI_FILES = [
    ("pytest.ini", "[pytest]\nhf_namespace = acme\n"),
    pytest.param("tox.ini", "[pytest]\nhf_namespace = acme\n", marks=pytest.mark.slow),
    pytest.param("setup.cfg", "[tool:pytest]\nhf_namespace = acme\n", marks=pytest.mark.slow),
    ("pyproject.toml", '[tool.pytest.ini_options]\nhf_namespace = "acme"\n'),
    pytest.param("pyproject.toml", '[tool.pytest]\nhf_namespace = "acme"\n', marks=TOML_TABLE),
    pytest.param("pytest.toml", '[pytest]\nhf_namespace = "acme"\n', marks=TOML_TABLE),
    ("pytest.ini", "[pytest]\naddopts = -ra -p no:cacheprovider --hf-namespace acme -n 4\n"),
    ("pytest.ini", "[pytest]\naddopts = -o hf_namespace=acme\n"),
]


def write(hfbudget: Shell, name: str, text: str) -> None:
    (hfbudget.directory / name).write_text(text)


@pytest.mark.parametrize(("name", "text"), INI_FILES)
def test_any_ini_file_of_pytest_counts(hfbudget: Shell, name: str, text: str) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    write(hfbudget, name, text)
    below = hfbudget.directory / "tests"
    below.mkdir()
    hfbudget.directory = below
    assert "acme/llm" in hfbudget("status").stdout


def test_a_pytest_ini_hides_a_pyproject_as_it_does_from_pytest(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    write(hfbudget, "pytest.ini", "[pytest]\nhf_namespace = acme\n")
    write(hfbudget, "pyproject.toml", '[tool.pytest.ini_options]\nhf_namespace = "globex"\n')
    assert "acme/llm" in hfbudget("status").stdout


@pytest.mark.parametrize(
    "addopts",
    ["--hf-namespace=acme", "-c other.ini", "-o hf_namespace=acme", "--rootdir . -c other.ini"],
)
def test_options_in_the_environment_count(hfbudget: Shell, addopts: str) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    write(hfbudget, "pytest.ini", "[pytest]\nhf_namespace = globex\n")
    write(hfbudget, "other.ini", "[pytest]\nhf_namespace = acme\n")
    assert "acme/llm" in hfbudget("status", PYTEST_ADDOPTS=addopts).stdout


def test_the_environment_beats_the_ini_and_an_option_the_environment(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    write(hfbudget, "pytest.ini", "[pytest]\nhf_namespace = initech\n")
    assert "acme/llm" in hfbudget("status", HFBUDGET_NAMESPACE="acme").stdout
    done = hfbudget("status", HFBUDGET_NAMESPACE="globex", PYTEST_ADDOPTS="--hf-namespace acme")
    assert "acme/llm" in done.stdout


def test_prices_are_looked_up_in_pytests_root_directory(hfbudget: Shell) -> None:
    write(hfbudget, "pytest.ini", "[pytest]\naddopts = --hf-prices=prices.toml\n")
    write(hfbudget, "prices.toml", '["org/model"]\ncall = 1\n')
    write(hfbudget, "pyproject.toml", '[tool.hfbudget.prices]\n"org/other" = { call = 2 }\n')
    below = hfbudget.directory / "package"
    below.mkdir()
    (below / "pyproject.toml").write_text('[project]\nname = "x"\n')
    hfbudget.directory = below.parent
    assert 'prices.toml: ["org/model"]' in hfbudget("prices", "org/model").stdout
    assert 'pyproject.toml: ["org/other"]' in hfbudget("prices", "org/other").stdout


def test_a_forecast_without_names_is_of_the_configured_endpoints(hfbudget: Shell) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    write(hfbudget, "pytest.ini", "[pytest]\nhf_endpoints = acme/llm\n")
    assert "acme/llm" in hfbudget("forecast").stdout
    assert "acme/llm" not in hfbudget("forecast", "--rate", "1").stdout


def test_a_report_is_that_of_the_ini_file(hfbudget: Shell) -> None:
    write(hfbudget, "pytest.ini", "[pytest]\nhf_report = costs.json\n")
    done = hfbudget("report")
    assert "costs.json" in done.stderr


def test_an_empty_log_says_that_none_is_kept(hfbudget: Shell) -> None:
    write(hfbudget, "pytest.ini", "[pytest]\nhf_log_days = 0\n")
    assert "no usage log is kept" in hfbudget("log").stdout


# --- a rehearsal


@pytest.fixture
def rehearsal(hfbudget: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The environment of a rehearsal against an emulator; no other address leads there."""
    monkeypatch.delenv("HFBUDGET_ENDPOINTS_API")
    monkeypatch.setenv("HFBUDGET_EMULATOR", hfbudget.hub.url)
    monkeypatch.delenv("HF_TOKEN")
    hfbudget.hub.add_endpoint("acme/llm")
    return hfbudget


def test_in_a_rehearsal_the_commands_ask_the_emulator(rehearsal: Shell) -> None:
    assert "acme/llm" in rehearsal("status", "acme").stdout
    assert "acme/llm" in rehearsal("forecast", "--endpoint", "acme/llm").stdout
    told = rehearsal.json("prices", "--refresh")
    assert told["refreshed"]["error"] is None
    assert len(rehearsal.hub.log(kind="request", phase="arrived", op="models")) == 1


@pytest.mark.parametrize(
    "command",
    [
        ("status", "acme"),
        ("forecast", "--endpoint", "acme/llm"),
        ("prices",),
        ("pause", "acme/llm"),
        ("sweep", "acme"),
        ("run", "--endpoint", "acme/llm", "--", "true"),
    ],
    ids=lambda command: command[0],
)
def test_an_emulator_of_the_runs_own_is_none_for_a_command(
    rehearsal: Shell, command: tuple[str, ...]
) -> None:
    done = rehearsal(*command, HFBUDGET_EMULATOR="1")
    assert done.returncode == 2
    assert "Give a command the URL of one that runs" in done.stderr


def test_the_usage_log_needs_no_emulator(rehearsal: Shell) -> None:
    assert rehearsal("log", HFBUDGET_EMULATOR="1").returncode == 0


# --- what is wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [("status", "acme"), ("forecast", "--endpoint", "acme/llm"), ("prices",), ("log",)],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HFBUDGET_SESION", "1", "did you mean HFBUDGET_SESSION?"),
        ("HFBUDGET_SESSION", "", "HFBUDGET_SESSION is empty"),
        ("HFBUDGET_TEST", "much", "HFBUDGET_TEST=much: "),
        ("PYTEST_ADDOPTS", "--hf-session-budget", "expected one argument"),
        ("PYTEST_ADDOPTS", "-c nowhere.ini", "nowhere.ini"),
        ("PYTEST_ADDOPTS", "'", "No closing quotation"),
    ],
)
def test_what_ends_a_run_of_pytest_ends_a_command(
    hfbudget: Shell, command: tuple[str, ...], name: str, value: str, says: str
) -> None:
    hfbudget.hub.add_endpoint("acme/llm")
    done = hfbudget(*command, **{name: value})
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_ini_key_that_no_setting_has_may_be_a_plugins_and_is_a_warning(
    hfbudget: Shell,
) -> None:
    write(hfbudget, "pytest.ini", "[pytest]\nhf_sesion_budget = 1\n")
    done = hfbudget("log")
    assert done.returncode == 0
    assert done.stderr.startswith("Warning: unknown ini setting hf_sesion_budget: did you mean")


@pytest.mark.parametrize(
    ("name", "value"),
    [("HFBUDGET_SESION", "1"), ("HFBUDGET_SESSION", ""), ("PYTEST_ADDOPTS", "-c nowhere.ini")],
)
def test_what_is_wrong_with_a_cap_leaves_no_endpoint_running(
    hfbudget: Shell, name: str, value: str
) -> None:
    for endpoint in ("acme/llm", "acme/other"):
        hfbudget.hub.add_endpoint(endpoint, state="running")
    hfbudget.dead_lease("acme/other")
    paused = hfbudget("pause", "acme/llm", **{name: value})
    swept = hfbudget("sweep", "acme", **{name: value})
    assert (paused.returncode, swept.returncode) == (0, 0)
    assert hfbudget.states == {"acme/llm": "paused", "acme/other": "paused"}
    for done in (paused, swept):
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("Warning: ")]
        assert (value if name == "PYTEST_ADDOPTS" else name).split()[-1] in line
