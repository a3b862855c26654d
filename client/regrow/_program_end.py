"""How this process's program ended: well, so that a named job's run is over, or not.

What a program ends with is not told to those who clean up after it.  So ``sys.exit`` is wrapped,
since nearly everybody goes through it (argparse, click and typer too), and the frame of
``__main__`` shows whether it reached its end.  Where it ended by a SystemExit that did not go
through ``sys.exit``, the status cannot be known; then the run stays open.
"""

from __future__ import annotations

import builtins
import dis
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, NoReturn

_RETURNS: Final = ("RETURN_VALUE", "RETURN_CONST")
#: What is told where the status is unknown.
UNKNOWN: Final = (
    "regrow: the program ended by a SystemExit whose status cannot be seen from here, so job {!r} "
    "stays open and is resumed by its next driver. End the program by sys.exit(), or call "
    "regrow.shutdown() first."
)


def is_success(code: object) -> bool:
    """Whether ``sys.exit(code)`` gives the status 0."""
    return code is None or (isinstance(code, int) and code == 0)


def is_failing() -> bool:
    """Whether the calling code runs because something went wrong: in an ``except``, or in a
    ``finally`` or at the end of a ``with`` that is left by an exception."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        return not is_success(error.code)
    return error is not None


class _Exit:
    """``sys.exit``, also for a function that refers to it and goes to a worker."""

    def __init__(self, note: Callable[[SystemExit], None]) -> None:
        self._note = note

    def __call__(self, status: Any = None, /) -> NoReturn:
        error = SystemExit(status)
        self._note(error)
        raise error

    def __repr__(self) -> str:
        return "Use exit() or Ctrl-D (i.e. EOF) to exit"

    def __reduce__(self) -> Any:
        return _exit_of_this_process, ()


def _exit_of_this_process() -> Callable[..., NoReturn]:
    return sys.exit


class ProgramEnd:
    """Watches from ``watch`` on. What a program calls may have been looked up before that, as in
    ``sys.exit(main())``: so it is called when the API is imported."""

    def __init__(self) -> None:
        self._main: FrameType | None = None
        self._raised: SystemExit | None = None

    def watch(self) -> None:
        """Wraps ``sys.exit`` under each of its usual names."""
        self._main = _main_frame()
        original = sys.exit
        for namespace, name in ((sys, "exit"), (builtins, "exit"), (builtins, "quit")):
            if hasattr(namespace, name):
                self._replace(namespace, name)
        main = sys.modules.get("__main__")
        for name, value in list(vars(main).items()) if main is not None else []:
            if value is original:  # `from sys import exit`
                self._replace(main, name)

    def _replace(self, namespace: Any, name: str) -> None:
        setattr(namespace, name, _Exit(self.note))

    def note(self, error: SystemExit) -> None:
        """``sys.exit`` was called."""
        if threading.current_thread() is threading.main_thread():
            self._raised = error

    def let_go(self) -> None:
        """Nobody asks any more. The frame and the exception would keep what the program has until
        the interpreter can no longer run its finalizers."""
        self._main = self._raised = None

    def status(self) -> bool | None:
        """While the interpreter exits: whether the program ended well; None: that is unknown."""
        if hasattr(sys, "ps1"):
            return True  # a prompt, which people leave as they like
        if hasattr(sys, "last_value"):
            return False
        if self._main is None:  # it was not started as a program
            return self._raised is None or is_success(self._raised.code)
        if _has_returned(self._main):
            return True
        if self._raised is None or not _went_on(self._raised):
            return None
        return is_success(self._raised.code)


def _has_returned(frame: FrameType) -> bool:
    """Whether the frame, which is over, reached an end of its code."""
    return _last_instruction(frame) in _RETURNS


def _last_instruction(frame: FrameType) -> str:
    return dis.opname[frame.f_code.co_code[frame.f_lasti]]


def _went_on(error: BaseException) -> bool:
    """Whether nothing stopped the exception on its way up."""
    trace = error.__traceback__
    if trace is None:  # up to Python 3.11: nobody has even looked at it
        return True
    # Where it was looked at last: that frame ended by it, at once or after a `finally`, unless it
    # went on with something else.
    frame = trace.tb_frame
    return frame.f_lasti == trace.tb_lasti or _last_instruction(frame) == "RERAISE"


def _main_frame() -> FrameType | None:
    """That of the program's own module, if it runs."""
    main = sys.modules.get("__main__")
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    found = None
    while frame is not None:
        if (
            main is not None
            and frame.f_globals is vars(main)
            and frame.f_code.co_name == "<module>"
        ):
            found = frame
        frame = frame.f_back
    return found
