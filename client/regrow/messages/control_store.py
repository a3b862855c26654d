"""The session between a node and the control store: members, objects, jobs, actors, tasks."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from regrow.messages.parts import (
    OK,
    PENDING,
    FunctionDef,
    Resources,
    SystemFailure,
    Value,
    WireMessage,
    WirePart,
)

# --- node -> control store ------------------------------------------------------------------------


class NodeView(WirePart, frozen=True):
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
    #: It is to go, and takes nothing new.
    draining: bool = False


class Register(WireMessage, frozen=True, tag=80):
    """A node joins; ``node_id`` 0 asks for a new id, else it is a new incarnation of an old one."""

    version: int
    token: str
    view: NodeView


class NodeStatus(WireMessage, frozen=True, tag=81):
    """What a node has free; sent when it changes, at most every 50 ms, and every second while
    Postgres refuses its log."""

    available: Resources
    queued: int
    #: Postgres answers, but lacks something (its disk is full): the lease cannot be renewed.
    log_refused: bool = False
    #: Why it drains; empty: it does not.
    draining: str = ""


class ObjectsHere(WireMessage, frozen=True, tag=82):
    """Large objects of which the node has (or no longer has) a copy: (id, size)."""

    added: list[tuple[bytes, int]]
    removed: list[bytes] = []


class Locate(WireMessage, frozen=True, tag=83):
    """Where are these objects? Each is answered in a ``Locations``; what is lost is rebuilt.

    ``gone`` names nodes that turned out not to have an object they were said to have."""

    object_ids: list[bytes]
    gone: list[tuple[bytes, int]] = []


class LookUpTasks(WireMessage, frozen=True, tag=84):
    """Of the children that a replayed parent (or a driver that resends) submits: which are
    known?"""

    number: int
    task_ids: list[bytes]
    #: Those of them that were submitted with a key.
    keyed: list[bytes] = []


class Suspect(WireMessage, frozen=True, tag=85):
    """The connection to a peer was reset; ``refused`` if it could not be made anew either."""

    node_id: int
    incarnation: int
    refused: bool


class OpenJob(WireMessage, frozen=True, tag=86):
    """A driver arrived. ``job`` not 0: it comes back after its node died."""

    number: int
    job: int
    entrypoint: str
    pid: int
    #: As in ``Hello``.
    name: str = ""
    takeover: bool = False
    driver: int = 0
    runtime: str = ""
    detached: bool = False
    on_changed_code: str = "error"


class CloseJob(WireMessage, frozen=True, tag=87):
    """A driver left. ``lost``: its connection broke, it may come back within the grace."""

    job: int
    failed: bool
    lost: bool = False
    #: Which driver of a named job; 0: whichever it is.
    driver: int = 0


class JobDropped(WireMessage, frozen=True, tag=95):
    """What the drivers of a named job up to this number left on the node is dropped, and all that
    it had logged of them is committed: answers ``JobClosed``."""

    job: int
    driver: int


class NameActor(WireMessage, frozen=True, tag=88):
    """Reserves a name; answered by ``Reply`` (with an error if it is taken)."""

    number: int
    actor_id: bytes
    name: str
    namespace: str
    job: int
    function_id: bytes
    #: For those who get it by its name; only clients look inside.
    methods: bytes = b""


class ActorHere(WireMessage, frozen=True, tag=89):
    """An actor runs on this node, or died (``error``), or its process did and it may restart (no
    error)."""

    actor_id: bytes
    job: int
    alive: bool
    error: SystemFailure | None = None


class FindActor(WireMessage, frozen=True, tag=90):
    """Where is this actor? By id: ``ActorAt`` follows, now or when it is known. By name if the id
    is empty: answered at once by a ``Reply`` with ``NamedActor``, or an error."""

    number: int
    actor_id: bytes
    name: str = ""
    namespace: str = ""


class DrainNode(WirePart, frozen=True):
    """The body of the question ``drain``: which node is to go, and within how long."""

    node_id: int
    deadline_s: float
    reason: str


class JobCode(WirePart, frozen=True):
    """The answer to the question ``job_code``, whose body is a job's number."""

    name: str
    #: As in ``Hello``.
    on_changed_code: str
    #: As in ``Welcome``.
    versions: list[tuple[str, bytes]]


class AskStore(WireMessage, frozen=True, tag=91):
    """A general question of the node or its client; answered by ``Reply``."""

    number: int
    what: str
    body: bytes = b""


class FetchFunctions(WireMessage, frozen=True, tag=92):
    """Functions that the node has not seen; answered by ``Functions``."""

    function_ids: list[bytes]


class Rebuilt(WireMessage, frozen=True, tag=93):
    """Rebuilds that ended here: (task id, differs from the committed digest)."""

    tasks: list[tuple[bytes, bool]]


class Leave(WireMessage, frozen=True, tag=94):
    """The node stops in good order; ``reason`` where others are told one."""

    reason: str = ""


# --- control store -> node ------------------------------------------------------------------------


class Registered(WireMessage, frozen=True, tag=110):
    """The node's identity, from now on part of all it says and logs."""

    node_id: int
    incarnation: int
    #: The epoch of the control store's leader.
    epoch: int
    nodes: list[NodeView]
    storage: str


class RegisterRefused(WireMessage, frozen=True, tag=111):
    """The token or version is wrong."""

    code: str
    message: str


class Nodes(WireMessage, frozen=True, tag=112):
    """The cluster as it is now (whole list)."""

    nodes: list[NodeView]


class NodeDied(WireMessage, frozen=True, tag=113):
    """An incarnation was fenced, in Postgres; what it held is reassigned."""

    node_id: int
    incarnation: int
    reason: str


class HeldTask(WirePart, frozen=True):
    """A task the receiver now holds, or is to run again for its lost objects."""

    spec: Raw
    attempt: int
    submitter: int
    #: Of a rebuild: the committed digests of its returns, by index (a large return's is never
    #: empty).
    digests: list[bytes] = []
    #: Of a rebuild: how it ended before.
    status: int = OK
    #: Of an actor's call that is replayed to bring it back: what ``wait`` and timed ``get`` said.
    answers: bytes = b""
    #: Of a rebuild: which driver its job has now.
    driver: int = 0


class Reassigned(WireMessage, frozen=True, tag=114):
    """Tasks of a fenced node; the receiver is their holder already."""

    tasks: list[HeldTask]
    functions: list[FunctionDef] = []


class Rebuild(WireMessage, frozen=True, tag=115):
    """Finished tasks that the receiver is to run again, producers before consumers."""

    tasks: list[HeldTask]
    functions: list[FunctionDef] = []


class RestoreActor(WireMessage, frozen=True, tag=126):
    """The receiver is to bring an actor back: its creation, and then its calls in the order in
    which they were executed, run again."""

    actor_id: bytes
    job: int
    creation: HeldTask
    #: Those after the checkpoint, if there is one.
    calls: list[HeldTask]
    #: Place of the last call in the actor's order.
    last_seq: int
    functions: list[FunctionDef] = []
    #: The object that is its saved state, after which call, and whether the class saved it itself.
    checkpoint: bytes = b""
    checkpoint_seq: int = 0
    custom: bool = False


class Whereabouts(WirePart, frozen=True):
    """Of one object. Exactly one of: ``value`` (small, or an error), ``nodes`` (copies there),
    ``stored`` (a storage path), ``maker`` (the node that makes it now: it was told to tell us)."""

    object_id: bytes
    value: Value | None = None
    nodes: list[int] = []
    stored: str = ""
    maker: int = 0
    size: int = 0
    digest: bytes = b""


class Locations(WireMessage, frozen=True, tag=116):
    """Answers ``Locate``; again whenever an answer changes from unknown to known."""

    objects: list[Whereabouts]


class TaskState(WirePart, frozen=True):
    """What the log knows of a task: ``known`` False means nothing; a ``status`` not PENDING comes
    with all its values (large ones without data); ``holder`` of a pending one runs it."""

    task_id: bytes
    known: bool
    status: int = PENDING
    holder: int = 0
    values: list[Value] = []
    #: Of one that was asked for as submitted with a key: see ``keyed_content``.
    content: bytes = b""


class TaskStates(WireMessage, frozen=True, tag=117):
    """Answers ``LookUpTasks``."""

    number: int
    tasks: list[TaskState]


class JobOpened(WireMessage, frozen=True, tag=118):
    """Answers ``OpenJob``."""

    number: int
    job: int
    job_root: bytes
    error: SystemFailure | None = None
    #: As in ``Welcome``.
    driver: int = 0
    runtime: str = ""
    versions: list[tuple[str, bytes]] = []


class JobClosed(WireMessage, frozen=True, tag=119):
    """Its tasks, actors and objects on this node are to be dropped."""

    job: int
    #: Of a named job: those of its drivers up to this number.
    driver: int = 0


class ActorAt(WireMessage, frozen=True, tag=120):
    """Where an actor is; ``number`` as in ``FindActor``, 0 when told unasked."""

    number: int
    actor_id: bytes
    node_id: int
    alive: bool
    error: SystemFailure | None = None


class NamedActor(WirePart, frozen=True):
    """Who has a name; answers ``FindActor`` inside a ``Reply``."""

    actor_id: bytes
    function_id: bytes
    methods: bytes


class Reply(WireMessage, frozen=True, tag=121):
    """Answers ``NameActor``, ``FindActor`` by name and ``AskStore``."""

    number: int
    body: bytes
    error: SystemFailure | None = None


class Functions(WireMessage, frozen=True, tag=122):
    """Answers ``FetchFunctions``."""

    functions: list[FunctionDef]


class Fenced(WireMessage, frozen=True, tag=123):
    """The receiver was declared dead: it must drop everything and register anew."""

    reason: str


class Stop(WireMessage, frozen=True, tag=124):
    """The cluster ends; the node stops in good order."""


class Drain(WireMessage, frozen=True, tag=127):
    """The node is to give its work away and go, within so long."""

    deadline_s: float
    reason: str


class WatchFor(WireMessage, frozen=True, tag=125):
    """``node_id`` waits for these objects, which the receiver makes."""

    object_ids: list[bytes]
    node_id: int


ToStore = (
    Register | NodeStatus | ObjectsHere | Locate | LookUpTasks | Suspect | OpenJob | CloseJob
    | JobDropped | NameActor | ActorHere | FindActor | AskStore | FetchFunctions | Rebuilt | Leave
)  # fmt: skip
FromStore = (
    Registered | RegisterRefused | Nodes | NodeDied | Reassigned | Rebuild | Locations | TaskStates
    | JobOpened | JobClosed | ActorAt | Reply | Functions | RestoreActor | Fenced | Stop | WatchFor
    | Drain
)  # fmt: skip

to_store_decoder: Final = msgspec.msgpack.Decoder(ToStore)
code_decoder: Final = msgspec.msgpack.Decoder(JobCode)
from_store_decoder: Final = msgspec.msgpack.Decoder(FromStore)
