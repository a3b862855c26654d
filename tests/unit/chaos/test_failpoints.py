"""Crash points and cut ways: off by default, and exact where they are armed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from regrow import failpoints

ROOT = Path(__file__).parents[3]
SHELLS = ("client/regrow", "gcs", "scheduler")


def run(code: str, folder: Path | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "REGROW_FAILPOINTS"}
    if folder is not None:
        environment["REGROW_FAILPOINTS"] = str(folder)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("crash", "fired"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_they_are_off_where_nobody_asked_for_them(folder: Path) -> None:
    (folder / "crash" / "worker.running").touch()
    done = run("from regrow import failpoints; print(failpoints.ON)", None)
    assert done.stdout.strip() == "False"


def test_one_process_dies_at_an_armed_point_and_the_next_one_does_not(folder: Path) -> None:
    code = (
        "from regrow import failpoints; failpoints.crash_point('worker.sealed'); "
        "failpoints.crash_point('worker.running'); print('lives')"
    )
    (folder / "crash" / "worker.running").touch()
    died = run(code, folder)
    assert died.returncode == -signal.SIGKILL
    assert [path.name.rpartition("-")[0] for path in (folder / "fired").iterdir()] == [
        "worker.running"
    ]
    assert run(code, folder).stdout.strip() == "lives"


def test_every_declared_point_is_in_the_code_and_none_besides() -> None:
    found = set()
    for part in SHELLS:
        for path in (ROOT / part).glob("*.py"):
            found |= set(re.findall(r'crash_point\(f?"([^"]+)"\)', path.read_text()))
    written = "gcs.{when}_write"
    assert written in found
    found = (found - {written}) | {"gcs.before_write", "gcs.after_write"}
    assert found == set(failpoints.CRASH_POINTS)


def test_a_way_is_cut_broken_or_slow_in_its_direction_only(folder: Path) -> None:
    (folder / "links").write_text("1 2 cut\n2 gcs reset\n* 3 0.001\n")
    code = """
import asyncio, sys
from regrow.failpoints import passage
async def passes(a, b):
    try:
        async with asyncio.timeout(0.2):
            await passage(a, b)
    except TimeoutError:
        return "cut"
    except ConnectionResetError:
        return "reset"
    return "open"
async def main():
    for a, b in [("1", "2"), ("2", "1"), ("2", "gcs"), ("gcs", "2"), ("gcs", "3"), ("3", "1")]:
        print(a, b, await passes(a, b))
    open(sys.argv[1] + "/links", "w").close()
    print(await passes("1", "2"))
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        env={**os.environ, "REGROW_FAILPOINTS": str(folder)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "1 2 cut", "2 1 open", "2 gcs reset", "gcs 2 open", "gcs 3 open", "3 1 open", "open",
    ]  # fmt: skip
