"""The link between a client and its node: submitting, reading, holding; running, answering."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from regrow.messages.parts import FunctionDef, Return, SystemFailure, Value, WireMessage, WirePart


class TaskDone(WirePart, frozen=True):
    """A worker finished a task. On an error, ``returns`` has one element, which all indices
    share."""

    task_id: bytes
    attempt: int
    status: int
    returns: list[Return]
    duration_us: int
    #: The exception is one of ``retry_exceptions``: run again if a retry is left.
    retry: bool = False


class Location(WirePart, frozen=True):
    """Where in the arena (or in a fallback file) a client finds an object that is pinned for it."""

    object_id: bytes
    attempt: int
    offset: int
    size: int
    #: Empty: in the arena. Else a file to map.
    path: str = ""


class RunTask(WirePart, frozen=True):
    """A task as it is given to a worker. ``inline`` and ``located`` together hold all ``deps``."""

    spec: Raw
    attempt: int
    inline: list[Value]
    located: list[Location]
    #: Numbers of the GPUs it may use.
    gpus: list[int] = []
    #: Of an actor's creation that runs again: the object that is its saved state.
    restore: bytes = b""
    #: Of an actor's call that is replayed to bring it back: what ``wait`` and timed ``get`` said.
    answers: bytes | None = None
    #: Which driver of its job what it submits is to descend from.
    driver: int = 0


class PutValue(WirePart, frozen=True):
    """A small put: the bytes themselves."""

    object_id: bytes
    #: The task that put it.
    parent_id: bytes
    job: int
    digest: bytes
    data: bytes
    refs: list[bytes] = []


# --- client -> node -------------------------------------------------------------------------------


class Hello(WireMessage, frozen=True, tag=1):
    """First on a connection, before the node reads anything else."""

    version: int
    token: str
    #: "driver" or "worker"
    role: str
    pid: int
    #: Of a worker: the number under which the node asked for it. Of a driver that reconnects: its
    #: job.
    number: int = 0
    durability: str = "commit"
    #: Of a driver: what ``regrow list jobs`` shows.
    entrypoint: str = ""
    #: Of a driver of a named job: the name, and whether it takes the job from another driver.
    job_name: str = ""
    takeover: bool = False
    #: Of one that reconnects: which driver of the job it is.
    driver: int = 0
    #: Versions of Python and regrow.
    runtime: str = ""
    #: The job outlives its driver: it ends when nothing in it is unfinished.
    detached: bool = False
    #: What becomes of results of functions whose code has changed.
    on_changed_code: str = "error"


class Submit(WireMessage, frozen=True, tag=2):
    """Tasks, in order. ``resent`` after a reconnection: they may be known already."""

    specs: list[Raw]
    resent: bool = False


class DefineFunctions(WireMessage, frozen=True, tag=3):
    """Sent before the first spec that names them."""

    functions: list[FunctionDef]


class Put(WireMessage, frozen=True, tag=4):
    """Small puts."""

    values: list[PutValue]


class Create(WireMessage, frozen=True, tag=5):
    """Asks for room in the arena; answered by ``Created``. The client then writes and seals."""

    object_id: bytes
    attempt: int
    size: int


class Seal(WireMessage, frozen=True, tag=6):
    """A large put is written (a large result is sealed by its ``TaskDone`` instead)."""

    object_id: bytes
    parent_id: bytes
    job: int
    size: int
    digest: bytes
    refs: list[bytes] = []


class Subscribe(WireMessage, frozen=True, tag=7):
    """Asks for a ``Values`` about each object once it is there; own submissions need not ask."""

    object_ids: list[bytes]


class Read(WireMessage, frozen=True, tag=8):
    """Asks for large objects to be brought here and pinned; each is answered in a ``Located``."""

    object_ids: list[bytes]


class Release(WireMessage, frozen=True, tag=9):
    """Pins that the client no longer needs: (object id, attempt)."""

    pins: list[tuple[bytes, int]]


class Borrow(WireMessage, frozen=True, tag=10):
    """The client now holds these references without having made them."""

    object_ids: list[bytes]


class Drop(WireMessage, frozen=True, tag=11):
    """The client holds these references no longer."""

    object_ids: list[bytes]


class Done(WireMessage, frozen=True, tag=12):
    """A worker's finished tasks."""

    tasks: list[TaskDone]


class Returned(WireMessage, frozen=True, tag=13):
    """Tasks that a worker had queued and gives back unstarted."""

    task_ids: list[bytes]


class Checkpoint(WireMessage, frozen=True, tag=30):
    """An actor's state, as an object that its worker has just put. It contains every call whose
    result was sent before; ``with_next``: also the one whose result is sent next."""

    object_id: bytes
    #: Saved by the class's own ``save_checkpoint``.
    custom: bool
    with_next: bool = False


class Blocked(WireMessage, frozen=True, tag=14):
    """The running task waits (in get, wait or for credit): its CPU can be used by others."""

    task_id: bytes


class Unblocked(WireMessage, frozen=True, tag=15):
    """The running task goes on. It does not wait for its CPU back, as in Ray."""

    task_id: bytes


class Output(WireMessage, frozen=True, tag=16):
    """Lines that a worker's program printed. ``stream`` is 1 or 2."""

    stream: int
    job: int
    label: str
    lines: list[str]
    #: How far in the worker's log everything has been told now (bytes).
    end: int = 0


class Ask(WireMessage, frozen=True, tag=17):
    """A question that is answered by one ``Answer`` with the same number."""

    number: int
    #: "nodes", "resources", "name_actor", "get_actor", "kill_actor", "sql_url", ...
    what: str
    #: msgpack of the arguments.
    body: bytes = b""


class Bye(WireMessage, frozen=True, tag=18):
    """The client leaves in good order; of a driver: its job ends."""

    failed: bool = False
    #: Of an actor that ends itself: why. Its calls that have no result fail with it.
    reason: str = ""


# --- node -> client -------------------------------------------------------------------------------


class Welcome(WireMessage, frozen=True, tag=40):
    """The answer to ``Hello``."""

    node_id: int
    incarnation: int
    job: int
    job_root: bytes
    arena_size: int
    #: Where to receive the arena's descriptor (a Unix socket); workers inherit theirs.
    arena_path: str
    storage: str
    #: Submissions that may wait for their commit.
    window: int
    home: str = ""
    #: Of a named job: which driver this is (1: the first), and what the first one ran.
    driver: int = 0
    runtime: str = ""
    #: Of one that is resumed: (function, fingerprint) of what has finished, oldest first.
    versions: list[tuple[str, bytes]] = []


class Refused(WireMessage, frozen=True, tag=41):
    """The answer to a ``Hello`` that is not accepted; the connection closes."""

    code: str
    message: str


class Committed(WireMessage, frozen=True, tag=42):
    """So many more of the client's specs and puts are in Postgres: its window moves on."""

    count: int


class Values(WireMessage, frozen=True, tag=43):
    """Objects that are there (or will never be: errors are values too)."""

    values: list[Value]


class Created(WireMessage, frozen=True, tag=44):
    """Room for an object. With ``error`` there is none."""

    object_id: bytes
    location: Location | None
    error: SystemFailure | None = None


class Located(WireMessage, frozen=True, tag=45):
    """Objects that were asked for with ``Read``, pinned."""

    locations: list[Location]
    #: Those that cannot be had, as values with SYSTEM_ERROR; or small ones that need no reading.
    values: list[Value] = []


class Run(WireMessage, frozen=True, tag=46):
    """Tasks for a worker, in order; ``functions`` it has not seen before."""

    tasks: list[RunTask]
    functions: list[FunctionDef] = []


class TakeBack(WireMessage, frozen=True, tag=47):
    """Asks a worker to return so many of its unstarted tasks, newest first."""

    count: int


class Printed(WireMessage, frozen=True, tag=48):
    """Output of workers, for the driver to print."""

    node_id: int
    pid: int
    output: Output


class Answer(WireMessage, frozen=True, tag=49):
    """To an ``Ask``."""

    number: int
    body: bytes
    error: SystemFailure | None = None


class Exit(WireMessage, frozen=True, tag=50):
    """Asks a worker to end after its present task."""


class ReplayDifference(WireMessage, frozen=True, tag=51):
    """A re-executed task made another result than the one that was committed; a warning."""

    object_id: bytes
    name: str


ClientMessage = (
    Hello | Submit | DefineFunctions | Put | Create | Seal | Subscribe | Read | Release
    | Borrow | Drop
    | Done | Checkpoint | Returned | Blocked | Unblocked | Output | Ask | Bye
)  # fmt: skip
NodeMessage = (
    Welcome | Refused | Committed | Values | Created | Located | Run | TakeBack | Printed | Answer
    | Exit | ReplayDifference
)  # fmt: skip

client_decoder: Final = msgspec.msgpack.Decoder(ClientMessage)
node_decoder: Final = msgspec.msgpack.Decoder(NodeMessage)
