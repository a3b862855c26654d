"""What the core of a node is told (past tense) and what it asks for (imperative).

Clients are numbered by the shell in the order in which they connect; a client is a driver or a
worker. Times are milliseconds of a monotonic clock that only this node sees.
"""

from __future__ import annotations

from msgspec import Struct

from regrow.gcs.operations import Batch
from regrow.messages import ClientMessage, FromStore, Hello, NodeMessage, PeerMessage, ToStore
from regrow.objectstore.effects import (
    DeleteFile,
    DeleteSpilled,
    ObjectKey,
    Restore,
    RestoreFile,
    Spill,
)

# --- events ---------------------------------------------------------------------------------------


class ClientArrived(Struct, frozen=True, gc=False):
    """A client said ``Hello`` with the right token."""

    client: int
    hello: Hello


class ClientSaid(Struct, frozen=True, gc=False):
    client: int
    message: ClientMessage


class ClientGone(Struct, frozen=True, gc=False):
    """The connection is closed; of a worker: its process is dead and writes no more."""

    client: int


class DriverExited(Struct, frozen=True, gc=False):
    """A driver's connection is closed and its process has ended: it does not come back."""

    client: int


class WorkerExited(Struct, frozen=True, gc=False):
    """A worker process ended, possibly before it ever connected. ``status`` as of ``waitpid``."""

    number: int
    status: int


class PeerSaid(Struct, frozen=True, gc=False):
    """``incarnation`` of the sender; it may be newer than what the control store has told of."""

    node_id: int
    message: PeerMessage
    incarnation: int = 0


class PeerLost(Struct, frozen=True, gc=False):
    """The connection to a peer broke. ``refused``: it could not be made again either."""

    node_id: int
    incarnation: int
    refused: bool


class StoreSaid(Struct, frozen=True, gc=False):
    message: FromStore


class StoreLost(Struct, frozen=True, gc=False):
    """The stream to the control store broke; the shell makes it anew."""


class Appended(Struct, frozen=True, gc=False):
    """The answer to ``AppendBatch``. ``verdict`` is one of ``regrow.gcs.operations``."""

    number: int
    verdict: str
    detail: str = ""


class LogFailed(Struct, frozen=True, gc=False):
    """The connection to Postgres broke or could not be made, or it refused a batch; the shell tries
    again until there is an answer. ``sqlstate`` is empty where Postgres said none."""

    reason: str
    sqlstate: str = ""


class DrainAsked(Struct, frozen=True, gc=False):
    """Somebody asked this node's process to end (SIGTERM): within so long."""

    deadline_s: float
    reason: str


class FlushDue(Struct, frozen=True, gc=False):
    """The time of ``ArmFlush`` is up."""


class Tick(Struct, frozen=True, gc=False):
    """Comes every 20 ms while something runs, else more rarely."""

    now_ms: float


class MemoryMeasured(Struct, frozen=True, gc=False):
    """Memory is short. Bytes: what is used of how much, and by which worker (by its number)."""

    used: int
    limit: int
    workers: dict[int, int]


class FetchAsked(Struct, frozen=True, gc=False):
    """A peer wants the bytes of an object; answered by ``ServeBytes`` with the same number."""

    number: int
    node_id: int
    object_id: bytes


class BytesServed(Struct, frozen=True, gc=False):
    number: int


class Fetched(Struct, frozen=True, gc=False):
    """A ``FetchBytes`` or ``LoadBytes`` ended. ``ok``: the bytes are there and their digest is
    right; where none was known, it is ``digest``."""

    key: ObjectKey
    ok: bool
    detail: str = ""
    digest: bytes = b""


class Spilled(Struct, frozen=True, gc=False):
    key: ObjectKey
    ok: bool


class Restored(Struct, frozen=True, gc=False):
    key: ObjectKey
    ok: bool


class Stored(Struct, frozen=True, gc=False):
    """A ``StoreBytes`` ended; ``path`` is empty if it failed, for the reason in ``detail``."""

    object_id: bytes
    path: str
    #: Of the error: "out_of_disk" or "storage".
    code: str = ""
    detail: str = ""


Event = (
    ClientArrived | ClientSaid | ClientGone | DriverExited | WorkerExited | PeerSaid | PeerLost
    | StoreSaid | StoreLost
    | DrainAsked | Appended | LogFailed | FlushDue | Tick | MemoryMeasured | FetchAsked
    | BytesServed | Fetched | Spilled | Restored | Stored
)  # fmt: skip

# --- effects --------------------------------------------------------------------------------------


class AppendBatch(Struct, frozen=True, gc=False):
    """Send this batch to Postgres; batches go in the order of their numbers."""

    number: int
    batch: Batch


class ArmFlush(Struct, frozen=True, gc=False):
    """Send ``FlushDue`` in ``config.flush_interval_ms``."""


class ToClient(Struct, frozen=True, gc=False):
    client: int
    message: NodeMessage


class CloseClient(Struct, frozen=True, gc=False):
    client: int


class ToPeer(Struct, frozen=True, gc=False):
    node_id: int
    message: PeerMessage


class ToControlStore(Struct, frozen=True, gc=False):
    message: ToStore


class WatchDriver(Struct, frozen=True, gc=False):
    """Its connection broke; send ``DriverExited`` when its process has ended."""

    client: int


class StartWorker(Struct, frozen=True, gc=False):
    """Fork a worker that will say ``Hello`` with this number."""

    number: int
    env: dict[str, str]


class KillWorker(Struct, frozen=True, gc=False):
    """SIGKILL it; ``ClientGone`` and ``WorkerExited`` follow."""

    number: int


class FetchBytes(Struct, frozen=True, gc=False):
    """Copy an object from a peer into its place here; answered by ``Fetched``."""

    key: ObjectKey
    node_id: int
    #: -1: in its fallback file.
    offset: int
    size: int
    digest: bytes


class LoadBytes(Struct, frozen=True, gc=False):
    """Copy an object from storage into its place here; answered by ``Fetched``."""

    key: ObjectKey
    path: str
    offset: int
    size: int
    digest: bytes


class StoreBytes(Struct, frozen=True, gc=False):
    """Write an object (pinned until ``Stored``) to storage."""

    key: ObjectKey
    #: -1: in its fallback file.
    offset: int
    size: int


class ServeBytes(Struct, frozen=True, gc=False):
    """Send an object to the peer that asked for it; ``offset`` -2: it is not here. The object stays
    pinned until ``BytesServed``."""

    number: int
    key: ObjectKey
    offset: int
    size: int
    digest: bytes


class MakeFile(Struct, frozen=True, gc=False):
    """Create the fallback file of an object, before the client hears of it."""

    key: ObjectKey
    size: int


class SpillBytes(Struct, frozen=True, gc=False):
    """``digest`` is checked when the object is restored."""

    spill: Spill


class RestoreBytes(Struct, frozen=True, gc=False):
    restore: Restore | RestoreFile
    digest: bytes


class DeleteBytes(Struct, frozen=True, gc=False):
    what: DeleteSpilled | DeleteFile


class DeleteStored(Struct, frozen=True, gc=False):
    """The object's bytes in storage are not needed any longer."""

    object_id: bytes


class Restart(Struct, frozen=True, gc=False):
    """This incarnation is over: drop everything, kill the workers, register anew."""

    reason: str


class LeaveCluster(Struct, frozen=True, gc=False):
    """Once the log is committed, tell the control store that this node goes, and end."""

    reason: str


class StopNode(Struct, frozen=True, gc=False):
    """End in good order (``reason`` empty) or with an error that is for people to solve."""

    reason: str


Effect = (
    AppendBatch | ArmFlush | ToClient | CloseClient | ToPeer | ToControlStore
    | WatchDriver | StartWorker | KillWorker
    | FetchBytes | LoadBytes | StoreBytes | ServeBytes | MakeFile | SpillBytes | RestoreBytes
    | DeleteBytes | DeleteStored | Restart | LeaveCluster | StopNode
)  # fmt: skip
