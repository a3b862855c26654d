"""Jobs: opened by drivers, ended when their drivers leave or do not come back.

Part of the control store's core: no I/O, no clock. A driver is lost with its connection or with its
node; it has ``driver_grace_s`` to come back through any node.

A named job that did not end well is resumed by its next driver. There are never two: while one is
connected others are refused, unless they take the job over; that ends it for the first, whose
number is no longer the job's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import (
    CreateJob,
    EndIdleJobs,
    EndJob,
    JobCreated,
    JobResumed,
    JobRow,
    JobRows,
    JobsEnded,
    ReadJob,
    ReadJobs,
    RestartingActor,
    ResumeJob,
)
from regrow.gcs.successions import Successions
from regrow.messages import CloseJob, JobClosed, JobOpened, OpenJob, Stop, SystemFailure

#: A cluster that ends with its last job waits so long for another.
LINGER_S: Final = 0.1
#: A new leader gives the driver of a named job so long to say that it is there.
CLAIM_S: Final = 3.0
#: How often it is looked whether anything is left in jobs without a driver.
IDLE_INTERVAL_S: Final = 1.0


class _Opener(Struct):
    """A driver that wants a named job."""

    asker: tuple[int, int]
    message: OpenJob
    #: Of a new run.
    root: bytes

    @property
    def who(self) -> tuple[tuple[int, int], int]:
        """The node, and its number for the client."""
        return self.asker, self.message.number


class _Job(Struct):
    root: bytes
    #: Through which its driver is connected; 0 while it is lost.
    node_id: int
    #: When it ends if its driver does not come back.
    lost_until: float | None = None
    ending: bool = False
    name: str = ""
    driver: int = 0
    #: It outlives its driver, until nothing in it is unfinished.
    detached: bool = False
    #: Who goes on with it once it has ended; not before ``claim_until``.
    next: _Opener | None = None
    claim_until: float = 0.0
    #: Who opened it, and what that was answered: a node whose session broke asks again.
    opened_for: tuple[tuple[int, int], int] = ((0, 0), 0)
    answer: JobOpened | None = None


class _Loading(Continuation):
    pass


class _Creating(Continuation):
    asker: tuple[int, int]
    number: int


class _Reopening(Continuation):
    asker: tuple[int, int]
    number: int
    driver: int


class _Resuming(Continuation):
    opener: _Opener


class _Looking(Continuation):
    pass


class _Ending(Continuation):
    pass


class Jobs:
    """Set by the core: ``closed(job)`` after Postgres has it as ended; ``sweep`` and
    ``restarting(actors)`` of a job that is resumed."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        self.successions = Successions(context, members)
        self._jobs: dict[int, _Job] = {}
        self._loaded = False
        #: Jobs being created or reopened.
        self._opening = 0
        self._stop_at: float | None = None
        #: Openers that came before the jobs were read, and names that are being opened.
        self._early: list[_Opener] = []
        self._early_ends: list[tuple[tuple[int, int], CloseJob]] = []
        self._names: dict[str, tuple[tuple[int, int], int]] = {}
        #: When it is looked next which jobs without a driver have ended.
        self._look_at = 0.0
        self.closed: Callable[[int], None]
        self.restarting: Callable[[list[RestartingActor]], None]
        self.sweep: Callable[[], None]
        context.on(_Loading, self._jobs_read)
        context.on(_Creating, self._created)
        context.on(_Reopening, self._job_read)
        context.on(_Resuming, self._resumed)
        context.on(_Looking, self._looked)
        context.on(_Ending, self._ended)

    # leadership

    def load(self) -> None:
        """At the start of our leadership: jobs that run, whose drivers are to say so."""
        self._context.execute(ReadJobs(), _Loading())

    def _jobs_read(self, then: _Loading, reply: Reply) -> None:
        rows: JobRows = reply.result
        self._loaded = True
        for job, root, name, driver, detached in rows.jobs:
            if job not in self._jobs:
                entry = _Job(root, 0, None, False, name, driver, detached)
                entry.claim_until = self._context.now + CLAIM_S
                self._lose(entry)
                self._add(job, entry)
        ends, self._early_ends = self._early_ends, []
        for key, message in ends:
            if self._members.is_alive(*key):
                self.close(self._members.nodes[key[0]], message)
        early, self._early = self._early, []
        for opener in early:
            self._opening -= 1
            self._open_named(opener)

    def _grace(self) -> float:
        return self._context.now + self._context.settings.driver_grace_s

    def _add(self, job: int, entry: _Job) -> None:
        self._jobs[job] = entry
        self._stop_at = None

    # opening

    def open(self, node: Node, message: OpenJob, root: bytes) -> None:
        """A driver arrived, or came back. ``root``: 16 random bytes for a new job."""
        self._stop_at = None
        if message.name and not message.job:
            self._open_named(_Opener(node.key, message, root))
            return
        if not message.job:
            self._opening += 1
            operation = CreateJob(self._context.epoch, root, message.entrypoint, message.pid)
            self._context.execute(operation, _Creating(node.key, message.number))
            return
        job = self._jobs.get(message.job)
        if job is not None and not job.ending and job.root:
            if message.driver != job.driver:
                self._refuse(node.key, message.number, _taken_over(job.name))
                return
            job.node_id, job.lost_until = node.node_id, None
            opened = JobOpened(message.number, message.job, job.root, None, job.driver)
            self._context.send(node.conn, opened)
        else:
            self._opening += 1
            reopening = _Reopening(node.key, message.number, message.driver)
            self._context.execute(ReadJob(message.job), reopening)

    def _created(self, then: _Creating, reply: Reply) -> None:
        created: JobCreated = reply.result
        operation: CreateJob = reply.operation
        self._opened(then.asker, JobOpened(then.number, created.job, operation.job_root))

    def _job_read(self, then: _Reopening, reply: Reply) -> None:
        row: JobRow = reply.result
        operation: ReadJob = reply.operation
        job = self._jobs.get(operation.job)
        if row.found and row.driver != then.driver:
            self._opening -= 1
            self._refuse(then.asker, then.number, _taken_over(row.name))
            return
        if row.found and row.running and not (job and job.ending):
            opened = JobOpened(then.number, operation.job, row.job_root, None, row.driver)
            self._opened(then.asker, opened, row.name, row.detached)
            return
        self._opening -= 1
        reason = "it has ended" if row.found else "it does not exist"
        error = SystemFailure(
            "control_store",
            f"job {operation.job} cannot be continued: {reason}. A job ends when its driver stays "
            f"away for longer than {self._context.settings.driver_grace_s:g} s.",
        )
        self._refuse(then.asker, then.number, error)

    def _refuse(self, asker: tuple[int, int], number: int, error: SystemFailure) -> None:
        if self._members.is_alive(*asker):
            conn = self._members.nodes[asker[0]].conn
            self._context.send(conn, JobOpened(number, 0, b"", error))

    def _opened(
        self, asker: tuple[int, int], opened: JobOpened, name: str = "", detached: bool = False
    ) -> None:
        self._opening -= 1
        node = self._members.nodes.get(asker[0]) if self._members.is_alive(*asker) else None
        here = node is not None and node.conn
        entry = _Job(opened.job_root, asker[0], None, False, name, opened.driver, detached)
        entry.opened_for, entry.answer = (asker, opened.number), opened
        if not here:  # nobody to tell: the driver asks again elsewhere
            self._lose(entry)
        self._add(opened.job, entry)
        if node is not None and here:
            self._context.send(node.conn, opened)

    # named jobs

    def _open_named(self, opener: _Opener) -> None:
        name = opener.message.name
        found = [item for item in self._jobs.items() if item[1].name == name]
        if self._asked_again(opener, found[0][1] if found else None):
            return
        if not self._loaded:
            self._opening += 1
            self._early.append(opener)
        elif name in self._names or (found and found[0][1].next is not None):
            self._refuse(opener.asker, opener.message.number, _running(name))
        elif not found:
            self._opening += 1
            self._resume(opener)
        else:
            self._opening += 1
            found[0][1].next = opener
            self._make_way(*found[0])

    def _asked_again(self, opener: _Opener, job: _Job | None) -> bool:
        """Whether the same client of the same node has asked before: it is answered once for that,
        and the same."""
        who = opener.who
        if job is not None and job.opened_for == who and job.answer is not None:
            if self._members.is_alive(*opener.asker):
                job.node_id, job.lost_until = opener.asker[0], None
                self._context.send(self._members.nodes[job.node_id].conn, job.answer)
            return True
        waiting = [other.who for other in self._early]
        if job is not None and job.next is not None:
            waiting.append(job.next.who)
        return who in waiting or self._names.get(opener.message.name) == who

    def _make_way(self, number: int, job: _Job) -> None:
        """The next driver of a job begins when the present one is gone, or gives way."""
        opener = job.next
        if opener is None or job.ending:
            return
        if (job.node_id or job.detached) and not opener.message.takeover:
            job.next = None
            self._opening -= 1
            self._refuse(opener.asker, opener.message.number, _running(job.name))
        elif job.node_id or job.claim_until <= self._context.now:
            self._end(number, job, "failed")

    def _resume(self, opener: _Opener) -> None:
        message = opener.message
        self._names[message.name] = opener.who
        operation = ResumeJob(
            self._context.epoch, message.name, opener.root, message.entrypoint, message.pid,
            message.runtime, message.detached, message.on_changed_code,
        )  # fmt: skip
        self._context.execute(operation, _Resuming(opener))

    def _resumed(self, then: _Resuming, reply: Reply) -> None:
        resumed: JobResumed = reply.result
        message = then.opener.message
        if not resumed.job:
            self._names.pop(message.name, None)
            self._opening -= 1
            self._refuse(then.opener.asker, message.number, _running(message.name))
            return
        opened = JobOpened(
            message.number, resumed.job, resumed.job_root, None, resumed.driver, resumed.runtime,
            resumed.versions,
        )  # fmt: skip

        def begin() -> None:
            self._names.pop(message.name, None)
            self._opened(then.opener.asker, opened, message.name, message.detached)
            self.restarting(resumed.restarting)
            if resumed.driver > 1:
                self.sweep()  # what goes on by itself has no holder yet

        if resumed.driver > 1:
            self.successions.after(resumed.job, resumed.driver - 1, begin)
        else:
            begin()

    # closing

    def close(self, node: Node, message: CloseJob) -> None:
        """A driver left for good, or its connection broke."""
        if not self._loaded:  # which driver the job has now, only Postgres knows
            self._early_ends.append((node.key, message))
            return
        job = self._jobs.get(message.job)
        if job is None:
            self._context.send(node.conn, JobClosed(message.job, message.driver))
        elif message.driver and message.driver != job.driver:
            # It was taken over, and the node may have missed that.
            self._context.send(node.conn, JobClosed(message.job, job.driver - 1))
        elif job.detached:
            if job.node_id == node.node_id:
                self._lose(job)
        elif not message.lost:
            self._end(message.job, job, "failed" if message.failed else "finished")
        elif job.node_id in (0, node.node_id):  # else it has come back through another node
            self._lose(job)

    def _lose(self, job: _Job) -> None:
        job.node_id = 0
        if job.lost_until is None and not job.detached:
            job.lost_until = self._grace()

    def resumed(self, node: Node) -> None:
        """Its drivers may have left while it had no session: it says which are there."""
        self._lose_all(node)
        self.successions.resumed(node)

    def node_died(self, node: Node) -> None:
        self._lose_all(node)
        self.successions.node_died(node)

    def _lose_all(self, node: Node) -> None:
        for job in self._jobs.values():
            if job.node_id == node.node_id:
                self._lose(job)

    def _end(self, number: int, job: _Job, status: str) -> None:
        if not job.ending:
            job.ending = True
            operation = EndJob(self._context.epoch, number, status)
            self._context.execute(operation, _Ending())

    def _ended(self, then: _Ending, reply: Reply) -> None:
        operation: EndJob = reply.operation
        self._gone(operation.job)

    def _gone(self, number: int) -> None:
        """Postgres has it as ended."""
        job = self._jobs.pop(number)
        self._members.broadcast(JobClosed(number, job.driver))
        self.closed(number)
        if job.next is not None:
            self._resume(job.next)
            return
        if self._context.settings.ephemeral and not self._jobs:
            self._stop_at = self._context.now + LINGER_S

    def tick(self) -> None:
        now = self._context.now
        self.successions.tick()
        for number, job in self._jobs.items():
            self._make_way(number, job)
            if job.lost_until is not None and job.lost_until <= now:
                self._end(number, job, "failed")
        alone = [n for n, job in self._jobs.items() if job.detached and not job.node_id]
        if alone and self._look_at <= now:
            self._look_at = now + IDLE_INTERVAL_S
            self._context.execute(EndIdleJobs(self._context.epoch, alone), _Looking())
        if self._stop_at is not None and self._stop_at <= now and self._idle:
            self._stop_at = None
            self._members.broadcast(Stop())
            self._context.stop_cluster("the last job ended")

    def _looked(self, then: _Looking, reply: Reply) -> None:
        ended: JobsEnded = reply.result
        for number in ended.jobs:
            if number in self._jobs and not self._jobs[number].ending:
                self._gone(number)

    @property
    def _idle(self) -> bool:
        return self._loaded and not self._jobs and not self._opening

    @property
    def busy(self) -> bool:
        return self._stop_at is not None or self.successions.busy

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        assert self._opening >= 0
        self.successions.check()
        for job in self._jobs.values():
            assert job.node_id == 0 or job.node_id in self._members.nodes
            assert job.node_id != 0 or job.detached or job.lost_until is not None


def _running(name: str) -> SystemFailure:
    return SystemFailure(
        "job_already_running",
        f"job {name!r} is run by another driver now (`regrow list jobs`). Wait until that has "
        "ended, or take the job from it with init(takeover=True).",
    )


def _taken_over(name: str) -> SystemFailure:
    return SystemFailure(
        "job_already_running",
        f"job {name!r} was taken over by another driver; this one can do nothing more. What it had "
        "submitted is in the log, and the other driver finds it there.",
    )
