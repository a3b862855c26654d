"""Drivers that the cluster runs: ``regrow job submit``.

A submission is a detached job of one task, in the log like any other, which starts the driver's
process and starts it again when that fails.  If the task's node dies, its next holder runs it
there; if the whole cluster does, whoever starts it again has it.  The driver itself is that of the
named job, and finds what it had done.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from regrow.exceptions import JobAlreadyRunningError, RayError, RaySystemError

#: Before the name of a job: the job of the task that supervises it.
SUPERVISOR: Final = "submitted:"
#: How long the task waits before it starts a driver that failed again, and at most.
BACK_OFF_FIRST_S: Final = 1.0
BACK_OFF_MAX_S: Final = 30.0
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class DriverFailedError(RayError):
    """A submitted driver failed as often as it may."""

    code = "driver_failed"


class Submission(msgspec.Struct, frozen=True):
    """What to run."""

    name: str
    command: list[str]
    #: Beside that of the node.
    environment: dict[str, str]
    directory: str
    #: How often it is started, not counting those that died with their nodes.
    attempts: int


def check_name(name: str) -> None:
    """Raises ValueError for what cannot be a file's name, too."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is no name of a job: take letters, digits, '.', '_' and '-', 100 at most"
        )


def log_path(home: Path, name: str) -> Path:
    """Where the driver's output is, on the machine on which it runs."""
    return home / "jobs" / f"{name}.log"


def _kept_path(home: Path, name: str) -> Path:
    return home / "jobs" / f"{name}.json"


def kept(home: Path, name: str) -> Submission | None:
    """The last submission of this name from this home."""
    path = _kept_path(home, name)
    return msgspec.json.decode(path.read_bytes(), type=Submission) if path.exists() else None


def forget(home: Path, name: str) -> None:
    """Delete what is kept of a submission, and its output."""
    for path in (_kept_path(home, name), log_path(home, name)):
        path.unlink(missing_ok=True)


def submit(home: Path, submission: Submission) -> Any:
    """Hand the driver to the cluster, whose driver this process becomes; the reference to the end.

    Raises JobAlreadyRunningError if one of this name is supervised, ClusterConnectionError.
    """
    import regrow
    from regrow._api import join_detached

    try:
        join_detached(
            SUPERVISOR + submission.name, shlex.join(submission.command),
            takeover=False, detached=True,
        )  # fmt: skip
    except JobAlreadyRunningError:
        raise JobAlreadyRunningError(
            f"the cluster runs job {submission.name!r} already (`regrow job status "
            f"{submission.name}`); `regrow job stop {submission.name}` ends it"
        ) from None
    folder = home / "jobs"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = _kept_path(home, submission.name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(submission))
    log_path(home, submission.name).unlink(missing_ok=True)
    task = regrow.remote(num_cpus=0, max_retries=-1)(supervise)
    return task.remote(msgspec.to_builtins(submission), str(home))


def stop(name: str) -> None:
    """End what the cluster runs under this name; the named job can be resumed.

    Raises ClusterConnectionError.
    """
    import regrow
    from regrow._api import join_detached

    join_detached(SUPERVISOR + name, f"regrow job stop {name}", takeover=True, detached=False)
    regrow.shutdown()


def supervise(given: dict[str, Any], home: str) -> int:
    """In a worker: run the driver until it ends well; how often it was started here.

    Raises DriverFailedError once it has failed as often as it may.
    """
    submission = msgspec.convert(given, Submission)
    log = log_path(Path(home), submission.name)
    status = 0
    for attempt in range(1, submission.attempts + 1):
        status = _run(submission, home, log)
        if status == 0:
            return attempt
        with log.open("a") as file:
            print(f"regrow: the driver ended with status {status}, attempt {attempt} of "
                  f"{submission.attempts}", file=file)  # fmt: skip
        if attempt < submission.attempts:
            time.sleep(min(BACK_OFF_FIRST_S * 2 ** (attempt - 1), BACK_OFF_MAX_S))
    raise DriverFailedError(
        f"the driver of job {submission.name!r} failed {submission.attempts} times, the last time "
        f"with status {status}; what it printed is in {log}. `regrow job resume "
        f"{submission.name}` goes on with what it has done"
    )


def _run(submission: Submission, home: str, log: Path) -> int:
    """The process's exit status. It dies with this worker, and so with the node."""
    from regrow._forkserver import die_with_parent

    own = {"REGROW_JOB": submission.name, "REGROW_HOME": home, "PYTHONUNBUFFERED": "1"}
    environment = {**os.environ, **submission.environment, **own}
    environment.pop("REGROW_NODE_SOCKET", None)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    with open(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as output:
        try:
            process = subprocess.Popen(
                submission.command, cwd=submission.directory, env=environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        except OSError as error:
            raise RaySystemError(
                f"the driver of job {submission.name!r} cannot be started: {error}. It was to be "
                f"`{shlex.join(submission.command)}` in {submission.directory}"
            ) from error
        with process:
            return process.wait()
