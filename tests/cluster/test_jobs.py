"""Named jobs: run the program again after its driver was killed, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

PROGRAM = Path(__file__).parent / "programs" / "nightly.py"
TIMEOUT_S = 120.0


def run(trace: Path, job: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NIGHTLY_TRACE": str(trace), "NIGHTLY_KILL": kill}
    command = [sys.executable, str(PROGRAM), job]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def test_a_job_whose_driver_was_killed_finds_what_it_had_done(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calm = run(tmp_path / "calm", "calm")
    assert calm.returncode == 0, calm.stderr
    first = run(trace, "nightly", kill="middle")
    assert first.returncode == -signal.SIGKILL, first.stderr
    done = Counter(trace.read_text().split("\n"))
    second = run(trace, "nightly", kill="end")
    assert second.returncode == -signal.SIGKILL, second.stderr
    third = run(trace, "nightly")
    assert third.returncode == 0, third.stderr
    assert json.loads(third.stdout) == json.loads(calm.stdout)
    executions = Counter(trace.read_text().split("\n"))
    for what in done:
        if what.startswith(("step", "digest")):
            assert executions[what] == 1, f"{what} ran again"
