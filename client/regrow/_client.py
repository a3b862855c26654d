"""A process's end of the cluster: submits, puts, gets and waits through one link.

The driver has one from ``init`` on, every worker has one.  Decides what is sent and what is
awaited; batching is the link's business, what this process refers to the reference table's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import xxhash
from msgspec import Raw, Struct

from regrow._answers import Answers
from regrow._arguments import REF_TYPES, Arguments, pack_arguments
from regrow._canonical import canonical_digest, is_unsteady
from regrow._context import Running, Task
from regrow._futures import Futures
from regrow._link import Connection, Link, Message, Submission
from regrow._memory import ArenaClosedError, Memory, track, tracked
from regrow._refs import ObjectRef, RefTable, Waiter, is_ready
from regrow._requests import ASK_TIMEOUT_S, Requests, Room, as_error
from regrow._resuming import Changes
from regrow.config import INLINE_MAX
from regrow.exceptions import (
    ClusterConnectionError,
    GetTimeoutError,
    ObjectLostError,
    RayError,
    RaySystemError,
    RayTaskError,
    ReplayMismatchError,
)
from regrow.ids import answers_object_id, object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    ASYNC,
    DETACHED,
    OK,
    RECOVERABLE,
    SYSTEM_ERROR,
    TASK,
    Answer,
    Blocked,
    Borrow,
    Created,
    DefineFunctions,
    Drop,
    FunctionDef,
    Located,
    NodeMessage,
    PutValue,
    Read,
    Release,
    Seal,
    Subscribe,
    SystemFailure,
    TaskSpec,
    Unblocked,
    Values,
    code_decoder,
    encode,
    failure_decoder,
)
from regrow.objectstore.layout import Layout, digest
from regrow.objectstore.serialization import SerializedObject, deserialize, serialize
from regrow.scheduler.last_words import LastWords


class Call(Struct, frozen=True):
    """What is the same for all calls of one remote function or method with its options."""

    definition: FunctionDef
    name: str
    #: What tells this function's calls from another's (``regrow._functions.identity``).
    identity: bytes
    kind: int = TASK
    resources: dict[str, int] | None = None
    num_returns: int = 1
    max_retries: int = 0
    flags: int = 0
    durability: str = ""
    strategy: str = ""
    key: bytes | None = None
    options: bytes = b""
    actor_id: bytes = b""
    method: str = ""


class Client:
    """See the module. ``role`` is "driver" or "worker"."""

    #: Of the driver of a named job.
    job_name = ""

    def __init__(
        self, connection: Connection, role: str, durability: str, memory: Memory | None = None,
        last_words: LastWords | None = None,
    ) -> None:  # fmt: skip
        self.role = role
        #: Of the cluster, for another connection of this process.
        self.token = ""
        self.welcome = connection.welcome
        self.running = Running()
        self.refs = RefTable(self._on_news)
        self._futures = Futures(self)
        self.refs.future = self._futures.future
        self.link = Link(connection, self, last_words)
        self.memory = memory or Memory.connect(connection.welcome.arena_path, self._on_news)
        self._default_flags = ASYNC if durability == "async" else 0
        self._defined: dict[bytes, FunctionDef] = {}
        #: Of a driver that resumes its job: what enters the identity of actors that do not come
        #: back.
        self._epoch = b""
        #: Of a worker: by job and driver, and whether they are for calls that had ended.
        self._changes: dict[tuple[int, int, bool], Changes] = {}
        #: Large puts that wait for storage: who put them sees to it that they are written.
        self.storing: set[bytes] = set()
        self._requests = Requests(self.link, lambda: self.memory)
        self._handlers: dict[type, Callable[[Any], None]] = {
            Values: lambda message: self._values(message),
            Located: self._located,
            Created: lambda message: self._requests.answered(message.object_id, message),
            Answer: lambda message: self._requests.answered(message.number, message),
        }

    def on(self, kind: type, handler: Callable[[Any], None]) -> None:
        """Handle messages of ``kind`` with ``handler``, on the reading thread."""
        self._handlers[kind] = handler

    # --- tasks ------------------------------------------------------------------------------------

    def call(
        self, call: Call, args: Sequence[Any], kwargs: dict[str, Any],
        before: Callable[[bytes], None] | None = None,
    ) -> list[ObjectRef[Any]]:  # fmt: skip
        """Submit a task; one reference for each of its return values.

        ``before`` is called with its id before it is submitted.
        Raises TypeError for arguments that cannot be pickled, ReplayMismatchError where ``key`` was
        used for something else, and ClusterConnectionError when the node is gone.
        """
        parent = self.running.current()
        packed = pack_arguments(args, kwargs, self.put_serialized, call.name)
        definition, version = call.definition, b""
        if parent.driver > 1 and call.kind != ACTOR_CALL:
            resolved = self.changes(parent).resolve(definition)
            definition, version = resolved.definition, resolved.version
        if definition.function_id not in self._defined and call.kind != ACTOR_CALL:
            self.define(definition)
        known = False
        #: Of a named job: the arguments, if their pickle may be another one when it is resumed.
        varying = (args, kwargs) if parent.driver and is_unsteady(packed.data) else None
        if parent.counted_ids is not None and call.key is None:
            task_id = parent.counted_ids.next_id()
        else:
            identity = call.identity + definition.fingerprint
            if call.kind == ACTOR_CREATION and call.flags & (RECOVERABLE | DETACHED) != RECOVERABLE:
                identity += self._epoch
            content = b"\0".join((identity, *_content(packed, varying)))
            task_id, known = _content_id(parent, call, content, version)
        flags = (
            call.flags
            | parent.passed_on
            | (
                (ASYNC if call.durability == "async" else 0)
                if call.durability
                else self._default_flags
            )
        )
        if known:
            return [self.refs.borrowed(object_id(task_id, i)) for i in range(call.num_returns)]
        options = call.options
        if parent.has_namespace:
            options = _with_options(options, namespace=parent.namespace)
        if call.key is not None:
            key = call.key.decode(errors="backslashreplace")
            content = _keyed_content(call, packed.data, varying)
            options = _with_options(options, key=key, content=content)
        if before is not None:
            before(task_id)
        order, after = 0, b""
        if call.kind == ACTOR_CALL:
            order = next(parent.calls)
            if call.flags & RECOVERABLE:
                after = parent.last_calls.get(call.actor_id, b"")
                parent.last_calls[call.actor_id] = task_id
        spec = TaskSpec(
            task_id, parent.task_id, parent.job, definition.function_id, call.name, call.kind,
            call.actor_id or (task_id if call.kind else b""), packed.deps, packed.nested,
            call.resources, call.num_returns, call.max_retries, flags, call.strategy, order, after,
            packed.data, call.method, options,
        )  # fmt: skip
        make = self.refs.own if parent.counted_ids is None else self.refs.fresh
        refs = [make(object_id(task_id, index)) for index in range(call.num_returns)]
        self.submit(Raw(encode(spec)))
        return refs

    def changes(self, parent: Task) -> Changes:
        """Which code the job of ``parent`` ran before; of named jobs. Waits for the control store
        where this process does not know it yet."""
        if parent.changes is None:
            key = parent.job, parent.driver, parent.is_replay
            known = self._changes.get(key)
            if known is None:
                body = self.ask("job_code", encode(parent.job), timeout_s=None)
                code = code_decoder.decode(body)
                policy = "keep" if parent.is_replay else code.on_changed_code
                known = Changes(code.name, code.versions, policy)
                self._changes = {key: known}  # it may be another's next, but seldom
            parent.changes = known
        return parent.changes

    def define(self, definition: FunctionDef) -> None:
        """Tell the node of a function before its first call."""
        self.link.post(DefineFunctions([definition]))
        self._defined[definition.function_id] = definition

    def submit(self, item: Submission) -> None:
        """Queue a submission, and wait while too many are not committed."""
        link = self.link
        if link.submit(item):
            link.flush()
            if link.over_window:
                self.blocking(link.await_credit)

    # --- puts -------------------------------------------------------------------------------------

    def put(self, value: Any, durable: bool = False) -> ObjectRef[Any]:
        """Store a value. Raises SerializationError and ObjectStoreFullError; if it is to be
        ``durable``, StorageError and OutOfDiskError."""
        return self.put_serialized(serialize(value, ref_types=REF_TYPES), durable)

    def put_serialized(self, serialized: SerializedObject, durable: bool = False) -> ObjectRef[Any]:
        """The same with a value that is pickled already."""
        parent = self.running.current()
        layout = serialized.layout
        data = layout.to_bytes() if layout.size <= INLINE_MAX else None
        if parent.counted_ids is not None:
            ref = self.refs.fresh(put_object_id(parent.counted_ids.next_id()))
        else:
            content = _content_digest(layout) if data is None else digest(data)
            ref = self.refs.own(put_object_id(parent.content_ids.next_id(b"put\0" + content)))
        refs = serialized.contained_refs
        if data is not None:
            self.refs.known(ref, data)
            self.submit(PutValue(ref._id, parent.task_id, parent.job, digest(data), data, refs))
            if durable:
                self.await_commits()
        else:
            put = self.put_stored if durable else self.put_large
            put(
                ref._id, layout.size, layout.write_into,
                lambda d: Seal(ref._id, parent.task_id, parent.job, layout.size, d, refs),
            )  # fmt: skip
            self.refs.known(ref, None)
        return ref

    def put_answers(self, task: Task) -> None:
        """Logs what ``wait`` and timed ``get`` answered in this call, before its result."""
        data = task.answers.packed() if task.answers is not None else b""
        if data:
            ref = self.refs.own(answers_object_id(task.task_id, task.attempt))
            self.refs.known(ref, data)
            self.submit(PutValue(ref._id, task.task_id, task.job, digest(data), data))

    def put_large(
        self, oid: bytes, size: int, write: Callable[[memoryview], bytes],
        seal_of: Callable[[bytes], Seal],
    ) -> None:  # fmt: skip
        """Write a large put, sealed by what its digest makes; again if the node dies meanwhile."""
        while True:
            room = self._requests.make_room(oid, 0, size)
            try:
                with room.memory.writable(room.location) as place:
                    seal = seal_of(write(place))
            except ArenaClosedError:
                continue
            if self.link.submit_seal(seal, room.generation, partial(self.sealed, seal, room)):
                return

    def put_stored(
        self, oid: bytes, size: int, write: Callable[[memoryview], bytes],
        seal_of: Callable[[bytes], Seal],
    ) -> None:  # fmt: skip
        """The same, and wait until it is in storage; again if the node dies meanwhile."""
        self.storing.add(oid)
        try:
            while True:
                generation = self.link.generation
                self.put_large(oid, size, write, seal_of)
                try:
                    self.ask("store_put", oid, timeout_s=None)
                except ObjectLostError:
                    if generation == self.link.generation:
                        raise
                else:
                    return
        finally:
            self.storing.discard(oid)

    def sealed(self, put: Seal, room: Room) -> None:
        """A large put is written, and about to be told."""

    def write_object(self, oid: bytes, attempt: int, layout: Layout) -> bytes:
        """Write an object into room that the node makes; its digest. The caller seals it."""
        room = self._requests.make_room(oid, attempt, layout.size)
        with room.memory.writable(room.location) as place:
            return layout.write_into(place)

    # --- values -----------------------------------------------------------------------------------

    def get(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values, in order. Raises the first error among them, or GetTimeoutError."""
        answers = self._answers() if timeout_s is not None else None
        if answers is not None and answers.replays:
            if not answers.in_time():
                raise GetTimeoutError("Get timed out, as it did when this call ran first.")
            timeout_s = None
        views: dict[bytes, memoryview] = {}
        missing: dict[ObjectRef[Any], None] = {}
        for ref in refs:
            if ref._data is None:
                view = tracked(ref._view)
                if view is None:
                    missing[ref] = None
                else:
                    views[ref._id] = view
        if missing:
            waiter = Waiter(len(missing), fetch=True)
            if self.refs.register(missing, waiter) < len(missing):
                self._await(waiter, missing, timeout_s)
            if waiter.missing > 0:
                if answers is not None:
                    answers.note(False)
                raise GetTimeoutError(
                    f"Get timed out: {waiter.missing} of {len(refs)} objects were not ready within "
                    f"{timeout_s} s."
                )
            views.update(waiter.views)
        if answers is not None:
            answers.note(True)
        return [self.value_of(ref, views.get(ref._id)) for ref in refs]

    def wait(
        self, refs: list[ObjectRef[Any]], count: int, timeout_s: float | None, fetch: bool
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """The first ``count`` references that are ready, in the order given, and the others."""
        answers = self._answers()
        if answers is not None and answers.replays:
            return _split(refs, answers.places(len(refs)))
        places = self._places(refs, count, timeout_s, fetch)
        if answers is not None:
            answers.note(places)
        return _split(refs, places)

    def _answers(self) -> Answers | None:
        """Those of the present call, if its actor restarts."""
        task = self.running.known()
        return task.answers if task is not None else None

    def _places(
        self, refs: list[ObjectRef[Any]], count: int, timeout_s: float | None, fetch: bool
    ) -> list[int]:
        """Where in ``refs`` those are that are ready, ``count`` of them at most."""
        places = _ready_places(refs, count, fetch)
        if len(places) < count and timeout_s != 0:
            waiting = [ref for ref in refs if not is_ready(ref, fetch)]
            # Some may have become ready since.
            waiter = Waiter(count - (len(refs) - len(waiting)), fetch)
            if waiter.missing > 0:
                self.refs.register(waiting, waiter)
                if waiter.missing > 0:
                    self._await(waiter, waiting, timeout_s)
                self.refs.forget(waiting, waiter)
            places = _ready_places(refs, count, fetch)
        elif len(places) < count:
            self._ask_now(refs, fetch)
            places = _ready_places(refs, count, fetch)
        return places

    def value_of(self, ref: ObjectRef[Any], view: memoryview | None) -> Any:
        """The value of a reference that is ready, or its error raised."""
        data = ref._data if view is None else view
        assert data is not None
        status = ref._status
        if status == OK:
            return deserialize(data)
        if status == SYSTEM_ERROR:
            raise as_error(failure_decoder.decode(data))
        error = deserialize(data)
        if isinstance(error, RayTaskError):
            raise error.as_instanceof_cause()
        raise error

    def _ask_now(self, refs: list[ObjectRef[Any]], fetch: bool) -> None:
        """Nobody waits, but what was never asked for is asked for, so that it comes one day."""
        waiting = [ref for ref in refs if not is_ready(ref, fetch)]
        waiter = Waiter(len(waiting) + 1, fetch)
        self.refs.register(waiting, waiter)
        self.refs.forget(waiting, waiter)
        self.link.flush()

    def _await(
        self, waiter: Waiter, refs: Sequence[ObjectRef[Any]] | dict[ObjectRef[Any], None],
        timeout_s: float | None,
    ) -> None:  # fmt: skip
        try:
            self.link.flush()
            if not waiter.is_done():
                self.blocking(lambda: self.link.wait(waiter, timeout_s))
        finally:
            if waiter.missing > 0:
                self.refs.forget(refs, waiter)

    def blocking(self, wait: Callable[[], object]) -> None:
        """Run ``wait`` while others may use this task's CPU."""
        if self.role == "driver":
            wait()
            return
        task_id = self.running.current().task_id
        self.give_back_unstarted()
        self.link.post(Blocked(task_id))
        self.link.flush()
        try:
            wait()
        finally:
            self.link.post(Unblocked(task_id))

    def give_back_unstarted(self) -> None:
        """Of a worker: return the tasks that are queued behind the running one."""

    def ask(self, what: str, body: bytes = b"", timeout_s: float | None = ASK_TIMEOUT_S) -> bytes:
        """Ask the node something; raises what it answers with, or GetTimeoutError."""
        return self._requests.ask(what, body, timeout_s)

    def await_commits(self) -> None:
        """Wait until all that this task can depend on is in the log: what it does outside of the
        cluster from then on is done by nothing that could be forgotten."""
        self.ask("commits", timeout_s=None)

    # --- what the link asks of its owner ----------------------------------------------------------

    def receive(self, message: NodeMessage) -> None:
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RaySystemError(f"the node sent an unexpected {type(message).__name__}")
        handler(message)

    def _values(self, message: Values | Located) -> None:
        if self.refs.handle_values(message.values):
            self.link.flush()  # some are large and waited for

    def _located(self, message: Located) -> None:
        for location in message.locations:
            view = self.memory.view(location)
            self.refs.handle_located(location.object_id, view, track)
            del view
        if message.values:
            self._values(message)

    def collect_drops(self) -> list[bytes]:
        return self.refs.take_dropped()

    def collect(self, dropped: list[bytes]) -> tuple[list[Message], list[Message]]:
        before: list[Message] = []
        after: list[Message] = []
        borrowed, again = self.refs.take_borrowed(dropped)
        if borrowed:
            before.append(Borrow(borrowed))
        if dropped:
            after.append(Drop(dropped))
        if again:
            after.append(Borrow(again))
        subscribing, reading = self.refs.take_asked()
        if subscribing:
            after.append(Subscribe(subscribing))
        if reading:
            after.append(Read(reading))
        released = self.memory.take_released()
        if released:
            after.append(Release(released))
        return before, after

    def disconnected(self) -> bool:
        """The link broke: drivers look for another node, workers end."""
        raise NotImplementedError

    def unsent(self) -> None:
        """``disconnected`` follows, from whoever reads."""

    def failed(self, error: Exception) -> None:
        self.give_up(RaySystemError(f"a message of the node could not be handled: {error!r}"))
        raise error

    def close(self, last: Message | None) -> None:
        """Say ``last`` and leave. References stay usable as far as their values are here."""
        self.link.close(last)
        self.give_up(ClusterConnectionError("regrow.shutdown() was called"))
        self._futures.close()
        self.memory.close()

    def give_up(self, failure: RayError) -> None:
        """There is no node any more: everything that waits fails."""
        self.link.fail(failure)
        self.refs.fail_all(SystemFailure(failure.code, str(failure)))
        self._requests.give_up()

    def declare(self) -> tuple[list[Message], list[Message]]:
        """What a new node is told: what is held and awaited, before and after the submissions."""
        holding, pending, reading = self.refs.held()
        first: list[Message] = []
        if self._defined:
            first.append(DefineFunctions(list(self._defined.values())))
        if holding:
            first.append(Borrow(holding))
        last: list[Message] = []
        if pending:
            last.append(Subscribe(pending))
        if reading:
            last.append(Read(reading))
        last.extend(self._requests.open)
        return first, last

    def _on_news(self) -> None:
        link = self.__dict__.get("link")
        if link is not None:
            link.arm()


def _with_options(options: bytes, **more: Any) -> bytes:
    packed = msgspec.msgpack.decode(options, type=dict[str, Any]) if options else {}
    return msgspec.msgpack.encode({**packed, **more})


def _content(packed: Arguments, varying: object) -> tuple[bytes, ...]:
    """What tells the arguments of a call from others; ``varying`` are themselves, where what they
    were packed to does not."""
    canonical = canonical_digest(varying) if varying is not None else None
    return (canonical,) if canonical else (digest(packed.data), *packed.deps, *packed.nested)


def _keyed_content(call: Call, arguments: bytes, varying: object) -> bytes:
    """What is compared with what another driver submits under the same key: the function's name and
    its arguments. Not what references refer to, nor what the function captured: these may be other
    ones each time, and the key is there to say that it is the same call all the same."""
    name = call.identity.split(b"\0", 1)[0]
    canonical = canonical_digest(varying, with_refs=False) if varying is not None else None
    return digest(name + b"\0" + (canonical or arguments))


def _content_id(parent: Task, call: Call, content: bytes, version: bytes) -> tuple[bytes, bool]:
    """The id of a submission, and whether it is one with a key that was submitted before."""
    if call.key is None:
        return parent.content_ids.next_id(content), False
    task_id = parent.content_ids.keyed_id(call.key + version)
    before = parent.keys.setdefault(call.key, content)
    if before is content:
        return task_id, False
    if before != content:
        raise ReplayMismatchError(
            f"{call.name}.options(key={call.key!r}) was submitted before with another function or "
            f"other arguments; one key names one call"
        )
    return task_id, True


def _content_digest(layout: Layout) -> bytes:
    """What identifies a large put before it is written; only compared with others of its kind."""
    hasher = xxhash.xxh3_128(layout.pickled)
    for buffer in layout.buffers:
        hasher.update(buffer)
    return hasher.digest()


def _split(
    refs: list[ObjectRef[Any]], places: Sequence[int]
) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
    """Those at these places, which ascend, and the others."""
    rest = refs.copy()
    for place in reversed(places):
        del rest[place]
    return [refs[place] for place in places], rest


def _ready_places(refs: list[ObjectRef[Any]], count: int, fetch: bool) -> list[int]:
    """Places of the first ``count`` that are ready."""
    places: list[int] = []
    for place, ref in enumerate(refs):  # hot path: `wait` over thousands
        if ref._status and (ref._data is not None or is_ready(ref, fetch)):
            places.append(place)
            if len(places) == count:
                break
    return places


_current: Client | None = None
_start: Callable[[], Client] | None = None


def current() -> Client:
    """The client of this process; connects one (as ``init()`` would) if there is none."""
    if _current is not None:
        return _current
    if _start is None:
        raise RaySystemError("regrow is not initialized; call regrow.init() first")
    return _start()


def set_current(client: Client | None) -> None:
    """Make ``client`` that of this process."""
    global _current
    _current = client


def connected() -> Client | None:
    """The client of this process, if there is one."""
    return _current


def set_start(start: Callable[[], Client]) -> None:
    """How ``current`` makes a client."""
    global _start
    _start = start
