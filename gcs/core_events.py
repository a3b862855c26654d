"""What goes into the control store's core and what comes out of it, as values.

Events are past tense, effects imperative. A connection is a number that the shell gives; it is
never used again. Times are seconds on the shell's monotonic clock.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from regrow.gcs.operations import Operation, Result
from regrow.messages import FromStore, ToStore


class Settings(Struct, frozen=True, kw_only=True):
    """What the core is told once."""

    #: Who asks for leadership: unique per process.
    holder: str
    #: Storage that nodes spill and write behind to (``pyarrow.fs`` URI).
    storage: str = ""
    #: A node that has not renewed its lease for so long is fenced.
    lease_ttl_s: float = 3.0
    #: Leadership that was not renewed for so long may be taken by another.
    leader_ttl_s: float = 2.0
    #: How long a job waits for its driver to come back.
    driver_grace_s: float = 10.0
    #: The cluster ends with its last job.
    ephemeral: bool = False
    #: How often calls are looked for whose arguments may leave the log.
    trim_every_s: float = 2.0


class _Value(Struct, frozen=True, gc=False):
    """Base of events and effects."""


# --- events ---------------------------------------------------------------------------------------


class Tick(_Value, frozen=True):
    """The clock: at least every 50 ms while ``Core.busy``, else every 250 ms."""

    now: float


class NodeConnected(_Value, frozen=True):
    """A node opened a session; it has presented the cluster's token."""

    conn: int


class FromNode(_Value, frozen=True):
    """A message. ``entropy``: 16 random bytes, of an ``OpenJob`` only (the root of a new job)."""

    conn: int
    message: ToStore
    entropy: bytes = b""


class NodeDisconnected(_Value, frozen=True):
    """The session is over, whoever ended it."""

    conn: int


class StoreFailed(_Value, frozen=True):
    """The operation raised: it may or may not have been carried out."""

    message: str


class StoreReplied(_Value, frozen=True):
    """The answer to an ``Execute``."""

    number: int
    result: Result | StoreFailed


#: Outcomes of a probe: nobody listens there; somebody does; nothing came back in time.
REFUSED: Final = "refused"
ANSWERED: Final = "answered"
SILENT: Final = "silent"


class ProbeResult(_Value, frozen=True):
    """The answer to a ``Probe``."""

    node_id: int
    incarnation: int
    outcome: str


Event = Tick | NodeConnected | FromNode | NodeDisconnected | StoreReplied | ProbeResult


# --- effects --------------------------------------------------------------------------------------


class Send(_Value, frozen=True):
    """To a node's session, in order."""

    conn: int
    message: FromStore


class Execute(_Value, frozen=True):
    """Carry an operation out and answer with ``StoreReplied``; writes in the order given."""

    number: int
    operation: Operation


class Probe(_Value, frozen=True):
    """Try to connect to a node's TCP port, for a second at most."""

    node_id: int
    incarnation: int
    host: str
    port: int


class CloseConnection(_Value, frozen=True):
    """Send what was to be sent, then end the session."""

    conn: int


class StopCluster(_Value, frozen=True):
    """The nodes were told to stop; this process ends too."""

    reason: str


Effect = Send | Execute | Probe | CloseConnection | StopCluster
