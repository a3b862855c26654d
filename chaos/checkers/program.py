"""A user's program ended well under faults, and made what it makes without."""

from __future__ import annotations

import filecmp
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.history import Kind

#: The name of standard output among the outputs that are kept.
STDOUT = "stdout"
#: A user's checker may take so long.
CHECKER_S = 600.0


class ProgramOutputs(Checker):
    """Its exit status is 0; its outputs are the same byte for byte, or by the user's checker."""

    name: ClassVar[str] = "program"
    claim: ClassVar[str] = "the program ended well, and made what it makes without faults"

    def check(self, evidence: Evidence) -> list[str]:
        given = evidence.workload.parameters
        ends = [one for one in evidence.history.operations("run") if one.kind is Kind.OK]
        if not ends:
            return ["the program never ended"]
        if ends[-1].result != 0:
            return [f"the program ended with status {ends[-1].result}; see driver-1.log"]
        names = given.outputs or [STDOUT]
        return [finding for name in names for finding in _output(given, name)]


def kept_name(name: str) -> str:
    """Under which an output is kept: two outputs of one name in different folders stay apart."""
    return "__".join(part for part in Path(name).parts if part not in ("/", ".", ".."))


def _output(given: Any, name: str) -> list[str]:
    made = Path(given.stdout) if not given.outputs else Path(given.directory) / name
    if not made.exists():
        return [f"the program did not make {name}"]
    actual = Path(given.kept) / kept_name(name)
    copy(made, actual)
    if not given.expected:
        return []
    expected = Path(given.expected) / kept_name(name)
    if given.checker:
        return _by_command(given.checker, expected, actual, given.directory)
    return [f"{name}: {what}" for what in _differences(expected, actual)]


def copy(source: Path, target: Path) -> None:
    """A file or a whole folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def _differences(expected: Path, actual: Path) -> list[str]:
    """What is not the same, of two files or of all files in two folders."""
    if expected.is_dir() != actual.is_dir():
        return ["one is a folder, the other a file"]
    if not expected.is_dir():
        return [] if filecmp.cmp(expected, actual, shallow=False) else [_sizes(expected, actual)]
    wrong = []
    here, there = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file()}
        for root in (expected, actual)
    )
    wrong += [f"{path} is missing" for path in sorted(here - there)]
    wrong += [f"{path} is not made without faults" for path in sorted(there - here)]
    for path in sorted(here & there):
        if not filecmp.cmp(expected / path, actual / path, shallow=False):
            wrong.append(f"{path}: {_sizes(expected / path, actual / path)}")
    return wrong


def _sizes(expected: Path, actual: Path) -> str:
    sizes = expected.stat().st_size, actual.stat().st_size
    return "differs from that of the run without faults ({:,} bytes and {:,})".format(*sizes)


def _by_command(command: str, expected: Path, actual: Path, directory: str) -> list[str]:
    words = [
        word.replace("{expected}", str(expected)).replace("{actual}", str(actual))
        for word in shlex.split(command)
    ]
    try:
        done = subprocess.run(
            words, cwd=directory, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=CHECKER_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"{words[0]}: {error}"]
    if done.returncode == 0:
        return []
    said = (done.stdout + done.stderr).strip().splitlines()
    return [f"{shlex.join(words)} ended with status {done.returncode}: {' / '.join(said[-5:])}"]
