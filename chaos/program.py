"""A user's own program under faults: run once without any, then with; what it makes is compared.

Decides what is compared and how long faults strike. Each run has a cluster of its own.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from regrow.chaos import harness
from regrow.chaos.checkers.program import STDOUT, copy, kept_name
from regrow.chaos.faults import need_proxy, plans
from regrow.chaos.result import RunResult
from regrow.chaos.scenario import Scenario
from regrow.chaos.stage import run_folder
from regrow.chaos.strikes import Watch

#: Without faults the program may take so long.
PLAIN_S: Final = 3600.0
#: Faults strike for so long, as a multiple of what the program takes without, and at least.
FACTOR: Final = 5.0
FAULTS_S: Final = 30.0
PATIENCE_S: Final = 60.0


class Program(msgspec.Struct):
    """What a user wants to see under faults."""

    command: list[str]
    kill: tuple[str, ...] = ("node",)
    every_s: float = 3.0
    nodes: int = 3
    #: None: see the module.
    duration_s: float | None = None
    #: Files or folders that it makes; none: those of its arguments that it wrote, or else what it
    #: printed.
    outputs: list[str] = []
    #: See `regrow.chaos.workloads.program`.
    checker: str = ""

    @property
    def name(self) -> str:
        """For reports: the file that is run, without its folder and ending."""
        scripts = [Path(word).stem for word in self.command if word.endswith(".py")]
        return (scripts or [Path(self.command[0]).name])[0]

    def again(self, seed: int) -> str:
        """The command that repeats the run."""
        words = ["regrow", "chaos", "run", "--seed", str(seed), "--nodes", str(self.nodes)]
        words += [word for name in self.kill for word in ("--kill", name)]
        words += ["--every", f"{self.every_s:g}"]
        if self.duration_s is not None:
            words += ["--duration", f"{self.duration_s:g}"]
        words += [word for name in self.outputs for word in ("--output", name)]
        if self.checker:
            words += ["--checker", self.checker]
        return shlex.join([*words, "--", *self.command])


def run(program: Program, seed: int, folder: Path | None, watch: Watch) -> RunResult:
    """Both runs; the result is the second's, or the first's if that has failed already.

    Raises ScenarioError for faults that there are not.
    """
    nemeses = plans(program.kill, program.every_s)
    with run_folder(folder) as place:
        place = place.resolve()
        first, outputs = _without_faults(program, seed, place, watch)
        if not first.passed:
            return first
        took_s = first.span_s
        scenario = _scenario(program, place, place, outputs, str(place / "expected"))
        scenario.nemesis = nemeses
        scenario.proxy = need_proxy(nemeses)
        scenario.duration_s = program.duration_s or max(FAULTS_S, FACTOR * took_s)
        scenario.patience_s = PATIENCE_S + FACTOR * took_s
        scenario.title = f"{shlex.join(program.command)} under faults"
        for name in outputs:
            _remove(Path(scenario.parameters["directory"]) / name)
        again = program.again(seed)
        return harness.run(scenario, seed, folder=place, watch=watch, command=again)


def _without_faults(
    program: Program, seed: int, place: Path, watch: Watch
) -> tuple[RunResult, list[str]]:
    """The result, and what it made; that is kept in the folder ``expected``."""
    folder = place / "without-faults"
    scenario = _scenario(program, place, folder, program.outputs, "")
    scenario.title = f"{shlex.join(program.command)} without faults"
    scenario.duration_s = PLAIN_S
    scenario.patience_s = 1.0
    begun_s = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    result = harness.run(scenario, seed, folder=folder, watch=watch, command=program.again(seed))
    outputs = program.outputs or written(program.command, Path.cwd(), begun_s)
    if result.passed and outputs and not program.outputs:
        for name in outputs:
            _keep(Path.cwd() / name, folder / "outputs", name)
    if result.passed:
        shutil.rmtree(place / "expected", ignore_errors=True)
        shutil.copytree(folder / "outputs", place / "expected")
    return result, outputs


def _keep(made: Path, folder: Path, name: str) -> None:
    copy(made, folder / kept_name(name))


def _scenario(
    program: Program, place: Path, folder: Path, outputs: Sequence[str], expected: str
) -> Scenario:
    parameters: dict[str, Any] = {
        "command": program.command,
        "directory": str(Path.cwd()),
        "outputs": list(outputs),
        "stdout": str(folder / STDOUT),
        "expected": expected,
        "kept": str(folder / "outputs"),
        "checker": program.checker,
    }
    return Scenario(
        title="", workload="program", name=program.name, nodes=program.nodes, clients=1,
        parameters=parameters,
    )  # fmt: skip


def written(command: Sequence[str], directory: Path, since_s: float) -> list[str]:
    """Those of its arguments that name what was written since; ``--out=FILE`` is one, too."""
    found = []
    for word in command[1:]:
        name = word.partition("=")[2] if word.startswith("-") and "=" in word else word
        path = directory / name
        with contextlib.suppress(OSError):
            if name and path.exists() and path.stat().st_mtime >= since_s:
                found.append(name)
    return list(dict.fromkeys(found))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
