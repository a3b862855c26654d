"""Jobs: opened by drivers, ended when their drivers leave or do not come back.

Part of the control store's core: no I/O, no clock. A driver is lost with its connection or with its
node; it has ``driver_grace_s`` to come back through any node.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from msgspec import Struct

from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import (
    CreateJob,
    EndJob,
    JobCreated,
    JobRow,
    JobRows,
    ReadJob,
    ReadJobs,
)
from regrow.messages import CloseJob, JobClosed, JobOpened, OpenJob, Stop, SystemFailure

#: A cluster that ends with its last job waits so long for another.
LINGER_S: Final = 0.1


class _Job(Struct):
    root: bytes
    #: Through which its driver is connected; 0 while it is lost.
    node_id: int
    #: When it ends if its driver does not come back.
    lost_until: float | None = None
    ending: bool = False


class _Loading(Continuation):
    pass


class _Creating(Continuation):
    asker: tuple[int, int]
    number: int


class _Reopening(Continuation):
    asker: tuple[int, int]
    number: int


class _Ending(Continuation):
    pass


class Jobs:
    """Set by the core: ``closed(job)`` after Postgres has it as ended."""

    def __init__(self, context: Context, members: Membership) -> None:
        self._context = context
        self._members = members
        self._jobs: dict[int, _Job] = {}
        self._loaded = False
        #: Jobs being created or reopened.
        self._opening = 0
        self._stop_at: float | None = None
        self.closed: Callable[[int], None]
        context.on(_Loading, self._jobs_read)
        context.on(_Creating, self._created)
        context.on(_Reopening, self._job_read)
        context.on(_Ending, self._ended)

    # leadership

    def load(self) -> None:
        """At the start of our leadership: jobs that run, whose drivers are to say so."""
        self._context.execute(ReadJobs(), _Loading())

    def _jobs_read(self, then: _Loading, reply: Reply) -> None:
        rows: JobRows = reply.result
        self._loaded = True
        for job, root in rows.jobs:
            if job not in self._jobs:
                self._add(job, _Job(root, 0, self._grace()))

    def _grace(self) -> float:
        return self._context.now + self._context.settings.driver_grace_s

    def _add(self, job: int, entry: _Job) -> None:
        self._jobs[job] = entry
        self._stop_at = None

    # opening

    def open(self, node: Node, message: OpenJob, root: bytes) -> None:
        """A driver arrived, or came back. ``root``: 16 random bytes for a new job."""
        self._stop_at = None
        if not message.job:
            self._opening += 1
            operation = CreateJob(self._context.epoch, root, message.entrypoint, message.pid)
            self._context.execute(operation, _Creating(node.key, message.number))
            return
        job = self._jobs.get(message.job)
        if job is not None and not job.ending and job.root:
            job.node_id, job.lost_until = node.node_id, None
            self._context.send(node.conn, JobOpened(message.number, message.job, job.root))
        else:
            self._opening += 1
            reopening = _Reopening(node.key, message.number)
            self._context.execute(ReadJob(message.job), reopening)

    def _created(self, then: _Creating, reply: Reply) -> None:
        created: JobCreated = reply.result
        operation: CreateJob = reply.operation
        self._opened(created.job, operation.job_root, then.asker, then.number)

    def _job_read(self, then: _Reopening, reply: Reply) -> None:
        row: JobRow = reply.result
        operation: ReadJob = reply.operation
        job = self._jobs.get(operation.job)
        if row.found and row.running and not (job and job.ending):
            self._opened(operation.job, row.job_root, then.asker, then.number)
            return
        self._opening -= 1
        reason = "it has ended" if row.found else "it does not exist"
        error = SystemFailure(
            "control_store",
            f"job {operation.job} cannot be continued: {reason}. A job ends when its driver stays "
            f"away for longer than {self._context.settings.driver_grace_s:g} s.",
        )
        if self._members.is_alive(*then.asker):
            conn = self._members.nodes[then.asker[0]].conn
            self._context.send(conn, JobOpened(then.number, operation.job, b"", error))

    def _opened(self, job: int, root: bytes, asker: tuple[int, int], number: int) -> None:
        self._opening -= 1
        node = self._members.nodes.get(asker[0]) if self._members.is_alive(*asker) else None
        if node is None or not node.conn:  # nobody to tell: the driver asks again elsewhere
            self._add(job, _Job(root, 0, self._grace()))
        else:
            self._add(job, _Job(root, node.node_id))
            self._context.send(node.conn, JobOpened(number, job, root))

    # closing

    def close(self, node: Node, message: CloseJob) -> None:
        """A driver left for good, or its connection broke."""
        job = self._jobs.get(message.job)
        if job is None and not self._loaded:
            job = self._jobs[message.job] = _Job(b"", 0, self._grace())
        if job is None:
            self._context.send(node.conn, JobClosed(message.job))
        elif not message.lost:
            self._end(message.job, job, "failed" if message.failed else "finished")
        elif job.node_id in (0, node.node_id):  # else it has come back through another node
            self._lose(job)

    def _lose(self, job: _Job) -> None:
        job.node_id = 0
        if job.lost_until is None:
            job.lost_until = self._grace()

    def resumed(self, node: Node) -> None:
        """Its drivers may have left while it had no session: it says which are there."""
        self.node_died(node)

    def node_died(self, node: Node) -> None:
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
        del self._jobs[operation.job]
        self._members.broadcast(JobClosed(operation.job))
        self.closed(operation.job)
        if self._context.settings.ephemeral and not self._jobs:
            self._stop_at = self._context.now + LINGER_S

    def tick(self) -> None:
        now = self._context.now
        for number, job in self._jobs.items():
            if job.lost_until is not None and job.lost_until <= now:
                self._end(number, job, "failed")
        if self._stop_at is not None and self._stop_at <= now and self._idle:
            self._stop_at = None
            self._members.broadcast(Stop())
            self._context.stop_cluster("the last job ended")

    @property
    def _idle(self) -> bool:
        return self._loaded and not self._jobs and not self._opening

    @property
    def busy(self) -> bool:
        return self._stop_at is not None

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        assert self._opening >= 0
        for job in self._jobs.values():
            assert job.node_id == 0 or job.node_id in self._members.nodes
            assert job.node_id != 0 or job.lost_until is not None
