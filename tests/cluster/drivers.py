"""Programs that tests write, and run as drivers in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT_S = 120.0

_STARTED: list[subprocess.Popen[str]] = []


@contextmanager
def none_left() -> Iterator[None]:
    """A test that fails midway leaves no driver behind."""
    yield
    while _STARTED:
        with _STARTED.pop() as process:
            process.kill()


def start(program: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(program), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _STARTED.append(process)
    return process


def run(program: Path, *arguments: str, code: int = 0, **environment: Any) -> str:
    """What it printed; ``code`` is what it has to end with."""
    process = start(program, *arguments, **environment)
    out, error = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code, error
    return out


def written(tmp_path: Path, text: str, name: str = "program.py") -> Path:
    program = tmp_path / name
    program.write_text("import os, signal, sys\nimport regrow as ray\n" + textwrap.dedent(text))
    return program


def executions(trace: Path) -> Counter[str]:
    return Counter(trace.read_text().splitlines())
