"""Whether a program ended well, as it is seen while its interpreter exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from regrow._program_end import ProgramEnd, is_failing

BEGIN = """
import atexit, sys
from regrow._program_end import ProgramEnd
end = ProgramEnd()
end.watch()
atexit.register(lambda: print(end.status()))
"""
NESTED = """
def main():
    try: sys.exit({code})
    finally: print(end="")
try: main()
finally: print(end="")
"""
SWALLOWED = """
try: sys.exit(0)
except SystemExit: pass
"""
PROGRAMS = {
    "its end": ("x = 1", True),
    "exit": ("sys.exit()", True),
    "exit 0": ("sys.exit(0)", True),
    "exit 1": ("sys.exit(1)", False),
    "exit with words": ("sys.exit('no')", False),
    "exit of main": ("def main(): return 2\nsys.exit(main())", False),
    "exit under another name": ("exit(1)", False),
    "exit through finally": (NESTED.format(code=1), False),
    "exit 0 through finally": (NESTED.format(code=0), True),
    "exit out of with": ("with open('/dev/null'): sys.exit(3)", False),
    "argparse": ("import argparse; argparse.ArgumentParser().parse_args(['--x'])", False),
    "an exit that was caught": ("try: sys.exit(1)\nexcept SystemExit: pass", True),
    "an exception": ("1 / 0", False),
    "unknown": ("raise SystemExit(0)", None),
    "unknown, after another": (SWALLOWED + "def f(): raise SystemExit(3)\nf()", None),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_how_a_program_ended_is_known(program: str, tmp_path: Path) -> None:
    text, ended_well = PROGRAMS[program]
    path = tmp_path / "program.py"
    path.write_text(f"from sys import exit\n{BEGIN}\n{text}\n")
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, check=False)
    assert done.stdout == f"{ended_well}\n", done.stderr
    assert ended_well is None or (done.returncode == 0) is ended_well


def test_what_is_left_by_an_exception_fails() -> None:
    assert not is_failing()
    seen = []

    def leave_by(error: BaseException) -> None:
        try:
            raise error
        finally:
            seen.append(is_failing())

    for error in (ValueError(), SystemExit(1), SystemExit(0)):
        with pytest.raises(type(error)):
            leave_by(error)
    assert seen == [True, True, False]


def test_a_function_that_may_exit_can_be_sent_to_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "exit", sys.exit)
    for name in ("exit", "quit"):
        monkeypatch.setattr(f"builtins.{name}", None, raising=False)
    ProgramEnd().watch()
    assert cloudpickle.loads(cloudpickle.dumps(sys.exit)) is sys.exit
