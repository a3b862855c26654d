"""What the control store can be asked: the operations on Postgres, as values.

The cores never see SQL: a node's core emits an ``Append``, the control store's core emits the
others, and a *store* carries them out, one transaction each, and returns the matching result.
There are two stores: Postgres (``regrow.gcs.store``, and ``regrow.gcs.log`` for appends) and the
simulated one; one conformance suite runs on both.

Every write of the control store carries the leader's epoch and is refused (``NotLeader``) if
another has taken over; every append carries the node's incarnation and batch number.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from regrow.messages import (
    FunctionDef,
    HeldTask,
    JobCode,
    NodeView,
    Resources,
    Return,
    SystemFailure,
    TaskHeader,
    TaskState,
    Value,
)


class _Value(Struct, frozen=True, gc=False):
    """Base of the operations."""


# --- the log of a node ----------------------------------------------------------------------------


class Outcome(_Value, frozen=True):
    """How a task ended. On an error ``returns`` has one element, which all its objects share."""

    task_id: bytes
    attempt: int
    status: int
    returns: list[Return]
    #: Microseconds of the run.
    duration_us: int = 0
    #: Place in the order in which the actor executed its calls, from 1; 0 for other tasks.
    actor_seq: int = 0
    #: A word for the ``error`` column: the exception's type or the failure's code.
    error: str = ""


class Submitted(_Value, frozen=True):
    """A spec enters the log, with its outcome if the task finished before this flush."""

    header: TaskHeader
    #: The bytes the client made, the whole TaskSpec.
    spec: bytes
    #: The node that waits for the result.
    submitter: int
    #: Who runs it: (node, incarnation).
    holder: tuple[int, int]
    attempt: int = 1
    outcome: Outcome | None = None


class NewHolder(_Value, frozen=True):
    """An unfinished task moves to another node, or begins its next attempt on this one."""

    task_id: bytes
    attempt: int
    holder: tuple[int, int]


class PutRow(_Value, frozen=True):
    """An object that ``put`` made; without ``data`` it is large."""

    object_id: bytes
    parent_id: bytes
    job: int
    size: int
    digest: bytes
    data: bytes | None
    refs: list[bytes]


class Event(_Value, frozen=True):
    """Something people want to find in ``regrow.events``."""

    kind: str
    subject: bytes
    message: str


class Batch(_Value, frozen=True):
    """The records of one append, all or nothing."""

    functions: list[FunctionDef] = []
    submitted: list[Submitted] = []
    #: Of tasks whose specs an earlier batch logged.
    outcomes: list[Outcome] = []
    holders: list[NewHolder] = []
    puts: list[PutRow] = []
    #: (object id, path): its bytes are now in storage.
    stored: list[tuple[bytes, str]] = []
    #: (actor id, job, alive, error): life and death of the node's actors.
    actors: list[tuple[bytes, int, bool, SystemFailure | None]] = []
    #: (actor id, place of the last call it contains, object, saved by the class itself): states of
    #: actors; without an object: one that could not be read.
    checkpoints: list[tuple[bytes, int, bytes, bool]] = []
    events: list[Event] = []
    #: (task id, differs from the committed digests): re-executions for lost objects that ended
    #: here.
    rebuilt: list[tuple[bytes, bool]] = []


class Append(_Value, frozen=True):
    """One call of ``regrow.append``. Batch numbers of an incarnation start at 1 and have no
    gaps."""

    node: int
    incarnation: int
    number: int
    batch: Batch


#: The batch is in (also when it was already: the answer to a batch that is sent again).
APPLIED: Final = "applied"
#: The incarnation is dead; nothing was written.
FENCED: Final = "fenced"
#: The database has an older batch as the last one: it was restored from the past. Nothing written.
BEHIND: Final = "behind"
#: A result contradicts a committed one, or is of a task held by another; nothing was written.
CONFLICT: Final = "conflict"


class AppendResult(_Value, frozen=True):
    """``verdict`` is one of the four above; ``detail`` names the task of a conflict."""

    verdict: str
    detail: str = ""


# --- leadership and membership --------------------------------------------------------------------


class Lead(_Value, frozen=True):
    """Acquire or renew leadership (epoch 0: acquire). -> Leadership"""

    holder: str
    epoch: int
    ttl_s: float


class Leadership(_Value, frozen=True):
    """``epoch`` 0: another one leads."""

    epoch: int
    cluster_id: bytes
    #: Postgres's clock, seconds since 1970.
    now: float


class NotLeader(_Value, frozen=True):
    """The write was refused: the epoch is over. Nothing was written."""


class RegisterNode(_Value, frozen=True):
    """A node joins (``view.node_id`` 0) or comes back, as a new incarnation: an incarnation of it
    that was still alive is fenced in the same transaction. -> NodeRegistered"""

    epoch: int
    view: NodeView
    ttl_s: float


class NodeRegistered(_Value, frozen=True):
    """The identity, and the incarnation that was fenced by it (0: none)."""

    node_id: int
    incarnation: int
    fenced: int


class ReadLeases(_Value, frozen=True):
    """-> Leases"""


class Leases(_Value, frozen=True):
    """Of nodes alive: (node, incarnation, seconds left on Postgres's clock; negative: expired).

    ``database_up_s``: how long the server is up (after a restart a lease is given time)."""

    nodes: list[tuple[int, int, float]]
    database_up_s: float


class Fence(_Value, frozen=True):
    """Declares an incarnation dead and reassigns, in the same transaction, every unfinished task
    whose holder is not alive: to its submitter if that is alive, else to one of ``heirs`` in turn,
    with the next attempt. Without heirs the tasks keep their dead holder until a ``Sweep``. ->
    NodeFenced

    ``only_expired``: does nothing if the lease was renewed meanwhile."""

    epoch: int
    node_id: int
    incarnation: int
    reason: str
    heirs: list[tuple[int, int]]
    only_expired: bool = False


class NodeFenced(_Value, frozen=True):
    """``landed`` False: it was dead already, or its lease was renewed. ``reassigned`` by new
    holder."""

    landed: bool
    reassigned: dict[int, list[HeldTask]]
    functions: list[FunctionDef]
    #: Actors that lived there and are dead: (actor id, job).
    actors: list[tuple[bytes, int]] = []
    #: Those that restart.
    restarting: list[RestartingActor] = []


class RestartingActor(_Value, frozen=True):
    """An actor whose process is gone. ``home`` is where it lived, or was being restored."""

    actor_id: bytes
    job: int
    home: tuple[int, int]
    #: What it asks for; None means that it lives without a CPU.
    resources: Resources | None = None


class RestoreActor(_Value, frozen=True):
    """An actor that restarts is given to ``target``, if its home is still ``home`` (so two nodes
    never restore one). Its creation and calls are rebuilds of that node. -> ActorRestored"""

    epoch: int
    actor_id: bytes
    home: tuple[int, int]
    target: tuple[int, int]


class ActorRestored(_Value, frozen=True):
    """``granted`` False: it is not to be restored there; ``error`` if that is because it is dead.
    ``calls``: those that were executed, in that order."""

    granted: bool
    job: int = 0
    creation: HeldTask | None = None
    calls: list[HeldTask] = []
    last_seq: int = 0
    functions: list[FunctionDef] = []
    #: The object that is its newest saved state, after which call; calls are those after it.
    checkpoint: bytes = b""
    checkpoint_seq: int = 0
    custom: bool = False
    error: SystemFailure | None = None


class TrimCalls(_Value, frozen=True):
    """Takes the arguments of actors' calls out of the log that both of the saved states contain
    which are kept of each actor, and whose bytes are safe. ``limit``: calls at most; more wait for
    the next time. -> CallsTrimmed"""

    epoch: int
    limit: int


class CallsTrimmed(_Value, frozen=True):
    """``more``: there is something left."""

    more: bool


class Sweep(_Value, frozen=True):
    """Reassigns, like Fence, every unfinished task whose holder is not alive. -> NodeFenced"""

    epoch: int
    heirs: list[tuple[int, int]]


class ReadGiven(_Value, frozen=True):
    """Unfinished tasks that this incarnation holds and did not submit: a Fence, Sweep or NodeLeft
    gave them to it, or a peer handed them over. Read when a node resumes its session, or asks for
    what it should be making itself: the message that told it may have been lost, with the peer.
    -> GivenRows"""

    node_id: int
    incarnation: int
    #: Those that it asked for; of them also what an earlier incarnation of it submitted.
    asked: list[bytes] = []


class GivenRows(_Value, frozen=True):
    """With the functions they need."""

    tasks: list[HeldTask]
    functions: list[FunctionDef]
    #: Actors that it is restoring, or whose process died there.
    restarting: list[RestartingActor] = []


class NodeLeft(_Value, frozen=True):
    """A node stopped in good order: as Fence, without an attempt used up. -> NodeFenced"""

    epoch: int
    node_id: int
    incarnation: int
    heirs: list[tuple[int, int]]
    #: Empty: it was stopped.
    reason: str = ""


class NodeDrains(_Value, frozen=True):
    """A node gives its work away and is about to go: for SQL readers. -> Done"""

    epoch: int
    node_id: int
    incarnation: int
    reason: str


# --- jobs, actors, functions ----------------------------------------------------------------------


class CreateJob(_Value, frozen=True):
    """A new job with its partition. -> JobCreated"""

    epoch: int
    job_root: bytes
    entrypoint: str
    pid: int


class JobCreated(_Value, frozen=True):
    """Its number."""

    job: int


class ResumeJob(_Value, frozen=True):
    """The unfinished run of a named job goes on with a new driver, or a new run begins.

    What had failed or was cancelled is taken out of the log, so that it runs again; actors that
    the end of the job's last driver ended restart if they may. -> JobResumed
    """

    epoch: int
    name: str
    #: Of a new run; and what tells that this request comes again.
    job_root: bytes
    entrypoint: str
    pid: int
    runtime: str = ""
    #: It outlives its driver.
    detached: bool = False
    on_changed_code: str = "error"


class JobResumed(_Value, frozen=True):
    """``job`` 0: its run has not ended."""

    job: int
    job_root: bytes = b""
    #: 1: a new run.
    driver: int = 0
    runtime: str = ""
    restarting: list[RestartingActor] = []
    #: (function, fingerprint) of what has finished, oldest first.
    versions: list[tuple[str, bytes]] = []


class ReadJobCode(_Value, frozen=True):
    """What has finished in a job, and what is to be done where its code has changed. -> JobCode"""

    job: int


class ReadJob(_Value, frozen=True):
    """-> JobRow"""

    job: int


class JobRow(_Value, frozen=True):
    """``found`` False: no such job. ``running``: it has not ended."""

    found: bool
    job_root: bytes = b""
    running: bool = False
    name: str = ""
    driver: int = 0
    detached: bool = False


class ReadJobs(_Value, frozen=True):
    """Of jobs that have not ended. -> JobRows"""


class JobRows(_Value, frozen=True):
    """(job, job root, name, driver, detached)"""

    jobs: list[tuple[int, bytes, str, int, bool]]


class EndJob(_Value, frozen=True):
    """The job ends as "finished" or "failed"; its unfinished tasks are marked cancelled, its actors
    dead, in the same transaction. -> Done"""

    epoch: int
    job: int
    status: str


class EndIdleJobs(_Value, frozen=True):
    """Ends those of these jobs in which nothing is unfinished, and no actor lives: as "failed" if
    something in them failed. -> JobsEnded"""

    epoch: int
    jobs: list[int]


class JobsEnded(_Value, frozen=True):
    """Those that have ended, now or before."""

    jobs: list[int]


class Done(_Value, frozen=True):
    """It was written."""


class ReserveActorName(_Value, frozen=True):
    """-> ActorRow (the holder of the name, ours if it was free)"""

    epoch: int
    actor_id: bytes
    name: str
    namespace: str
    job: int
    function_id: bytes
    methods: bytes = b""


class ReadActor(_Value, frozen=True):
    """By id, or by name where the id is empty. -> ActorRow. An actor that was never named and has
    not started yet is found through its creation task."""

    actor_id: bytes
    name: str = ""
    namespace: str = ""


class ActorRow(_Value, frozen=True):
    """``found`` False: none. ``state``: "pending", "alive", "restarting", "dead"."""

    found: bool
    actor_id: bytes = b""
    state: str = "pending"
    node_id: int = 0
    incarnation: int = 0
    name: str = ""
    job: int = 0
    function_id: bytes = b""
    error: SystemFailure | None = None
    methods: bytes = b""


class ReadFunctions(_Value, frozen=True):
    """-> FunctionRows"""

    function_ids: list[bytes]


class FunctionRows(_Value, frozen=True):
    """Those that exist."""

    functions: list[FunctionDef]


# --- recovery -------------------------------------------------------------------------------------


class ReadTasks(_Value, frozen=True):
    """-> TaskRows, in the order asked"""

    task_ids: list[bytes]
    #: Those of which it is told what was submitted, too.
    keyed: list[bytes] = []


class TaskRows(_Value, frozen=True):
    """``holder`` of a pending task is 0 if that incarnation is dead (then ``Sweep`` first)."""

    tasks: list[TaskState]


class ReadObjects(_Value, frozen=True):
    """-> ObjectRows, in the order asked"""

    object_ids: list[bytes]


class ObjectRow(_Value, frozen=True):
    """What the log knows of an object.

    ``known`` False: nothing (its spec is not committed yet, or never will be). A finished one has a
    ``value`` (data only where small). ``stored`` is a storage path or empty. ``producer`` is the
    task that makes it again: for a put, the task that put it; empty for a driver's put."""

    object_id: bytes
    known: bool
    status: int = 0
    #: Of a pending one: the node that holds its task, 0 if that incarnation is dead.
    holder: int = 0
    value: Value | None = None
    stored: str = ""
    producer: bytes = b""
    #: May its producer run again: -1 without limit, 0 never (an actor's call: 0).
    max_retries: int = 0
    #: "task", "actor_call", "put", "driver_put"
    made_by: str = "task"


class ObjectRows(_Value, frozen=True):
    """In the order asked."""

    objects: list[ObjectRow]


class ReadLineage(_Value, frozen=True):
    """The ancestry of lost objects: their producers, the producers of the large arguments of those,
    and so on, ``depth`` levels at most. -> Lineage"""

    task_ids: list[bytes]
    depth: int = 200
    limit: int = 5000


class LineageTask(_Value, frozen=True):
    """A task of an ancestry. ``needs`` are its arguments (top-level and nested) that are not small:
    whether copies of them exist only the directory knows."""

    task_id: bytes
    status: int
    kind: int
    max_retries: int
    needs: list[bytes]
    #: Paths of those of ``needs`` that are in storage: (object id, path).
    stored: list[tuple[bytes, str]]
    digests: list[bytes]
    level: int
    #: What it asks for; None means one CPU.
    resources: Resources | None = None


class Lineage(_Value, frozen=True):
    """Breadth first. ``complete`` False: limits were met; ask on from the last level's needs."""

    tasks: list[LineageTask]
    complete: bool


class GrantRebuilds(_Value, frozen=True):
    """Writes one ``regrow.rebuilds`` row per task (its holder, open) and returns their specs, in
    the order asked. A task with an open rebuild whose holder is alive and is another one is left
    out; one of the same holder is granted again. -> RebuildsGranted"""

    epoch: int
    task_ids: list[bytes]
    holder: tuple[int, int]


class RebuildsGranted(_Value, frozen=True):
    """``digests`` of each task's returns are in its HeldTask."""

    tasks: list[HeldTask]
    functions: list[FunctionDef]
    #: Those left out: (task id, node that rebuilds it).
    elsewhere: list[tuple[bytes, int]]


class ReadNodes(_Value, frozen=True):
    """-> NodeRows (all that ever were, newest incarnation each)"""


class NodeRows(_Value, frozen=True):
    """As last written."""

    nodes: list[NodeView]


class WriteEvent(_Value, frozen=True):
    """-> Done"""

    epoch: int
    event: Event


class UpdateResources(_Value, frozen=True):
    """A node's totals, for SQL readers. -> Done"""

    epoch: int
    node_id: int
    total: Resources


Operation = (
    Lead | RegisterNode | ReadLeases | Fence | Sweep | NodeLeft | NodeDrains | ReadGiven
    | CreateJob | ResumeJob | ReadJobCode
    | ReadJob | ReadJobs | EndJob | EndIdleJobs | ReserveActorName | ReadActor | ReadFunctions
    | ReadTasks | ReadObjects | ReadLineage | GrantRebuilds | RestoreActor | ReadNodes | WriteEvent
    | UpdateResources | TrimCalls
)  # fmt: skip
Result = (
    Leadership | NotLeader | NodeRegistered | Leases | NodeFenced | GivenRows | JobCreated
    | JobResumed | JobRow | JobRows | JobsEnded | Done | ActorRow | FunctionRows | TaskRows
    | JobCode | ObjectRows | Lineage | RebuildsGranted | NodeRows | ActorRestored
    | CallsTrimmed
)  # fmt: skip
