"""What a user's program makes is found, kept and compared."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from regrow.chaos import faults, program
from regrow.chaos.checkers.checker import Evidence
from regrow.chaos.checkers.program import ProgramOutputs
from regrow.chaos.history import History, Kind, Line
from regrow.chaos.scenario import Scenario, ScenarioError
from regrow.chaos.workloads import WORKLOADS


def ended(status: int | None) -> History:
    """A program that was run once, and ended with this status; None: it did not."""
    lines = [Line(1.0, Kind.INVOKE, "driver1/client1", 1, "run", ["python"])]
    if status is not None:
        lines.append(Line(2.0, Kind.OK, "driver1/client1", 1, "run", status))
    return History(lines)


def found(tmp_path: Path, history: History, **parameters: Any) -> list[str]:
    """What the checker finds."""
    given = {
        "command": ["python"], "directory": str(tmp_path), "stdout": str(tmp_path / "stdout"),
        "kept": str(tmp_path / "kept"), **parameters,
    }  # fmt: skip
    workload = WORKLOADS["program"].made_from(given, 0, 1)
    evidence = Evidence(Scenario("t", "program"), workload, history, lambda query: [], 0)
    return ProgramOutputs().check(evidence)


@pytest.fixture
def expected(tmp_path: Path) -> Path:
    """What the program makes without faults."""
    folder = tmp_path / "expected"
    folder.mkdir()
    (folder / "out.txt").write_text("one\n")
    return folder


def test_the_same_bytes_pass_and_are_kept(tmp_path: Path, expected: Path) -> None:
    (tmp_path / "out.txt").write_text("one\n")
    assert found(tmp_path, ended(0), outputs=["out.txt"], expected=str(expected)) == []
    assert (tmp_path / "kept" / "out.txt").read_text() == "one\n"


def test_other_bytes_of_the_same_length_are_found(tmp_path: Path, expected: Path) -> None:
    (tmp_path / "out.txt").write_text("two\n")
    os.utime(tmp_path / "out.txt", (0, 0))
    os.utime(expected / "out.txt", (0, 0))
    [finding] = found(tmp_path, ended(0), outputs=["out.txt"], expected=str(expected))
    assert finding == (
        "out.txt: differs from that of the run without faults (4 bytes and 4)"
    )  # fmt: skip


def test_folders_are_compared_file_by_file(tmp_path: Path) -> None:
    for root, names in (("expected/parts", "abc"), ("parts", "bcd")):
        (tmp_path / root).mkdir(parents=True)
        for name in names:
            (tmp_path / root / name).write_text(name if name != "c" else root)
    findings = found(tmp_path, ended(0), outputs=["parts"], expected=str(tmp_path / "expected"))
    assert [finding.partition(" (")[0] for finding in findings] == [
        "parts: a is missing", "parts: d is not made without faults",
        "parts: c: differs from that of the run without faults",
    ]  # fmt: skip


def test_what_it_printed_is_compared_if_it_makes_nothing(tmp_path: Path, expected: Path) -> None:
    (expected / "stdout").write_text("sum 3\n")
    (tmp_path / "stdout").write_text("sum 4\n")
    [finding] = found(tmp_path, ended(0), expected=str(expected))
    assert finding.startswith("stdout: differs")


@pytest.mark.parametrize(
    ("status", "said"),
    [(3, "the program ended with status 3; see driver-1.log"), (None, "the program never ended")],
)
def test_a_program_that_does_not_end_well_is_told(
    tmp_path: Path, status: int | None, said: str
) -> None:
    assert found(tmp_path, ended(status)) == [said]


def test_an_output_that_is_not_there_is_told(tmp_path: Path, expected: Path) -> None:
    findings = found(tmp_path, ended(0), outputs=["out.txt"], expected=str(expected))
    assert findings == ["the program did not make out.txt"]


@pytest.mark.parametrize(("actual", "passes"), [("ONE\n", True), ("two\n", False)])
def test_the_users_checker_decides(
    tmp_path: Path, expected: Path, actual: str, *, passes: bool
) -> None:
    (tmp_path / "out.txt").write_text(actual)
    (tmp_path / "compare.py").write_text(
        "import pathlib, sys\n"
        "a, b = (pathlib.Path(name).read_text().lower() for name in sys.argv[1:])\n"
        "sys.exit(f'{a!r} is not {b!r}' if a != b else 0)\n"
    )
    command = f"{sys.executable} compare.py {{expected}} {{actual}}"
    findings = found(
        tmp_path, ended(0), outputs=["out.txt"], expected=str(expected), checker=command
    )
    assert passes == (not findings)
    if findings:
        assert "ended with status 1: 'one\\n' is not 'two\\n'" in findings[0]


def test_a_checker_that_cannot_be_run_is_told(tmp_path: Path, expected: Path) -> None:
    (tmp_path / "out.txt").write_text("one\n")
    [finding] = found(
        tmp_path, ended(0), outputs=["out.txt"], expected=str(expected), checker="no-such-command"
    )
    assert finding.startswith("no-such-command: ")


def test_outputs_are_the_arguments_that_were_written(tmp_path: Path) -> None:
    for name in ("old.csv", "new.csv", "other.csv"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "old.csv", (1, 1))
    command = ["python", "old.csv", "--out", "new.csv", "--log=other.csv", "new.csv", "gone.csv"]
    assert program.written(command, tmp_path, 1000.0) == ["new.csv", "other.csv"]


def test_the_command_that_repeats_a_run_has_all_its_options() -> None:
    wanted = program.Program(
        ["python", "my pipeline.py"], ("node", "gcs"), 2.0, 4, 60.0, ["a", "b"], "cmp {actual}"
    )
    assert wanted.again(7) == (
        "regrow chaos run --seed 7 --nodes 4 --kill node --kill gcs --every 2 --duration 60 "
        "--output a --output b --checker 'cmp {actual}' -- python 'my pipeline.py'"
    )
    assert wanted.name == "my pipeline"


def test_faults_have_short_names() -> None:
    names = [plan.name for plan in faults.plans(["node", "gcs_crash", "postgres", "node"], 2.0)]
    assert names == ["node_crash", "gcs_crash", "postgres_stop"]
    assert faults.need_proxy(faults.plans(["lost_answers"], 2.0))


@pytest.mark.parametrize(
    ("name", "every_s", "said"),
    [("tree", 2.0, "there is no fault 'tree'; there are worker, node, "), ("node", 0.0, "not 0")],
)
def test_faults_that_there_are_not_are_refused(name: str, every_s: float, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        faults.plans([name], every_s)
