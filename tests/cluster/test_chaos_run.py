"""`regrow chaos run` and the pytest plugin from end to end: short runs on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

RUN_S = 175
PIPELINE = """
import sys, time
import numpy as np
import regrow as ray

@ray.remote(max_retries=-1)
def make(number):
    time.sleep(0.2)
    return np.full(5000, number)

@ray.remote(max_retries=-1)
def add(one, other):
    return one + other

ray.init()
total = make.remote(0)
for number in range(1, 25):
    total = add.remote(total, make.remote(number))
with open(sys.argv[2], "w") as out:
    out.write(f"{ray.get(total).sum()}\\n")
ray.shutdown()
"""


def chaos(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`regrow chaos run`, as a user runs it."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "regrow.cli", "chaos", "run", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )


def test_a_scenario_is_run_shown_and_reported(tmp_path: Path) -> None:
    done = chaos(
        "node_crash", "--seed", "3", "--duration", "6", "--nodes", "2", "--report", "out",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("faults strike", "fault  node_crash: node", "heal   node_crash", "passed after"):
        assert told in done.stdout, told
    folder = tmp_path / "out" / "node_crash-3"
    result = json.loads((folder / "result.json").read_bytes())
    assert result["passed"] is True
    assert result["fired"]["node_crash"] >= 1
    assert result["command"] == "regrow chaos run node_crash --seed 3 --duration 6 --nodes 2"
    assert result["acknowledged"] == sum(ok for ok, _ in result["slices"]) > 0
    assert result["lost"] == result["doubled"] == 0
    assert "node_crash, seed 3" in (folder / "report.html").read_text()
    assert all((folder / name).exists() for name in result["logs"])
    [suite] = ET.parse(tmp_path / "out" / "junit.xml").getroot()
    assert suite.get("failures") == "0"
    assert "node_crash-3/report.html" in (tmp_path / "out" / "index.html").read_text()


def test_a_fault_that_does_not_fire_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "late.toml").write_text(
        'title = "Too late"\nworkload = "counter"\nnodes = 1\nduration_s = 1.0\nclients = 1\n'
        '[[nemesis]]\nname = "worker_crash"\nfirst_s = 900.0\n'
    )
    done = chaos("./late.toml", folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "faults_fired: worker_crash never fired" in done.stdout
    assert "again: regrow chaos run ./late.toml --seed 0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nope",), "there is no scenario 'nope'"),
        (("--kill", "rain", "--", "true"), "there is no fault 'rain'"),
        (("node_crash", "--kill", "node"), "are for a program"),
        ((), "name scenarios, or give --all, or -- and a program"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = chaos(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_users_program_makes_the_same_under_faults(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text(PIPELINE)
    done = chaos(
        "--kill", "worker", "--every", "1", "--nodes", "2", "--report", "out",
        "--", sys.executable, "pipeline.py", "--out", "sum.txt",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fault  worker_crash: worker" in done.stdout
    for name in ("expected", "outputs"):
        kept = tmp_path / "out" / "pipeline-0" / name / "sum.txt"
        assert kept.read_text() == f"{5000 * sum(range(25))}\n"


def test_a_program_that_fails_without_faults_is_not_put_under_any(tmp_path: Path) -> None:
    done = chaos("--nodes", "1", "--", sys.executable, "-c", "raise SystemExit(3)", folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "program: the program ended with status 3" in done.stdout
    assert "faults strike" not in done.stdout


def test_a_test_of_a_users_own_runs_under_faults(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import time
        import pytest
        import regrow as ray

        @ray.remote(max_retries=-1)
        def square(number):
            time.sleep(0.2)
            return number * number

        @pytest.mark.chaos(kill="worker", every_s=0.8, nodes=2)
        def test_squares():
            assert ray.get([square.remote(n) for n in range(40)]) == [n * n for n in range(40)]

        @pytest.mark.chaos(kill=[], nodes=2)
        def test_by_hand(regrow_cluster, nemesis):
            ref = square.remote(1)
            assert "node" in nemesis.kill_node()
            assert ray.get(square.remote(3)) == 9
            nemesis.heal()
            assert len(regrow_cluster.nodes()) == 2
            nemesis.kill_gcs()
            nemesis.heal()
            assert ray.get(ref) == 1
            [(count,)] = regrow_cluster.rows("SELECT count(*) FROM regrow.nodes WHERE NOT alive")
            assert count >= 1
        """
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--strict-markers", "-W", "error"],
        cwd=pytester.path, env=environment, capture_output=True, text=True, timeout=RUN_S,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
