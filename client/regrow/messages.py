"""The messages of every link: client <-> node, node <-> node, node <-> control store.

All are msgspec structs that travel as msgpack arrays; a wire message *is* an event of the core that
receives it.  Messages carry batches: a loop turn sends one message of many items, not many
messages. A task's spec travels and is logged as the bytes its client made; nodes decode its header
only.

Ids are bytes (``regrow.ids``); sizes are bytes; resources are in ten-thousandths
(``config.RESOURCE_UNIT``); times are seconds unless the name says otherwise.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw, Struct

PROTOCOL_VERSION: Final = 1

# What a task is.
TASK: Final = 0
ACTOR_CREATION: Final = 1
ACTOR_CALL: Final = 2

# The status of a task or an object.
PENDING: Final = 0
OK: Final = 1
#: The program raised: ``data`` is the packed RayTaskError.
TASK_ERROR: Final = 2
#: The system gave up: ``data`` is a packed ``SystemFailure``.
SYSTEM_ERROR: Final = 3

# Flags of a spec.
#: The submitter's replies need not wait for the commit (``durability="async"``).
ASYNC: Final = 1
#: The program may ask for a retry of an exception (``retry_exceptions``).
RETRY_EXCEPTIONS: Final = 2
#: The spec's id came from ``options(key=...)``.
KEYED: Final = 4

Resources = dict[str, int]


class _Wire(Struct, array_like=True, frozen=True, gc=False):
    """Base of the parts of messages."""


class TaskHeader(_Wire, frozen=True):
    """The part of a spec that nodes decode. A full spec is a ``TaskSpec``, whose first fields these
    are: msgspec skips the rest."""

    task_id: bytes
    parent_id: bytes
    #: Number of the job (``regrow.jobs.job``).
    job: int
    function_id: bytes
    #: What people call it: the function's name, ``Class.__init__`` or ``Class.method``.
    name: str
    kind: int
    #: Of an actor's creation or call: the actor (its creation task's id); else empty.
    actor_id: bytes
    #: Objects that are top-level arguments: the task starts when all are there.
    deps: list[bytes]
    #: References nested in the arguments: part of the lineage and kept alive, not waited for.
    nested: list[bytes]
    #: None means one CPU (for an actor's call: nothing).
    resources: Resources | None
    num_returns: int
    #: -1 is without limit.
    max_retries: int
    flags: int
    #: "" or "SPREAD" or "node:<id>" / "node:<id>:soft".
    strategy: str


class TaskSpec(TaskHeader, frozen=True):
    """What a client submits. Only the client and the worker look at what follows the header."""

    #: Packed ``(args, kwargs)``; top-level references are ``Placeholder(i)`` into ``deps``.
    args: bytes
    #: Of an actor's call.
    method: str = ""
    #: Packed dict of what only the worker needs (``retry_exceptions`` types, actor's options, ...).
    options: bytes = b""


class Value(_Wire, frozen=True):
    """An object as it is told to whoever waits for it."""

    object_id: bytes
    status: int
    size: int
    #: The packed bytes where they are small, else None: then the object must be read.
    data: bytes | None
    digest: bytes = b""
    #: References inside the value.
    refs: list[bytes] = []


class SystemFailure(_Wire, frozen=True):
    """Why the system gave up; packed as the ``data`` of a SYSTEM_ERROR."""

    #: ``regrow.exceptions.BY_CODE``
    code: str
    message: str


class Return(_Wire, frozen=True):
    """One return value, as its worker tells it. Without ``data`` it lies in the arena, sealed."""

    size: int
    digest: bytes
    data: bytes | None
    refs: list[bytes] = []


class TaskDone(_Wire, frozen=True):
    """A worker finished a task. On an error, ``returns`` has one element, which all indices
    share."""

    task_id: bytes
    attempt: int
    status: int
    returns: list[Return]
    duration_us: int
    #: The exception is one of ``retry_exceptions``: run again if a retry is left.
    retry: bool = False


class Location(_Wire, frozen=True):
    """Where in the arena (or in a fallback file) a client finds an object that is pinned for it."""

    object_id: bytes
    attempt: int
    offset: int
    size: int
    #: Empty: in the arena. Else a file to map.
    path: str = ""


class RunTask(_Wire, frozen=True):
    """A task as it is given to a worker. ``inline`` and ``located`` together hold all ``deps``."""

    spec: Raw
    attempt: int
    inline: list[Value]
    located: list[Location]
    #: Numbers of the GPUs it may use.
    gpus: list[int] = []


class FunctionDef(_Wire, frozen=True):
    """A function or class, content-addressed. ``pickled`` is cloudpickle's bytes."""

    function_id: bytes
    name: str
    pickled: bytes
    #: Fingerprint of its code object, for detecting a change on resume.
    fingerprint: bytes = b""


class PutValue(_Wire, frozen=True):
    """A small put: the bytes themselves."""

    object_id: bytes
    #: The task that put it.
    parent_id: bytes
    job: int
    digest: bytes
    data: bytes
    refs: list[bytes] = []


class _Message(Struct, array_like=True, frozen=True, gc=False):
    """Base of the messages."""


# --- client -> node -------------------------------------------------------------------------------


class Hello(_Message, frozen=True, tag=1):
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


class Submit(_Message, frozen=True, tag=2):
    """Tasks, in order. ``resent`` after a reconnection: they may be known already."""

    specs: list[Raw]
    resent: bool = False


class DefineFunctions(_Message, frozen=True, tag=3):
    """Sent before the first spec that names them."""

    functions: list[FunctionDef]


class Put(_Message, frozen=True, tag=4):
    """Small puts."""

    values: list[PutValue]


class Create(_Message, frozen=True, tag=5):
    """Asks for room in the arena; answered by ``Created``. The client then writes and seals."""

    object_id: bytes
    attempt: int
    size: int


class Seal(_Message, frozen=True, tag=6):
    """A large put is written (a large result is sealed by its ``TaskDone`` instead)."""

    object_id: bytes
    parent_id: bytes
    job: int
    size: int
    digest: bytes
    refs: list[bytes] = []


class Subscribe(_Message, frozen=True, tag=7):
    """Asks for a ``Values`` about each object once it is there; own submissions need not ask."""

    object_ids: list[bytes]


class Read(_Message, frozen=True, tag=8):
    """Asks for large objects to be brought here and pinned; each is answered in a ``Located``."""

    object_ids: list[bytes]


class Release(_Message, frozen=True, tag=9):
    """Pins that the client no longer needs: (object id, attempt)."""

    pins: list[tuple[bytes, int]]


class Borrow(_Message, frozen=True, tag=10):
    """The client now holds these references without having made them."""

    object_ids: list[bytes]


class Drop(_Message, frozen=True, tag=11):
    """The client holds these references no longer."""

    object_ids: list[bytes]


class Done(_Message, frozen=True, tag=12):
    """A worker's finished tasks."""

    tasks: list[TaskDone]


class Returned(_Message, frozen=True, tag=13):
    """Tasks that a worker had queued and gives back unstarted."""

    task_ids: list[bytes]


class Blocked(_Message, frozen=True, tag=14):
    """The running task waits (in get, wait or for credit): its CPU can be used by others."""

    task_id: bytes


class Unblocked(_Message, frozen=True, tag=15):
    """The running task goes on. It does not wait for its CPU back, as in Ray."""

    task_id: bytes


class Output(_Message, frozen=True, tag=16):
    """Lines that a worker's program printed. ``stream`` is 1 or 2."""

    stream: int
    job: int
    label: str
    lines: list[str]


class Ask(_Message, frozen=True, tag=17):
    """A question that is answered by one ``Answer`` with the same number."""

    number: int
    #: "nodes", "resources", "name_actor", "get_actor", "kill_actor", "sql_url", ...
    what: str
    #: msgpack of the arguments.
    body: bytes = b""


class Bye(_Message, frozen=True, tag=18):
    """The client leaves in good order; of a driver: its job ends."""

    failed: bool = False


# --- node -> client -------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, tag=40):
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


class Refused(_Message, frozen=True, tag=41):
    """The answer to a ``Hello`` that is not accepted; the connection closes."""

    code: str
    message: str


class Committed(_Message, frozen=True, tag=42):
    """So many more of the client's specs and puts are in Postgres: its window moves on."""

    count: int


class Values(_Message, frozen=True, tag=43):
    """Objects that are there (or will never be: errors are values too)."""

    values: list[Value]


class Created(_Message, frozen=True, tag=44):
    """Room for an object. With ``error`` there is none."""

    object_id: bytes
    location: Location | None
    error: SystemFailure | None = None


class Located(_Message, frozen=True, tag=45):
    """Objects that were asked for with ``Read``, pinned."""

    locations: list[Location]
    #: Those that cannot be had, as values with SYSTEM_ERROR; or small ones that need no reading.
    values: list[Value] = []


class Run(_Message, frozen=True, tag=46):
    """Tasks for a worker, in order; ``functions`` it has not seen before."""

    tasks: list[RunTask]
    functions: list[FunctionDef] = []


class TakeBack(_Message, frozen=True, tag=47):
    """Asks a worker to return so many of its unstarted tasks, newest first."""

    count: int


class Printed(_Message, frozen=True, tag=48):
    """Output of workers, for the driver to print."""

    node_id: int
    pid: int
    output: Output


class Answer(_Message, frozen=True, tag=49):
    """To an ``Ask``."""

    number: int
    body: bytes
    error: SystemFailure | None = None


class Exit(_Message, frozen=True, tag=50):
    """Asks a worker to end after its present task."""


class ReplayDifference(_Message, frozen=True, tag=51):
    """A re-executed task made another result than the one that was committed; a warning."""

    object_id: bytes
    name: str


# --- node <-> node --------------------------------------------------------------------------------


class PeerHello(_Message, frozen=True, tag=60):
    """First on a connection between nodes (both ways); ``token`` is the cluster's."""

    version: int
    token: str
    node_id: int
    incarnation: int
    #: "control", or "bulk": then ``Fetch`` and raw bytes follow.
    purpose: str = "control"


class HandedTask(_Wire, frozen=True):
    """A task whose holder is now the receiver. ``values`` are small arguments; ``sources`` say
    where others are (object id, node id); ``submitter`` is the node that waits for the result."""

    spec: Raw
    attempt: int
    submitter: int
    values: list[Value]
    sources: list[tuple[bytes, int]]


class HandOver(_Message, frozen=True, tag=61):
    """Tasks and actor calls, in order, with the functions they need that were not sent before."""

    tasks: list[HandedTask]
    functions: list[FunctionDef] = []


class PeerValues(_Message, frozen=True, tag=62):
    """Results, to a node that waits for them. Without data they lie at the sender."""

    values: list[Value]


class Watch(_Message, frozen=True, tag=63):
    """The sender (or ``node_id``, if given) waits for these objects, which the receiver makes."""

    object_ids: list[bytes]
    node_id: int = 0


class PeerDrop(_Message, frozen=True, tag=64):
    """The sender needs these objects no longer."""

    object_ids: list[bytes]


class KillActor(_Message, frozen=True, tag=66):
    """To the actor's node."""

    actor_id: bytes
    no_restart: bool = True


class PeerOutput(_Message, frozen=True, tag=67):
    """Workers' output for a driver that is connected to the receiver."""

    printed: Printed


class Fetch(_Message, frozen=True, tag=68):
    """On a bulk connection: asks for one object; answered by ``Fetched`` and then ``size``
    bytes."""

    object_id: bytes


class Fetched(_Message, frozen=True, tag=69):
    """``size`` of -1: the object is not here."""

    object_id: bytes
    size: int
    digest: bytes


# --- node -> control store ------------------------------------------------------------------------


class NodeView(_Wire, frozen=True):
    """A node as others see it."""

    node_id: int
    incarnation: int
    host: str
    port: int
    socket_path: str
    total: Resources
    available: Resources
    #: Tasks that wait for resources there.
    queued: int
    labels: dict[str, str]
    alive: bool
    is_head: bool
    hostname: str = ""
    object_store_memory: int = 0


class Register(_Message, frozen=True, tag=80):
    """A node joins; ``node_id`` 0 asks for a new id, else it is a new incarnation of an old one."""

    version: int
    token: str
    view: NodeView


class NodeStatus(_Message, frozen=True, tag=81):
    """What a node has free; sent when it changes, at most every 50 ms."""

    available: Resources
    queued: int


class ObjectsHere(_Message, frozen=True, tag=82):
    """Large objects of which the node has (or no longer has) a copy: (id, size)."""

    added: list[tuple[bytes, int]]
    removed: list[bytes] = []


class Locate(_Message, frozen=True, tag=83):
    """Where are these objects? Each is answered in a ``Locations``; what is lost is rebuilt.

    ``gone`` names nodes that turned out not to have an object they were said to have."""

    object_ids: list[bytes]
    gone: list[tuple[bytes, int]] = []


class LookUpTasks(_Message, frozen=True, tag=84):
    """Of the children that a replayed parent (or a driver that resends) submits: which are
    known?"""

    number: int
    task_ids: list[bytes]


class Suspect(_Message, frozen=True, tag=85):
    """The connection to a peer was reset; ``refused`` if it could not be made anew either."""

    node_id: int
    incarnation: int
    refused: bool


class OpenJob(_Message, frozen=True, tag=86):
    """A driver arrived. ``job`` not 0: it comes back after its node died."""

    number: int
    job: int
    entrypoint: str
    pid: int


class CloseJob(_Message, frozen=True, tag=87):
    """A driver left. ``lost``: its connection broke, it may come back within the grace."""

    job: int
    failed: bool
    lost: bool = False


class NameActor(_Message, frozen=True, tag=88):
    """Reserves a name; answered by ``Reply`` (with an error if it is taken)."""

    number: int
    actor_id: bytes
    name: str
    namespace: str
    job: int
    function_id: bytes
    #: For those who get it by its name; only clients look inside.
    methods: bytes = b""


class ActorHere(_Message, frozen=True, tag=89):
    """An actor runs on this node, or died (``error``)."""

    actor_id: bytes
    job: int
    alive: bool
    error: SystemFailure | None = None


class FindActor(_Message, frozen=True, tag=90):
    """Where is this actor? By id: ``ActorAt`` follows, now or when it is known. By name if the id
    is empty: answered at once by a ``Reply`` with ``NamedActor``, or an error."""

    number: int
    actor_id: bytes
    name: str = ""
    namespace: str = ""


class AskStore(_Message, frozen=True, tag=91):
    """A general question of the node or its client; answered by ``Reply``."""

    number: int
    what: str
    body: bytes = b""


class FetchFunctions(_Message, frozen=True, tag=92):
    """Functions that the node has not seen; answered by ``Functions``."""

    function_ids: list[bytes]


class Rebuilt(_Message, frozen=True, tag=93):
    """Rebuilds that ended here: (task id, differs from the committed digest)."""

    tasks: list[tuple[bytes, bool]]


class Leave(_Message, frozen=True, tag=94):
    """The node stops in good order."""


# --- control store -> node ------------------------------------------------------------------------


class Registered(_Message, frozen=True, tag=110):
    """The node's identity, from now on part of all it says and logs."""

    node_id: int
    incarnation: int
    #: The epoch of the control store's leader.
    epoch: int
    nodes: list[NodeView]
    storage: str


class RegisterRefused(_Message, frozen=True, tag=111):
    """The token or version is wrong."""

    code: str
    message: str


class Nodes(_Message, frozen=True, tag=112):
    """The cluster as it is now (whole list)."""

    nodes: list[NodeView]


class NodeDied(_Message, frozen=True, tag=113):
    """An incarnation was fenced, in Postgres; what it held is reassigned."""

    node_id: int
    incarnation: int
    reason: str


class HeldTask(_Wire, frozen=True):
    """A task the receiver now holds, or is to run again for its lost objects."""

    spec: Raw
    attempt: int
    submitter: int
    #: Of a rebuild: the committed digests of its returns, by index (a large return's is never
    #: empty).
    digests: list[bytes] = []


class Reassigned(_Message, frozen=True, tag=114):
    """Tasks of a fenced node; the receiver is their holder already."""

    tasks: list[HeldTask]
    functions: list[FunctionDef] = []


class Rebuild(_Message, frozen=True, tag=115):
    """Finished tasks that the receiver is to run again, producers before consumers."""

    tasks: list[HeldTask]
    functions: list[FunctionDef] = []


class Whereabouts(_Wire, frozen=True):
    """Of one object. Exactly one of: ``value`` (small, or an error), ``nodes`` (copies there),
    ``stored`` (a storage path), ``maker`` (the node that makes it now: it was told to tell us)."""

    object_id: bytes
    value: Value | None = None
    nodes: list[int] = []
    stored: str = ""
    maker: int = 0
    size: int = 0
    digest: bytes = b""


class Locations(_Message, frozen=True, tag=116):
    """Answers ``Locate``; again whenever an answer changes from unknown to known."""

    objects: list[Whereabouts]


class TaskState(_Wire, frozen=True):
    """What the log knows of a task: ``known`` False means nothing; a ``status`` not PENDING comes
    with all its values (large ones without data); ``holder`` of a pending one runs it."""

    task_id: bytes
    known: bool
    status: int = PENDING
    holder: int = 0
    values: list[Value] = []


class TaskStates(_Message, frozen=True, tag=117):
    """Answers ``LookUpTasks``."""

    number: int
    tasks: list[TaskState]


class JobOpened(_Message, frozen=True, tag=118):
    """Answers ``OpenJob``."""

    number: int
    job: int
    job_root: bytes
    error: SystemFailure | None = None


class JobClosed(_Message, frozen=True, tag=119):
    """Its tasks, actors and objects on this node are to be dropped."""

    job: int


class ActorAt(_Message, frozen=True, tag=120):
    """Where an actor is; ``number`` as in ``FindActor``, 0 when told unasked."""

    number: int
    actor_id: bytes
    node_id: int
    alive: bool
    error: SystemFailure | None = None


class NamedActor(_Wire, frozen=True):
    """Who has a name; answers ``FindActor`` inside a ``Reply``."""

    actor_id: bytes
    function_id: bytes
    methods: bytes


class Reply(_Message, frozen=True, tag=121):
    """Answers ``NameActor``, ``FindActor`` by name and ``AskStore``."""

    number: int
    body: bytes
    error: SystemFailure | None = None


class Functions(_Message, frozen=True, tag=122):
    """Answers ``FetchFunctions``."""

    functions: list[FunctionDef]


class Fenced(_Message, frozen=True, tag=123):
    """The receiver was declared dead: it must drop everything and register anew."""

    reason: str


class Stop(_Message, frozen=True, tag=124):
    """The cluster ends; the node stops in good order."""


class WatchFor(_Message, frozen=True, tag=125):
    """``node_id`` waits for these objects, which the receiver makes."""

    object_ids: list[bytes]
    node_id: int


ClientMessage = (
    Hello | Submit | DefineFunctions | Put | Create | Seal | Subscribe | Read | Release
    | Borrow | Drop
    | Done | Returned | Blocked | Unblocked | Output | Ask | Bye
)  # fmt: skip
NodeMessage = (
    Welcome | Refused | Committed | Values | Created | Located | Run | TakeBack | Printed | Answer
    | Exit | ReplayDifference
)  # fmt: skip
PeerMessage = (
    PeerHello | HandOver | PeerValues | Watch | PeerDrop | KillActor | PeerOutput | Fetch
    | Fetched
)  # fmt: skip
ToStore = (
    Register | NodeStatus | ObjectsHere | Locate | LookUpTasks | Suspect | OpenJob | CloseJob
    | NameActor | ActorHere | FindActor | AskStore | FetchFunctions | Rebuilt | Leave
)  # fmt: skip
FromStore = (
    Registered | RegisterRefused | Nodes | NodeDied | Reassigned | Rebuild | Locations | TaskStates
    | JobOpened | JobClosed | ActorAt | Reply | Functions | Fenced | Stop | WatchFor
)  # fmt: skip

encoder: Final = msgspec.msgpack.Encoder()
#: Encodes any message or part to msgpack bytes.
encode: Final = encoder.encode
client_decoder: Final = msgspec.msgpack.Decoder(ClientMessage)
node_decoder: Final = msgspec.msgpack.Decoder(NodeMessage)
peer_decoder: Final = msgspec.msgpack.Decoder(PeerMessage)
to_store_decoder: Final = msgspec.msgpack.Decoder(ToStore)
from_store_decoder: Final = msgspec.msgpack.Decoder(FromStore)
header_decoder: Final = msgspec.msgpack.Decoder(TaskHeader)
spec_decoder: Final = msgspec.msgpack.Decoder(TaskSpec)
failure_decoder: Final = msgspec.msgpack.Decoder(SystemFailure)
