"""``regrow job``: drivers that the cluster runs, and the named jobs in the log."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from regrow import _submission
from regrow._cli_database import Connection, connected
from regrow._job_usage import users
from regrow.exceptions import RayError, RayTaskError
from regrow.objectstore.stored_files import delete_stored

_POLL_S = 0.1

_STATUS = """
SELECT j.job, j.name, j.run, j.status, j.driver, j.entrypoint, j.started_at, j.finished_at,
    (SELECT count(*) FROM regrow.task_log t WHERE t.part = j.part AND t.job = j.job
        AND t.status = 1) AS tasks_finished,
    (SELECT count(*) FROM regrow.task_log t WHERE t.part = j.part AND t.job = j.job
        AND t.status = 0) AS tasks_unfinished,
    (SELECT count(*) FROM regrow.task_log t WHERE t.part = j.part AND t.job = j.job
        AND t.status > 1) AS tasks_failed
FROM regrow.jobs j WHERE j.name = %s ORDER BY j.run DESC LIMIT 1
"""


#: The node that had the task which runs the driver.
_PLACE = """
SELECT n.node_id, n.hostname FROM regrow.jobs j
JOIN regrow.task_log t ON t.part = j.part AND t.job = j.job
JOIN regrow.nodes n ON n.node_id = t.holder AND n.incarnation = t.holder_incarnation
WHERE j.name = %s ORDER BY j.run DESC LIMIT 1
"""


class JobError(RayError):
    """What was asked of a job cannot be done."""

    code = "job"


def submit(home: Path, submission: _submission.Submission, *, wait: bool) -> int:
    """Submit, print the driver's output until it ends; the exit status."""
    import regrow

    if shutil.which(submission.command[0], path=submission.environment.get("PATH")) is None:
        raise JobError(f"there is no program {submission.command[0]!r}; nothing was submitted")
    end = _submission.submit(home, submission)
    name = submission.name
    print(f"Job {name!r} is submitted; `regrow job logs {name}` shows what it prints.",
          file=sys.stderr)  # fmt: skip
    if not wait:
        regrow.shutdown()
        return 0
    log = _submission.log_path(home, name)
    told = 0
    try:
        while not regrow.wait([end], timeout=_POLL_S)[0]:
            told = _tell(log, told)
        _tell(log, told)
        regrow.get(end)
    except RayTaskError as error:
        raise JobError(str(error.cause)) from None
    except KeyboardInterrupt:
        print(f"The job goes on; `regrow job stop {name}` ends it.", file=sys.stderr)
        return 130
    finally:
        regrow.shutdown()
    return 0


def _tell(log: Path, told: int) -> int:
    """Print what is new; how far that is."""
    if not log.exists():
        return told
    with log.open("rb") as file:
        file.seek(told)
        new = file.read()
    sys.stdout.write(new.decode(errors="replace"))
    sys.stdout.flush()
    return told + len(new)


def resume(home: Path, name: str, *, wait: bool) -> int:
    """Submit again what was submitted under this name. Raises JobError."""
    submission = _submission.kept(home, name)
    if submission is None:
        raise JobError(f"no job {name!r} was submitted from {home}; see `regrow list jobs`")
    return submit(home, submission, wait=wait)


def stop(home: Path, name: str) -> None:
    """End the driver and its supervision. Raises JobError if the cluster runs none."""
    supervised = _find(home, _submission.SUPERVISOR + name)
    if supervised is None or supervised["status"] != "running":
        raise JobError(f"the cluster runs no driver of a job {name!r}; see `regrow list jobs`")
    _submission.stop(name)
    print(f"Job {name!r} is stopped; `regrow job resume {name}` goes on with it.")


def status(home: Path, name: str, *, as_json: bool) -> None:
    """Print the newest run. Raises JobError if there is none."""
    run, supervised = _find(home, name), _find(home, _submission.SUPERVISOR + name)
    if run is None and supervised is None:
        raise JobError(f"there is no job {name!r}; see `regrow list jobs`")
    found: dict[str, Any] = run or {"name": name, "run": None, "status": "not begun"}
    found["supervised"] = supervised["status"] if supervised is not None else None
    if as_json:
        print(json.dumps(found, default=str))
        return
    words = {"supervised": "by the cluster"}
    for key, value in found.items():
        if value is not None:
            print(f"{words.get(key, key.replace('_', ' ')):18}{value}")


def _find(home: Path, name: str) -> dict[str, Any] | None:
    with connected(home) as connection:
        cursor = connection.execute(_STATUS, [name])
        row = cursor.fetchone()
        names = [column.name for column in cursor.description or ()]
    return dict(zip(names, row, strict=True)) if row is not None else None


def _place(home: Path, name: str) -> str:
    """Where the driver's output is."""
    with connected(home) as connection:
        row = connection.execute(_PLACE, [_submission.SUPERVISOR + name]).fetchone()
    if row is None:
        return "the cluster has run no driver of that name; see `regrow list jobs`"
    node_id, hostname = row
    return (
        f"its driver ran on node {node_id}, on the machine {hostname}: ask there, in the home of "
        "that node"
    )


def logs(home: Path, name: str, *, follow: bool) -> None:
    """Print what the driver printed; with ``follow`` until it ends. Raises JobError."""
    log = _submission.log_path(home, name)
    if not log.exists():
        raise JobError(
            f"there is no output of a job {name!r} in {log.parent}; {_place(home, name)}"
        )
    told = _tell(log, 0)
    while follow:
        supervised = _find(home, _submission.SUPERVISOR + name)
        told = _tell(log, told)
        if supervised is None or supervised["status"] != "running":
            return
        time.sleep(_POLL_S)


def delete(home: Path, name: str, *, force: bool) -> None:
    """Take all runs of a job out of the database and the storage.

    Raises JobError if one runs, or there is none; without ``force`` also if other jobs need it.
    """
    names = [name, _submission.SUPERVISOR + name]
    with connected(home, write=True) as connection:
        runs = connection.execute(
            "SELECT job, status FROM regrow.jobs WHERE name = ANY (%s) ORDER BY job", [names]
        ).fetchall()
        if not runs:
            raise JobError(f"there is no job {name!r}; see `regrow list jobs`")
        if any(status == "running" for _, status in runs):
            raise JobError(f"job {name!r} runs; `regrow job stop {name}`, or end its driver, first")
        jobs = [job for job, _ in runs]
        needed = {} if force else users(connection, jobs)
        if needed:
            others = sorted({other for names in needed.values() for other in names})
            raise JobError(
                f"job {name!r} is used by {', '.join(map(repr, others))}, which could not be "
                "recovered without it; nothing was deleted. End these first (an actor with "
                "ray.kill), or say --force"
            )
        _delete(connection, jobs)
    _submission.forget(home, name)


def delete_old(home: Path, days: float, *, force: bool) -> None:
    """The same with all jobs, named or not, that ended more than so many days ago, and with what
    submitted drivers printed; without ``force`` those stay that others need, which is told."""
    with connected(home, write=True) as connection:
        runs = connection.execute(
            "SELECT job, name FROM regrow.jobs WHERE status <> 'running' "
            "AND finished_at < regrow.now() - make_interval(secs => %s) ORDER BY job",
            [days * 86_400],
        ).fetchall()
        jobs = [job for job, _ in runs]
        while not force and (needed := users(connection, jobs)):
            for job, others in needed.items():
                print(f"Job {job} stays: it is used by {', '.join(map(repr, others))}.")
            jobs = [job for job in jobs if job not in needed]
        _delete(connection, jobs)
        rest = connection.execute("SELECT name FROM regrow.jobs WHERE name IS NOT NULL").fetchall()
    kept = {name for (name,) in rest}
    for _, name in runs:
        submitted = (name or "").removeprefix(_submission.SUPERVISOR)
        if name != submitted and not kept & {name, submitted}:
            _submission.forget(home, submitted)


def _delete(connection: Connection, jobs: list[int]) -> None:
    """First from the database: a file that is left over is no harm, a row without one would be."""
    uris: list[str] = []
    for job in jobs:
        rows = connection.execute("SELECT regrow.delete_job(%s)", [job]).fetchall()
        uris.extend(uri for (uri,) in rows)
    connection.commit()
    left = delete_stored(uris)
    print(f"Deleted {len(jobs)} run(s), {len(uris) - len(left)} stored object(s).")
    if left:
        raise JobError(f"{len(left)} files in storage could not be deleted, so {left[0]}")
