"""What messages of several links are made of: tasks, values, failures, functions.

A wire struct is a msgpack array. A part has no tag; a message has one, and is what a link carries.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

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
#: Of an actor's creation and calls: the actor restarts with its state.
RECOVERABLE: Final = 8
#: Submitted in a job that was resumed: the task, and what it submits, may be in the log already.
RESUMED: Final = 16
#: Of a task: large results are in storage before the outcome is logged.
CHECKPOINT: Final = 32
#: Of an actor's creation: it lives until it is killed, whoever holds it.
DETACHED: Final = 64
#: The bits from here on are a number: which driver of a named job submitted the task, or what it
#: descends from; 0 of unnamed jobs. The log takes no specs of a driver that another has replaced.
DRIVER_SHIFT: Final = 16


def flags_of_driver(driver: int) -> int:
    """What the driver of this number, and its descendants, put into the flags of what they
    submit."""
    return driver << DRIVER_SHIFT | (RESUMED if driver > 1 else 0)


Resources = dict[str, int]


class WirePart(Struct, array_like=True, frozen=True, gc=False):
    """Base of the parts of messages."""


class TaskHeader(WirePart, frozen=True):
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
    #: Of an actor's call: its place among the submissions of its caller, from 1.
    order: int = 0
    #: Of a call of an actor that restarts: the call of that actor which its caller made before.
    after: bytes = b""

    @property
    def driver(self) -> int:
        """The number in ``flags``."""
        return self.flags >> DRIVER_SHIFT


class TaskSpec(TaskHeader, frozen=True):
    """What a client submits. Only the client and the worker look at what follows the header."""

    #: Packed ``(args, kwargs)``; top-level references are ``Placeholder(i)`` into ``deps``.
    args: bytes = b""
    #: Of an actor's call.
    method: str = ""
    #: Packed dict of what only the worker needs (``retry_exceptions`` types, actor's options, ...).
    options: bytes = b""


class Value(WirePart, frozen=True):
    """An object as it is told to whoever waits for it."""

    object_id: bytes
    status: int
    size: int
    #: The packed bytes where they are small, else None: then the object must be read.
    data: bytes | None
    digest: bytes = b""
    #: References inside the value.
    refs: list[bytes] = []
    #: Of a large result that is not stored: how long its making took, with what it was made of.
    replay_ms: int = 0


class SystemFailure(WirePart, frozen=True):
    """Why the system gave up; packed as the ``data`` of a SYSTEM_ERROR."""

    #: ``regrow.exceptions.BY_CODE``
    code: str
    message: str


class Return(WirePart, frozen=True):
    """One return value, as its worker tells it. Without ``data`` it lies in the arena, sealed."""

    size: int
    digest: bytes
    data: bytes | None
    refs: list[bytes] = []


class FunctionDef(WirePart, frozen=True):
    """A function or class, content-addressed. ``pickled`` is cloudpickle's bytes."""

    function_id: bytes
    name: str
    pickled: bytes
    #: Fingerprint of its code object, for detecting a change on resume.
    fingerprint: bytes = b""


class WireMessage(Struct, array_like=True, frozen=True, gc=False):
    """Base of the messages."""


encoder: Final = msgspec.msgpack.Encoder()
#: Encodes any message or part to msgpack bytes.
encode: Final = encoder.encode
header_decoder: Final = msgspec.msgpack.Decoder(TaskHeader)
spec_decoder: Final = msgspec.msgpack.Decoder(TaskSpec)
_options_decoder: Final = msgspec.msgpack.Decoder(dict[str, Any])


def spec_of_driver(spec: bytes, driver: int) -> bytes:
    """The same specification, as of a descendant of this driver of its job."""
    decoded = spec_decoder.decode(spec)
    flags = decoded.flags & (1 << DRIVER_SHIFT) - 1 | flags_of_driver(driver)
    return msgspec.msgpack.encode(msgspec.structs.replace(decoded, flags=flags))


def spec_that_goes_on(spec: bytes, driver: int, attempt: int, max_retries: int) -> bytes:
    """The specification of a task that goes on in a job that is resumed, after ``attempt``.

    The attempts that it had are not counted: its number in the log goes on, and so does the limit.
    ``max_retries`` is what it was submitted with. What may not be made again stays so.
    """
    decoded = spec_decoder.decode(spec_of_driver(spec, driver))
    if max_retries < 0:
        return msgspec.msgpack.encode(decoded)
    flags = decoded.flags | (CHECKPOINT if max_retries == 0 and decoded.kind == TASK else 0)
    # The one that is to come counts two: this one is not begun before it is given to a node.
    limit = max_retries + attempt + 1
    return msgspec.msgpack.encode(msgspec.structs.replace(decoded, max_retries=limit, flags=flags))


def keyed_content(spec: bytes | msgspec.Raw) -> tuple[str, bytes]:
    """Of the spec of a task with a key: that, and a digest of what was submitted under it."""
    options = spec_decoder.decode(spec).options
    told = _options_decoder.decode(options) if options else {}
    return told.get("key", ""), told.get("content", b"")


failure_decoder: Final = msgspec.msgpack.Decoder(SystemFailure)
