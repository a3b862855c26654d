"""The links between nodes: handing over, results, bytes."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Raw

from regrow.messages.clients import Printed
from regrow.messages.parts import FunctionDef, Value, WireMessage, WirePart


class PeerHello(WireMessage, frozen=True, tag=60):
    """First on a connection between nodes (both ways); ``token`` is the cluster's."""

    version: int
    token: str
    node_id: int
    incarnation: int
    #: "control", or "bulk": then ``Fetch`` and raw bytes follow.
    purpose: str = "control"


class HandedTask(WirePart, frozen=True):
    """A task whose holder is now the receiver. ``values`` are small arguments; ``sources`` say
    where others are (object id, node id); ``submitter`` is the node that waits for the result."""

    spec: Raw
    attempt: int
    submitter: int
    values: list[Value]
    sources: list[tuple[bytes, int]]


class HandOver(WireMessage, frozen=True, tag=61):
    """Tasks and actor calls, in order, with the functions they need that were not sent before."""

    tasks: list[HandedTask]
    functions: list[FunctionDef] = []


class PeerValues(WireMessage, frozen=True, tag=62):
    """Results, to a node that waits for them. Without data they lie at the sender."""

    values: list[Value]


class Watch(WireMessage, frozen=True, tag=63):
    """The sender (or ``node_id``, if given) waits for these objects, which the receiver makes."""

    object_ids: list[bytes]
    node_id: int = 0


class PeerDrop(WireMessage, frozen=True, tag=64):
    """The sender needs these objects no longer."""

    object_ids: list[bytes]


class KillActor(WireMessage, frozen=True, tag=66):
    """To the actor's node."""

    actor_id: bytes
    no_restart: bool = True


class PeerOutput(WireMessage, frozen=True, tag=67):
    """Workers' output for a driver that is connected to the receiver."""

    printed: Printed


class Fetch(WireMessage, frozen=True, tag=68):
    """On a bulk connection: asks for one object; answered by ``Fetched`` and then ``size``
    bytes."""

    object_id: bytes


class Fetched(WireMessage, frozen=True, tag=69):
    """``size`` of -1: the object is not here."""

    object_id: bytes
    size: int
    digest: bytes


PeerMessage = (
    PeerHello | HandOver | PeerValues | Watch | PeerDrop | KillActor | PeerOutput | Fetch
    | Fetched
)  # fmt: skip

peer_decoder: Final = msgspec.msgpack.Decoder(PeerMessage)
