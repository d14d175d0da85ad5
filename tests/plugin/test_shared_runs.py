"""Jobs of one run on machines of their own, with one cap over all; the invoice decides."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lean_pytest import lean
from plugin_suite import Suite
from redis_server import RedisServer, free_port, redis_server

__all__ = ["redis_server"]

CI = Path(__file__).resolve().parents[2] / "docs" / "ci"
ONE = "def test_it():\n    call()\n"
MANY = """
    @pytest.mark.parametrize("n", range(20))
    def test_it(n):
        call()
"""
CAP = 40_000  # nano-USD: a call costs 1,500 and holds 20,250 while it is in flight


@dataclass
class Machines:
    """Machines with nothing in common but the server; each job runs on one of its own."""

    suite: Suite
    server: RedisServer
    homes: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *options: str, run: str = "run", **environ: str) -> subprocess.Popen[str]:
        """Start a job on another machine."""
        home = self.homes / f"machine{len(self.started)}"
        home.mkdir(parents=True)
        environment = {
            **os.environ,
            "HOME": str(home),
            "HFBUDGET_STATE_DIR": str(home / "state"),
            "HFBUDGET_CACHE_DIR": str(home / "cache"),
            "HFBUDGET_SHARED": self.server.url,
            "HFBUDGET_SHARED_RUN": run,
            **lean(options),
            **environ,
        }
        options = ("-q", "-p", "no:cacheprovider", *options)
        job = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options],
            cwd=self.suite.path,
            env={name: value for name, value in environment.items() if value},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(job)
        return job

    def shell(self, line: str, **environ: str) -> subprocess.Popen[str]:
        """Start a line of a recipe on another machine, as the shell of a CI does."""
        home = self.homes / f"machine{len(self.started)}"
        home.mkdir(parents=True)
        paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        mine = {"HOME": str(home), "HFBUDGET_STATE_DIR": str(home / "state"), "PATH": paths}
        job = subprocess.Popen(
            ["bash", "-e", "-c", line],
            cwd=self.suite.path,
            env={**os.environ, **mine, "HFBUDGET_CACHE_DIR": str(home / "cache"), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(job)
        return job

    def wait_for(self, sign: str) -> None:
        """Wait until a test of a job has written this file."""
        ends = time.monotonic() + 60
        while not (self.suite.path / sign).exists():
            assert time.monotonic() < ends, sign
            threading.Event().wait(0.05)

    @property
    def booked(self) -> int:
        """What the ended jobs have booked to the budget that they share, in nano-USD."""
        return int(self.server.client().hget("hfbudget:run:run:budget", "ended"))

    def run(self, *options: str, **more: str) -> tuple[int, str]:
        """What a job of its own says, once it is over; and its exit code."""
        job = self.start(*options, **more)
        said = job.communicate(timeout=120)[0]
        return job.returncode, said


@pytest.fixture
def machines(real: Suite, redis_server: RedisServer, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(real, redis_server, tmp_path / "homes")
    yield made
    for job in made.started:
        job.kill()
        job.communicate()


def test_jobs_on_many_machines_stay_below_one_session_budget(machines: Machines) -> None:
    machines.suite.test_file(MANY)
    jobs = [machines.start("--hf-session-budget=0.00004", "--tb=line") for _ in range(3)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert 0 < machines.suite.billed <= CAP
    assert CAP - machines.suite.billed <= 20_250, said
    assert all("session budget of all jobs" in text for text in said), said


def test_the_header_says_what_is_left_of_the_shared_cap_and_how_many_share_it(
    machines: Machines,
) -> None:
    machines.suite.test_file(ONE)
    assert machines.run("--hf-session-budget=1")[0] == 0
    _, said = machines.run("--hf-session-budget=1", "-v", "--hf-report=report.json")
    (told,) = machines.suite.report()["over_runs"]
    assert told == {
        "name": "session budget of all jobs",
        "cap_usd": "1",
        "spent_usd": "0.000003",
        "jobs": 1,
    }
    assert "hfbudget: session budget of all jobs $1.00 ($0.999999 left, 1 job shares it)" in said
    assert "  session budget of all jobs $1.00 ($0.999997 left, 1 job shares it)" in said


def test_another_run_has_a_cap_of_its_own(machines: Machines) -> None:
    machines.suite.test_file(ONE)
    assert machines.run("--hf-session-budget=0.000021")[0] == 0
    _, said = machines.run("--hf-session-budget=0.000021")
    assert "1 test not run: the session budget of all jobs has too little left" in said
    assert machines.run("--hf-session-budget=0.000021", run="another")[0] == 0
    assert machines.suite.sent == 2


def test_a_daily_budget_is_one_for_all_machines_of_a_project(machines: Machines) -> None:
    machines.suite.test_file(ONE)
    mine = {"HFBUDGET_PROJECT": "mine"}
    assert machines.run("--hf-daily-budget=0.000021", run="1", **mine)[0] == 0
    _, said = machines.run("--hf-daily-budget=0.000021", run="2", **mine)
    assert "1 test not run: the daily budget has too little left" in said
    assert machines.run("--hf-daily-budget=0.000021", run="3", HFBUDGET_PROJECT="other")[0] == 0


@pytest.mark.slow
def test_workers_of_a_job_spend_from_its_advance(machines: Machines) -> None:
    pytest.importorskip("xdist")
    machines.suite.test_file(MANY)
    jobs = [machines.start("--hf-session-budget=0.00004", "-n2") for _ in range(2)]
    for job in jobs:
        job.communicate(timeout=120)
    assert CAP - 20_250 <= machines.suite.billed <= CAP


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"HFBUDGET_SHARED_RUN": ""}, "which run does this job belong to? Set HFBUDGET_SHARED_RUN"),
        ({"HFBUDGET_SHARED": "http://host"}, "HFBUDGET_SHARED=http://host: write redis://HOST"),
        ({"HFBUDGET_SHARED": " "}, "HFBUDGET_SHARED is empty."),
        ({"HFBUDGET_SHARED": "redis://:s3cret@127.0.0.1:1"}, "the shared server redis://127.0.0.1"),
        ({"HFBUDGET_DAILY": "1"}, "Set HFBUDGET_PROJECT (or hf_project)"),
    ],
)
def test_what_is_wrong_ends_the_run_with_one_line_before_any_test(
    machines: Machines, environ: dict[str, str], says: str
) -> None:
    machines.suite.test_file(ONE)
    run = environ.pop("HFBUDGET_SHARED_RUN", "run")
    ended, said = machines.run("--hf-session-budget=1", run=run, **environ)
    assert (ended, machines.suite.sent) == (pytest.ExitCode.USAGE_ERROR, 0)
    assert says in said
    assert "s3cret" not in said


def test_a_password_in_an_argument_is_refused_without_repeating_it(machines: Machines) -> None:
    machines.suite.test_file(ONE)
    ended, said = machines.run("--hf-shared=redis://:s3cret@127.0.0.1:6379/0")
    assert ended == pytest.ExitCode.USAGE_ERROR
    assert "--hf-shared=redis://127.0.0.1:6379/0: its password can be read here" in said
    assert "s3cret" not in said


def test_without_the_option_nothing_of_it_is_imported(machines: Machines) -> None:
    machines.suite.test_file("""
        import sys

        def test_it():
            call()
            assert not [name for name in sys.modules if name.partition(".")[0] == "redis"]
            assert "pytest_hfbudget.shared" not in sys.modules
    """)
    given = {"HFBUDGET_SHARED": "", "HFBUDGET_SHARED_RUN": ""}
    ended, said = machines.run("--hf-session-budget=1", "--hf-daily-budget=1", run="", **given)
    assert ended == 0, said


@pytest.fixture
def secured(machines: Machines, tmp_path: Path) -> dict[str, str]:
    """What reaches the server over TLS, with a password."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    made = ["openssl", *words.split(), *names, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    server, port = machines.server, free_port()
    server.close()
    server.options = (
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--tls-key-file", str(key)),
        *("--tls-cert-file", str(certificate), "--tls-ca-cert-file", str(certificate)),
    )
    server.start()
    server.client().config_set("requirepass", "s3cret")
    return {
        "HFBUDGET_SHARED": f"rediss://localhost:{port}/0",
        "HFBUDGET_SHARED_PASSWORD": "s3cret",
        "SSL_CERT_FILE": str(certificate),
    }


def processes_say(word: str) -> bool:
    """Whether an argument list on this machine has a word in it."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.slow
def test_the_matrix_of_the_github_recipe_has_one_cap_over_tls(
    machines: Machines, secured: dict[str, str]
) -> None:
    yaml = pytest.importorskip("yaml")
    jobs = yaml.safe_load((CI / "github-matrix.yml").read_text("utf-8"))["jobs"]
    steps = {step.get("name"): step.get("run") for step in jobs["paid-tests"]["steps"]}
    given = {
        "GITHUB_REPOSITORY": "org/repo",
        "GITHUB_RUN_ID": "7",
        "GITHUB_RUN_ATTEMPT": "1",
        **secured,
    }
    machines.suite.test_file(MANY)
    line = steps["Test"].replace("0.50", "0.00004")
    started = [machines.shell(line, **given) for _ in range(3)]
    machines.suite.emulator.wait_for(op="chat", phase="answered", timeout=60)
    assert not processes_say("s3cret")
    said = "".join(job.communicate(timeout=120)[0] for job in started)
    assert CAP - 20_250 <= machines.suite.billed <= CAP, said
    assert "session budget of all jobs $0.00004" in said
    assert "s3cret" not in said
    report = {step.get("name"): step.get("run") for step in jobs["report"]["steps"]}
    made = machines.shell(report["One report of all jobs"], **given)
    assert "report.html: 1 run" in made.communicate(timeout=60)[0]
    assert "s3cret" not in (machines.suite.path / "report.html").read_text()


@pytest.mark.slow
def test_the_parallel_jobs_of_the_gitlab_recipe_have_one_cap(machines: Machines) -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((CI / "gitlab-parallel.yml").read_text("utf-8"))["paid-tests"]
    line = job["script"][-1].replace("0.50", "0.00004")
    (folders,) = job["parallel"]["matrix"]
    given = {"CI_PROJECT_PATH": "org/repo", "CI_PIPELINE_ID": "7"}
    for folder in folders["FOLDER"]:
        (machines.suite.path / folder).mkdir(parents=True)
        machines.suite.test_file(MANY, f"{folder}/test_{Path(folder).name}.py")
    server = {"HFBUDGET_SHARED": machines.server.url}
    started = [machines.shell(line, FOLDER=each, **given, **server) for each in folders["FOLDER"]]
    said = "".join(job.communicate(timeout=120)[0] for job in started)
    assert CAP - 20_250 <= machines.suite.billed <= CAP, said


@pytest.mark.slow
def test_the_reports_of_all_jobs_are_one_page(machines: Machines) -> None:
    machines.suite.test_file(ONE)
    for _ in range(2):
        assert machines.run("--hf-session-budget=1")[0] == 0
    page = machines.homes / "run.html"
    given = {**os.environ, "HFBUDGET_SHARED": machines.server.url}
    words = [sys.executable, "-m", "pytest_hfbudget", "report", "--shared", "run"]
    told = subprocess.run(words, capture_output=True, text=True, env=given, check=True)
    assert "run run, " in told.stdout
    assert "(2 calls)" in told.stdout
    assert "spent <$0.0001 " in told.stdout
    subprocess.run([*words, "--html", str(page)], env=given, check=True)
    assert "test_suite.py::test_it" in page.read_text()


@pytest.mark.slow
def test_a_minute_of_a_shared_endpoint_is_booked_once_for_all_jobs(machines: Machines) -> None:
    machines.suite.emulator.add_endpoint("acme/llm")
    machines.suite.test_file("""
        import time
        from pathlib import Path

        @pytest.mark.hf_endpoint("acme/llm")
        def test_that_meets_the_others():
            Path(f"here-{os.getpid()}").touch()
            while len(list(Path(".").glob("here-*"))) < 3:
                time.sleep(0.05)
    """)
    jobs = [machines.start("--hf-session-budget=1", HF_TOKEN="hf_of_this_test") for _ in range(3)]
    said = [job.communicate(timeout=120)[0] for job in jobs]
    assert all(job.returncode == 0 for job in jobs), said
    asked = [len(machines.suite.requests(op)) for op in ("resume", "pause")]
    assert asked == [1, 1]
    assert machines.booked == machines.suite.emulator.invoice()["endpoints_nano_usd"] == 550_000


MINUTE_S = 2.0  # of billing, so that minutes start while one job hands over to another
MEETS = f"""
    import time
    from pathlib import Path

    def wait_for(sign):
        while not Path(sign).exists():
            time.sleep(0.05)

    def stay(minutes):
        # Until so much of a minute has passed since the endpoint began to serve.
        began = Path("began").stat().st_mtime
        time.sleep(-((time.time() - began) / {MINUTE_S} - minutes) % 1 * {MINUTE_S})
"""
SHORT = {"HF_TOKEN": "hf_of_this_test", "HFBUDGET_BILLING_MINUTE": f"{MINUTE_S}"}


@pytest.mark.slow
def test_a_job_that_takes_over_pays_for_no_minute_that_was_paid(machines: Machines) -> None:
    machines.suite.emulator.configure(billing_minute_s=MINUTE_S)
    machines.suite.emulator.add_endpoint("acme/llm")
    machines.suite.test_file(
        MEETS
        + """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_of_the_first():
        Path("began").touch()
        wait_for("second-is-there")
        stay(0.4)

    @pytest.mark.hf_endpoint("acme/llm")
    def test_of_the_second():
        Path("second-is-there").touch()
        wait_for("first-is-over")
        time.sleep(2)
        stay(0.4)
    """
    )
    first = machines.start("--hf-session-budget=1", "-k", "first", **SHORT)
    machines.wait_for("began")
    second = machines.start("--hf-session-budget=1", "-k", "second", **SHORT)
    said = [first.communicate(timeout=60)[0]]
    (machines.suite.path / "first-is-over").touch()
    said.append(second.communicate(timeout=60)[0])
    assert [first.returncode, second.returncode] == [0, 0], said
    assert machines.booked == machines.suite.emulator.invoice()["endpoints_nano_usd"], said
    assert machines.booked >= 3 * 550_000


@pytest.mark.slow
def test_each_of_two_endpoints_is_paid_for_by_the_job_that_had_it_first(
    machines: Machines,
) -> None:
    machines.suite.emulator.configure(billing_minute_s=MINUTE_S)
    for name in ("acme/llm", "acme/other"):
        machines.suite.emulator.add_endpoint(name)
    machines.suite.test_file(
        MEETS
        + """
    @pytest.mark.hf_endpoint("acme/llm")
    def test_a1():
        pass

    @pytest.mark.hf_endpoint("acme/llm")
    @pytest.mark.hf_endpoint("acme/other")
    def test_a2():
        Path("a-has-both").touch()
        time.sleep(2)
        stay(0.4)

    @pytest.mark.hf_endpoint("acme/other")
    def test_b():
        Path("began").touch()
        wait_for("a-has-both")
        stay(0.4)
    """
    )
    other = machines.start("--hf-session-budget=1", "-k", "test_b", **SHORT)
    machines.wait_for("began")
    both = machines.start("--hf-session-budget=1", "-k", "test_a", **SHORT)
    said = [job.communicate(timeout=60)[0] for job in (both, other)]
    assert [both.returncode, other.returncode] == [0, 0], said
    billed = machines.suite.emulator.invoice()["endpoints_nano_usd"]
    assert machines.booked == billed, said
