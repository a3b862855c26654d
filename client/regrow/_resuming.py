"""What a driver that resumes its job has to know of the drivers before it: which code they ran.

Decides whether a function whose code has changed may find what its calls returned before.
"""

from __future__ import annotations

import platform
from typing import Final

from regrow.exceptions import CodeChangedError
from regrow.messages import FunctionDef

POLICIES: Final = ("error", "rerun", "keep")


def runtime() -> str:
    """What pickles and results depend on beside the program."""
    from regrow import __version__

    return f"{platform.python_implementation()} {platform.python_version()}, regrow {__version__}"


class Changes:
    """``versions`` are (function, fingerprint) of what has finished, oldest first."""

    def __init__(self, job: str, versions: list[tuple[str, bytes]], policy: str) -> None:
        self._job = job
        self._policy = policy
        self._first: dict[str, bytes] = {}
        self._last: dict[str, bytes] = {}
        for name, fingerprint in versions:
            self._first.setdefault(name, fingerprint)
            self._last[name] = fingerprint

    def check_runtime(self, first: str) -> None:
        """Raises CodeChangedError if the job began under other versions, and nothing was said."""
        if self._policy == "error" and first and first != runtime():
            raise CodeChangedError(
                f"job {self._job!r} began with {first} and is resumed with {runtime()}, which may "
                "read or pickle values in another way. Resume it with the first, or say "
                "init(on_changed_code='keep') to go on with what is there"
            )

    def version_of(self, definition: FunctionDef) -> bytes:
        """What enters the identity of the function's calls: nothing if their old results are
        right for them. Raises CodeChangedError."""
        first = self._first.get(definition.name)
        now = definition.fingerprint
        if first is None or not now or self._policy == "keep":
            return b""
        last = self._last[definition.name]
        if now != last and self._policy == "error":
            raise CodeChangedError(
                f"the code of {definition.name} is not what job {self._job!r} ran before: its "
                f"fingerprint was {last.hex()[:12]} and is {now.hex()[:12]}. Say "
                "init(on_changed_code='rerun') to run its calls, and what depends on them, again, "
                "or 'keep' to go on with the results that it has"
            )
        # The ids that the first version made are plain: so they are found without being asked for.
        return b"" if now == first else b"\0version " + now
