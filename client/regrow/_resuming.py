"""What a driver that resumes its job has to know of the drivers before it: which code they ran.

Decides whether a function whose code has changed may find what its calls returned before.
"""

from __future__ import annotations

import platform
from typing import Final

from msgspec import Struct

from regrow._fingerprints import MODULE_SIZE
from regrow._functions import as_other_code
from regrow.exceptions import CodeChangedError
from regrow.messages import FunctionDef

POLICIES: Final = ("error", "rerun", "keep")


def runtime() -> str:
    """What pickles and results depend on beside the program."""
    from regrow import __version__

    return f"{platform.python_implementation()} {platform.python_version()}, regrow {__version__}"


class Resolved(Struct, frozen=True):
    """How a function's calls are submitted in a job that is resumed."""

    definition: FunctionDef
    #: What enters the identity of its calls that have a key: nothing if theirs are right for it.
    version: bytes = b""


class Changes:
    """``versions`` are (function, fingerprint) of what has finished, oldest first.

    Two functions may share a name: each has its own fingerprint, which is part of its calls' ids. A
    lambda has no name by which it could be known again, so a changed one is another function.
    """

    def __init__(self, job: str, versions: list[tuple[str, bytes]], policy: str) -> None:
        self._job = job
        self.policy = policy
        self._known: dict[tuple[str, bytes], list[bytes]] = {}
        for name, fingerprint in versions:
            if "<lambda>" not in name:
                self._known.setdefault(_place(name, fingerprint), []).append(fingerprint)
        self._resolved: dict[bytes, Resolved] = {}
        #: Of each name, the code that this process has.
        self._here: dict[tuple[str, bytes], set[bytes]] = {}

    def check_runtime(self, first: str) -> None:
        """Raises CodeChangedError if the job began under other versions, and nothing was said."""
        if self.policy == "error" and first and first != runtime():
            raise CodeChangedError(
                f"job {self._job!r} began with {first} and is resumed with {runtime()}, which may "
                "read or pickle values in another way. Resume it with the first, or say "
                "init(on_changed_code='keep') to go on with what is there"
            )

    def resolve(self, definition: FunctionDef) -> Resolved:
        """What stands for this function; raises CodeChangedError where its calls would find the
        results of other code."""
        resolved = self._resolved.get(definition.function_id)
        if resolved is None:
            resolved = self._resolved[definition.function_id] = self._resolve(definition)
        return resolved

    def check_loaded(self, definition: FunctionDef, now: bytes) -> None:
        """The log's function turned out to have the fingerprint ``now``: its module was changed.
        Raises CodeChangedError."""
        if self.policy == "error":
            raise self._changed(definition.name, definition.fingerprint, now)

    def _resolve(self, definition: FunctionDef) -> Resolved:
        now = definition.fingerprint
        place = _place(definition.name, now)
        known = self._known.get(place)
        here = self._here.setdefault(place, set())
        here.add(now)
        if not known:
            return Resolved(definition)
        if now not in known:
            if self.policy == "error":
                raise self._changed(definition.name, known[-1], now)
            if self.policy == "keep":
                if len(here) > 1:
                    raise self._ambiguous(definition.name)
                definition = as_other_code(definition, known[-1])
        version = definition.fingerprint
        # The ids that the first version made are plain: so they are found without being asked for.
        return Resolved(definition, b"" if version == known[0] else b"\0version " + version)

    def _changed(self, name: str, before: bytes, now: bytes) -> CodeChangedError:
        return CodeChangedError(
            f"the code of {name} is not what job {self._job!r} ran before: its fingerprint was "
            f"{_short(before)} and is {_short(now)}. Say init(on_changed_code='rerun') to run its "
            "calls, and what depends on them, again, or 'keep' to go on with the results that it "
            "has"
        )

    def _ambiguous(self, name: str) -> CodeChangedError:
        return CodeChangedError(
            f"job {self._job!r} has several functions {name} in one module, and the code of one is "
            "not what it was: whose results to keep cannot be told. Give them names of their own"
        )


def _place(name: str, fingerprint: bytes) -> tuple[str, bytes]:
    """The name with its module."""
    return name, fingerprint[:MODULE_SIZE]


def _short(fingerprint: bytes) -> str:
    return fingerprint[MODULE_SIZE:].hex()[:12]
