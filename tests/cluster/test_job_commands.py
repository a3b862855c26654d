"""``regrow job``: the cluster runs drivers, whatever dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TIMEOUT_S = 60.0

PROGRAM = """
import os, time, sys
import regrow as ray

@ray.remote
def step(i, trace):
    with open(trace, "a") as file: file.write(f"step {i}\\n")
    return bytes([i]) * 20_000

ray.init()
first = ray.get([step.remote(i, os.environ["TRACE"]) for i in range(20)])
print("half", flush=True)
if os.environ.get("FAIL") and not os.path.exists(os.environ["FAIL"]):
    open(os.environ["FAIL"], "w").close()
    os._exit(3)
while os.environ.get("GATE") and not os.path.exists(os.environ["GATE"]): time.sleep(0.02)
rest = ray.get([step.remote(i, os.environ["TRACE"]) for i in range(20, 40)])
print(sum(data[0] for data in first + rest), flush=True)
"""


def regrow(*arguments: str, code: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "regrow.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@pytest.fixture
def running(home: Path) -> Iterator[Path]:
    """A cluster that stays."""
    regrow("start", "--head", "--num-cpus", "2")
    yield home
    regrow("stop", "--force")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "pipeline.py"
    path.write_text(PROGRAM)
    return path


def until(what: str, home: Path, name: str = "nightly") -> None:
    """The driver has printed ``what``."""
    deadline = time.monotonic() + TIMEOUT_S
    log = home / "jobs" / f"{name}.log"
    while not log.exists() or what not in log.read_text():
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no output"
        time.sleep(0.02)


def status(name: str = "nightly") -> dict[str, object]:
    found: dict[str, object] = json.loads(regrow("job", "status", name, "--json"))
    return found


def until_ended(name: str = "nightly") -> dict[str, object]:
    deadline = time.monotonic() + TIMEOUT_S
    while (found := status(name))["supervised"] == "running":
        assert time.monotonic() < deadline
    return found


def steps(trace: Path) -> list[int]:
    return sorted(int(line.split()[1]) for line in trace.read_text().splitlines())


def submit(program: Path, *more: str, code: int = 0) -> str:
    return regrow(
        "job", "submit", "--name", "nightly", *more, "--", sys.executable, str(program), code=code
    )


def test_a_driver_that_fails_is_started_again_and_goes_on(
    running: Path, program: Path, tmp_path: Path
) -> None:
    trace, fail = tmp_path / "trace", tmp_path / "failed"
    out = submit(program, "--env", f"TRACE={trace}", "--env", f"FAIL={fail}")
    assert out.splitlines()[-1] == "780"
    assert "the driver ended with status 3, attempt 1 of 3" in out
    found = until_ended()
    assert (found["status"], found["run"], found["driver"]) == ("finished", 1, 2)
    assert (found["supervised"], found["tasks_finished"]) == ("finished", 40)
    assert "780" in regrow("job", "logs", "nightly")
    (running / "jobs" / "nightly.log").rename(tmp_path / "on another machine")
    there = f"its driver ran on node 1, on the machine {socket.gethostname()}"
    assert there in regrow("job", "logs", "nightly", code=1)
    assert "has run no driver of that name" in regrow("job", "logs", "other", code=1)
    assert "nightly" in regrow("list", "jobs")
    out = regrow("job", "delete", "nightly")
    assert "Deleted 2 run(s)" in out
    assert "there is no job" in regrow("job", "status", "nightly", code=1)
    assert regrow("sql", "select count(*) from regrow.tasks", "--json").count("0") == 1


def test_a_driver_that_fails_too_often_is_an_error_in_words(running: Path, program: Path) -> None:
    out = submit(program, "--attempts", "1", code=1)  # it lacks TRACE
    assert "the driver of job 'nightly' failed 1 times" in out
    assert until_ended()["supervised"] == "failed"
    assert "there is no program" in regrow(
        "job", "submit", "--name", "x", "--", "no-such-program", code=1
    )
    assert "no name of a job" in regrow("job", "submit", "--name", "a/b", "--", "python", code=2)


def test_a_driver_is_stopped_and_resumed(running: Path, program: Path, tmp_path: Path) -> None:
    trace, gate = tmp_path / "trace", tmp_path / "gate"
    submit(program, "--no-wait", "--env", f"TRACE={trace}", "--env", f"GATE={gate}")
    until("half", running)
    assert "runs job 'nightly' already" in submit(program, code=1)
    assert "runs" in regrow("job", "delete", "nightly", code=1)
    regrow("job", "stop", "nightly")
    assert status()["supervised"] == "finished"
    gate.touch()
    out = regrow("job", "resume", "nightly")
    assert out.splitlines()[-1] == "780"
    assert set(steps(trace)) == set(range(40))


def test_everything_is_killed_and_the_driver_goes_on_with_the_cluster(
    running: Path, program: Path, tmp_path: Path, kill_everything: Callable[[], None]
) -> None:
    trace, gate = tmp_path / "trace", tmp_path / "gate"
    submit(program, "--no-wait", "--env", f"TRACE={trace}", "--env", f"GATE={gate}")
    until("half", running)
    assert steps(trace) == list(range(20))
    kill_everything()
    gate.touch()
    regrow("start", "--head", "--num-cpus", "2")
    until("780", running)
    found = until_ended()
    assert (found["status"], found["driver"], found["supervised"]) == ("finished", 2, "finished")


KEEPER = """
import regrow as ray

@ray.remote
class Keeper:
    def keep(self, kept):
        self.kept = kept
    def mine(self):
        return self.kept

@ray.remote
def make():
    return 7

ray.init(namespace="n")
"""
MAKES = """
keeper = Keeper.options(name="keeper", lifetime="detached", max_restarts=-1).remote()
ray.get(keeper.keep.remote([make.remote()]))
"""
TAKES = """
@ray.remote
def take(refs):
    return ray.get(refs)
print(ray.get(take.remote(ray.get(ray.get_actor("keeper").mine.remote()))))
ray.kill(ray.get_actor("keeper"))
"""


def test_a_job_that_another_needs_is_not_deleted(running: Path, tmp_path: Path) -> None:
    def job(name: str, body: str) -> str:
        program = tmp_path / f"{name}.py"
        program.write_text(KEEPER + body)
        return regrow("job", "submit", "--name", name, "--", sys.executable, str(program))

    job("maker", MAKES)
    until_ended("maker")
    out = regrow("job", "delete", "maker", code=1)
    assert "job 'maker' is used by 'actor:n/keeper', which could not be recovered" in out
    out = regrow("job", "delete", "--retain", "0")
    assert "stays: it is used by 'actor:n/keeper'" in out
    assert "Deleted 1 run(s)" in out, "that of its supervisor"
    assert json.loads(regrow("job", "status", "maker", "--json"))["tasks_finished"]
    assert job("taker", TAKES).splitlines()[-1] == "[7]"
    until_ended("taker")
    logs = {name: running / "jobs" / f"{name}.log" for name in ("maker", "taker")}
    regrow("job", "delete", "taker")
    assert (logs["maker"].exists(), logs["taker"].exists()) == (True, False)
    assert "Deleted 1 run(s)" in regrow("job", "delete", "maker")
    assert not logs["maker"].exists()
    program = tmp_path / "taker.py"
    program.write_text("print('nothing', flush=True)")
    regrow("job", "submit", "--name", "taker", "--", sys.executable, str(program))
    until_ended("taker")
    assert logs["taker"].exists()
    regrow("job", "delete", "--retain", "0")
    assert not logs["taker"].exists(), "what nobody needs goes with its job"


def test_what_another_job_needs_is_deleted_with_force(running: Path, tmp_path: Path) -> None:
    program = tmp_path / "maker.py"
    program.write_text(KEEPER + MAKES)
    regrow("job", "submit", "--name", "maker", "--", sys.executable, str(program))
    until_ended("maker")
    assert "is used by" in regrow("job", "delete", "maker", code=1)
    assert "Deleted 2 run(s)" in regrow("job", "delete", "maker", "--force")
