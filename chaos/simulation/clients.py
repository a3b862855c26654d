"""What simulated drivers and workers have in common: a program at the end of a FIFO link.

They say what the real client says, in its order: references are counted and dropped, submissions
kept until they are committed, bytes written into room that the node made and read from where it
says. What they read is compared with the golden result at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct

from regrow.chaos.simulation.programs import SMALL, Content, Golden, Program, Result, execute
from regrow.chaos.simulation.world import Pipe
from regrow.ids import ContentIds, CountedIds, object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    PENDING,
    RECOVERABLE,
    RESUMED,
    RETRY_EXCEPTIONS,
    SYSTEM_ERROR,
    TASK,
    Borrow,
    ClientMessage,
    Committed,
    Create,
    Created,
    DefineFunctions,
    Drop,
    FunctionDef,
    Located,
    Location,
    NodeMessage,
    Put,
    PutValue,
    Read,
    Release,
    Return,
    RunTask,
    Seal,
    Submit,
    Subscribe,
    TaskSpec,
    Value,
    Values,
    Welcome,
    encode,
)
from regrow.objectstore.layout import digest as digest_of

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.node import NodeShell
    from regrow.chaos.simulation.node_bytes import NodeBytes

FUNCTIONS = 6


class Handle(Struct, eq=False):
    """A reference in a program: its object and what that has to be."""

    object_id: bytes
    golden: Golden


class Ref:
    """What a client knows of an object that it holds."""

    __slots__ = ("content", "count", "pin", "reading", "refs", "status", "told")

    def __init__(self) -> None:
        self.count = 0
        self.status = PENDING
        #: The bytes of a small object, an error, or a large one that is pinned.
        self.content: bytes | None = None
        self.pin: tuple[bytes, int] | None = None
        self.told = False
        self.reading = False


class Frame:
    """A program that is running."""

    def __init__(self, program: Program, task_id: bytes, job: int) -> None:
        self.program = program
        self.task_id = task_id
        self.job = job
        self.running: Generator[Any, Any, Result] | None = None
        self.handles: list[Handle] = []
        self.counted: CountedIds | None = None
        self.content_ids: ContentIds | None = None
        #: Flags of what it submits; and what else identifies actors without their state.
        self.passed_on = 0
        self.epoch = b""
        #: From which driver of its job it descends.
        self.driver = 0
        #: Its last call of each actor that restarts.
        self.last_calls: dict[bytes, bytes] = {}
        #: What it waits for: ("get" or "wait", handles, count), or ("credit",), ...
        self.waits: tuple[Any, ...] | None = None
        self.run: RunTask | None = None
        self.blocked = False
        #: Large return values that are not written yet, and all return values as they will be told.
        self.unwritten: deque[tuple[int, bytes, int]] = deque()
        self.returns: list[Return] = []
        self.result: Result | None = None
        self.started = 0.0
        #: What is to be sealed when room for it is there.
        self.sealing: tuple[Seal, bytes] | None = None


class SimClient:
    """What drivers and workers have in common."""

    role = ""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.name = name
        self.alive = True
        self.node: NodeShell | None = None
        #: The node's memory: mapped here, it can be read when the node is gone.
        self.arena: NodeBytes
        self.number = 0
        self.window = 20_000
        self.refs: dict[bytes, Ref] = {}
        self.uncommitted: deque[Raw | PutValue | Seal] = deque()
        self.defined: dict[bytes, FunctionDef] = {}
        self.up: Pipe | None = None
        self._specs: list[Raw] = []
        self._flushing = False

    # --- the link ---------------------------------------------------------------------------------

    def send(self, message: ClientMessage) -> None:
        """After what was submitted before."""
        self.flush()
        self._send(message)

    def _send(self, message: ClientMessage) -> None:
        if self.up is not None and self.node is not None:
            self.up.send(self.node.client_said, self.node.life, self.number, message)

    def flush(self) -> None:
        """Submissions leave together."""
        if self._specs:
            specs, self._specs = self._specs, []
            self._send(Submit(specs))

    def _submit(self, item: Raw | PutValue | Seal) -> None:
        self.uncommitted.append(item)
        if isinstance(item, Raw):
            self._specs.append(item)
        elif isinstance(item, PutValue):
            self.send(Put([item]))
        else:
            self.send(item)

    def receive(self, message: NodeMessage) -> None:
        """A message of the node."""
        match message:
            case Values(values):
                self._values(values)
            case Located(locations, values):
                for location in locations:
                    self._located(location)
                self._values(values)
            case Committed(count):
                for _ in range(count):
                    assert self.uncommitted, "more is committed than was submitted"
                    self.uncommitted.popleft()
            case Created():
                self._created(message)
            case Welcome():
                self.welcomed(message)
            case _:
                self.other(message)
        self.wake()

    def welcomed(self, message: Welcome) -> None:
        self.window = message.window

    def other(self, message: NodeMessage) -> None:
        """What only one role is told."""

    def wake(self) -> None:
        """Something changed: what waits may go on."""
        raise NotImplementedError

    # --- references -------------------------------------------------------------------------------

    def hold(self, handle: Handle, borrowed: bool) -> None:
        """The program has another reference to the object."""
        ref = self.refs.get(handle.object_id)
        if ref is None:
            ref = self.refs[handle.object_id] = Ref()
            if borrowed:
                self.send(Borrow([handle.object_id]))
        ref.count += 1
        if not borrowed:
            ref.told = True

    def let_go(self, handles: list[Handle]) -> None:
        """References that the program has no more."""
        dropped: list[bytes] = []
        pins: list[tuple[bytes, int]] = []
        for handle in handles:
            ref = self.refs[handle.object_id]
            ref.count -= 1
            if not ref.count:
                del self.refs[handle.object_id]
                dropped.append(handle.object_id)
                if ref.pin is not None:
                    pins.append(ref.pin)
        if dropped:
            self.send(Drop(dropped))
        if pins:
            self.send(Release(pins))

    def _values(self, values: list[Value]) -> None:
        for value in values:
            over = self._is_over(self.frame_that_writes(value.object_id))
            self.cluster.checks.value_seen(value, self.name, over)
            ref = self.refs.get(value.object_id)
            if ref is not None and ref.content is None:
                ref.status = value.status
                if value.data is not None:
                    ref.content = value.data
                    ref.reading = False

    def _is_over(self, frame: Frame | None) -> bool:
        """Whether its driver is no more; without a frame it may have been one of those."""
        return frame is None or self.cluster.checks.is_over(frame.job, frame.driver)

    def _located(self, location: Location) -> None:
        assert self.node is not None
        content = self.arena.read(location)
        pin = (location.object_id, location.attempt)
        ref = self.refs.get(location.object_id)
        if ref is None or ref.pin is not None:
            self.send(Release([pin]))
            return
        ref.status, ref.content, ref.pin, ref.reading = OK, content, pin, False

    def _ready(self, handle: Handle, fetch: bool) -> bool:
        """Whether the value is here; sees to it that it comes."""
        ref = self.refs[handle.object_id]
        if ref.status == PENDING:
            if not ref.told:
                ref.told = True
                self.send(Subscribe([handle.object_id]))
            return False
        if fetch and ref.content is None:
            if not ref.reading:
                ref.reading = True
                self.send(Read([handle.object_id]))
            return False
        return True

    def content(self, frame: Frame, handle: Handle) -> Content:
        """The value of a handle that is ready; its references are held from now on."""
        ref = self.refs[handle.object_id]
        assert ref.content is not None
        return self.decode(frame, ref.status, ref.content, handle)

    def unpin(self, handles: list[Handle]) -> None:
        """Views of large objects die, sooner or later."""
        for handle in handles:
            ref = self.refs[handle.object_id]
            if ref.pin is not None and self.world.rng.random() < 0.5:
                self.send(Release([ref.pin]))
                ref.pin = ref.content = None

    def decode(self, frame: Frame, status: int, data: bytes, handle: Handle) -> Content:
        """Bytes as the program sees them, compared with what they have to be."""
        over = self._is_over(frame)
        self.cluster.checks.content(handle.golden, status, data, self.name, over)
        if status == SYSTEM_ERROR:
            return Content(status, b"\xff" * 8, [])
        refs: list[Handle] = []
        if status == OK:
            end = len(data) - (len(data) - 8) % 20  # an actor's state may follow
            ids = [data[i : i + 20] for i in range(8, end, 20)]
            refs = [Handle(i, g) for i, g in zip(ids, handle.golden.refs, strict=True)]
        for ref in refs:
            self.hold(ref, borrowed=True)
            frame.handles.append(ref)
        return Content(status, data[:8], list(refs))

    # --- programs ---------------------------------------------------------------------------------

    def begin(self, frame: Frame, deps: list[Content], nested: list[Handle], flake: bool) -> None:
        frame.running = execute(frame.program, deps, list(nested), flake)
        frame.started = self.world.now
        self.resume(frame, None)

    def resume(self, frame: Frame, answer: Any) -> None:
        """Carries steps out until one has to wait."""
        assert frame.running is not None
        while True:
            try:
                step = frame.running.send(answer)
            except StopIteration as stop:
                self.ended(frame, stop.value)
                return
            self.cluster.operations += 1
            answer = None
            match step:
                case ("compute", ms):
                    self.flush()
                    frame.waits = ("time",)
                    self.later(ms, self._computed, frame)
                    return
                case ("submit", site, deps, nested, actor):
                    answer = self._call(frame, site, deps, nested, actor)
                    if len(self.uncommitted) >= self.window:
                        frame.waits = ("credit", answer)
                case ("drop", handle):
                    frame.handles.remove(handle)
                    self.let_go([handle])
                case ("get", handles):
                    frame.waits = ("get", handles)
                case ("wait", handles, count):
                    frame.waits = ("wait", handles, count, self.world.rng.random() < 0.5)
                case ("put", number, size, digest, refs):
                    answer = self._put(frame, number, size, digest, refs)
            if frame.waits is not None:
                found, answer = self.found(frame)
                if not found:
                    self.flush()
                    self.block(frame)
                    return
                frame.waits = None

    def _computed(self, frame: Frame) -> None:
        frame.waits = None
        self.resume(frame, None)

    def later(self, ms: float, act: Any, *args: Any) -> None:
        """In so much time of this process."""
        raise NotImplementedError

    def found(self, frame: Frame) -> tuple[bool, Any]:
        """Whether what the frame waits for is there, and the answer."""
        match frame.waits:
            case ("get", handles):
                all_ready = [self._ready(handle, True) for handle in handles]  # each is asked
                if all(all_ready):
                    contents = [self.content(frame, handle) for handle in handles]
                    self.unpin(handles)
                    return True, contents
            case ("wait", handles, count, fetch):
                ready = [i for i, handle in enumerate(handles) if self._ready(handle, fetch)]
                if len(ready) >= count:
                    return True, ready[:count]
            case ("credit", answer):
                if len(self.uncommitted) < self.window:
                    return True, answer
            case ("put", handle):
                if frame.sealing is None:
                    return True, handle
        return False, None

    def block(self, frame: Frame) -> None:
        """The program waits."""

    def ended(self, frame: Frame, result: Result) -> None:
        raise NotImplementedError

    def _call(
        self,
        frame: Frame,
        site: int,
        deps: list[Handle],
        nested: list[Handle],
        actor: Handle | None,
    ) -> list[Handle]:
        """Submits a call; handles of its return values."""
        program = self.cluster.programs[site]
        definition = self.cluster.functions[site % FUNCTIONS]
        if definition.function_id not in self.defined:
            self.defined[definition.function_id] = definition
            self.send(DefineFunctions([definition]))
        dep_ids = [handle.object_id for handle in deps]
        nested_ids = [handle.object_id for handle in nested]
        args = site.to_bytes(8, "big")
        if frame.counted is not None:
            task_id = frame.counted.next_id()
        else:
            assert frame.content_ids is not None
            identity = args
            if program.kind == ACTOR_CREATION and not program.recoverable:
                identity += frame.epoch
            task_id = frame.content_ids.next_id(b"\0".join((identity, *dep_ids, *nested_ids)))
        actor_id = b""
        if program.kind == ACTOR_CREATION:
            actor_id = task_id
        elif actor is not None:
            actor_id = actor.object_id[:16]
        name = {TASK: f"f{site}", ACTOR_CREATION: f"A{site}.__init__", ACTOR_CALL: f"A.m{site}"}
        flags = RETRY_EXCEPTIONS if program.flaky else 0
        flags |= RECOVERABLE if program.recoverable else 0
        flags |= frame.passed_on
        if frame.passed_on & RESUMED:
            self.cluster.checks.resubmitted(task_id, program)
        after = b""
        if program.kind == ACTOR_CALL and program.recoverable:
            after = frame.last_calls.get(actor_id, b"")
            frame.last_calls[actor_id] = task_id
        spec = TaskSpec(
            task_id, frame.task_id, frame.job, definition.function_id, name[program.kind],
            program.kind, actor_id, dep_ids, nested_ids, program.resources, len(program.returns),
            program.max_retries, flags, program.strategy, program.order, after, args,
        )  # fmt: skip
        self.cluster.checks.submitted(task_id, site)
        goldens = self.cluster.golden.values[site]
        handles = [Handle(object_id(task_id, i), golden) for i, golden in enumerate(goldens)]
        for handle in handles:
            self.hold(handle, borrowed=False)
        frame.handles += handles
        self._submit(Raw(encode(spec)))
        return handles

    def _put(
        self, frame: Frame, number: int, size: int, digest: bytes, refs: list[Handle]
    ) -> Handle:
        data = digest + b"".join(ref.object_id for ref in refs)
        content = digest_of(data)
        if frame.counted is not None:
            oid = put_object_id(frame.counted.next_id())
        else:
            assert frame.content_ids is not None
            oid = put_object_id(frame.content_ids.next_id(b"put\0" + content))
        handle = Handle(oid, self.cluster.golden.puts[frame.program.site, number])
        self.cluster.checks.put(oid, handle.golden)
        self.hold(handle, borrowed=False)
        frame.handles.append(handle)
        ref_ids = [ref.object_id for ref in refs]
        ref = self.refs[oid]
        if size <= SMALL:
            if ref.content is None:
                ref.status, ref.content = OK, data
            self._submit(PutValue(oid, frame.task_id, frame.job, content, data, ref_ids))
        else:
            ref.status = OK
            frame.sealing = Seal(oid, frame.task_id, frame.job, size, content, ref_ids), data
            frame.waits = ("put", handle)
            self.send(Create(oid, 0, size))
        return handle

    def _created(self, message: Created) -> None:
        """Room for an object; or it is here already."""
        frame = self.frame_that_writes(message.object_id)
        if frame is None:
            return
        assert message.error is None, f"no room: {message.error}"
        assert self.node is not None
        if frame.sealing is not None and frame.sealing[0].object_id == message.object_id:
            (seal, data), frame.sealing = frame.sealing, None
            if message.location is not None:
                self.arena.write(message.location, data)
            self._submit(seal)
        elif frame.unwritten:
            _, data, _ = frame.unwritten.popleft()
            if message.location is not None:
                self.arena.write(message.location, data)
            self.write_results(frame)

    def frame_that_writes(self, oid: bytes) -> Frame | None:
        raise NotImplementedError

    def write_results(self, frame: Frame) -> None:
        """Of a worker."""
