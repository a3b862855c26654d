"""Simulated worker processes: they run what their node gives them, and die with it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from regrow.chaos.simulation.clients import Frame, Handle, SimClient
from regrow.chaos.simulation.programs import SMALL, Content, Golden, Program, Result, mix
from regrow.ids import object_id, put_object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    PROTOCOL_VERSION,
    Blocked,
    Checkpoint,
    Create,
    Done,
    Exit,
    Hello,
    NodeMessage,
    PutValue,
    Release,
    Return,
    Returned,
    Run,
    RunTask,
    TakeBack,
    TaskDone,
    TaskHeader,
    Unblocked,
    flags_of_driver,
    spec_decoder,
)
from regrow.objectstore.layout import digest as digest_of

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.node import NodeShell


class SimWorker(SimClient):
    """A worker process."""

    role = "worker"

    def __init__(self, cluster: Cluster, node: NodeShell, worker: int) -> None:
        super().__init__(cluster, f"w{node.node_id}.{worker}")
        self.node = node
        self.worker = worker
        self.life = node.life
        self.queue: deque[RunTask] = deque()
        self.frame: Frame | None = None
        self.is_actor = False
        self.exiting = False
        #: Of an actor: the last call of each caller.
        self._orders: dict[bytes, tuple[int, int]] = {}
        #: Of an actor that restarts: what all calls so far, in their order, have made of it.
        self.state = b""
        self._checkpoint_every = 0
        self._calls = 0
        self._saved: Handle | None = None

    def later(self, ms: float, act: Any, *args: Any) -> None:
        assert self.node is not None
        self.node.schedule(self.life, ms, self._alive, act, args)

    def _alive(self, act: Any, args: tuple[Any, ...]) -> None:
        if self.alive:
            act(*args)

    def hello(self) -> Hello:
        return Hello(PROTOCOL_VERSION, "", self.role, 1000 + self.worker, self.worker)

    def other(self, message: NodeMessage) -> None:
        match message:
            case Run(tasks):
                self.queue.extend(tasks)
                self._next()
            case TakeBack(count):
                self._give_back(count)
            case Exit():
                self.exiting = True
                self._next()

    def _give_back(self, count: int) -> None:
        back = [self.queue.pop() for _ in range(min(count, len(self.queue)))]
        back.reverse()
        self.send(Returned([spec_decoder.decode(run.spec).task_id for run in back]))

    def _next(self) -> None:
        if self.frame is not None or not self.alive:
            return
        if not self.queue:
            if self.exiting:
                assert self.node is not None
                self.node.worker_dies(self)
            return
        run = self.queue.popleft()
        spec = spec_decoder.decode(run.spec)
        site = int.from_bytes(spec.args, "big")
        program = self.cluster.programs[site]
        frame = self.frame = Frame(program, spec.task_id, spec.job)
        frame.run = run
        frame.content_ids = self.cluster.content_ids(spec.job, spec.task_id)
        frame.driver = run.driver
        frame.passed_on = flags_of_driver(run.driver)
        self.cluster.checks.started(spec, self.node)
        if spec.kind == ACTOR_CALL:
            self._check_order(spec, program)
        if run.restore:
            self._load(frame, run)
            return
        golden_deps, golden_nested = self.cluster.golden.given[site]
        contents = {value.object_id: value for value in run.inline}
        places = {place.object_id: place for place in run.located}
        deps: list[Content] = []
        pins: list[tuple[bytes, int]] = []
        for oid, golden in zip(spec.deps, golden_deps, strict=True):
            value = contents.get(oid)
            if value is not None:
                assert value.data is not None
                data = value.data
                assert value.status == OK, "a task was started with an error as argument"
            else:
                assert self.node is not None
                data = self.arena.read(places[oid])
                pins.append((oid, places[oid].attempt))
            deps.append(self.decode(frame, OK, data, Handle(oid, golden)))
        nested = [Handle(o, g) for o, g in zip(spec.nested, golden_nested, strict=True)]
        for handle in nested:
            self.hold(handle, borrowed=True)
            frame.handles.append(handle)
        if pins:
            self.send(Release(list(dict.fromkeys(pins))))
        flake = program.flaky and self.world.rng.random() < 0.4
        self.begin(frame, deps, nested, flake)

    def _load(self, frame: Frame, run: RunTask) -> None:
        """The actor as it was saved: its constructor does not run."""
        [value] = [value for value in run.inline if value.object_id == run.restore]
        assert value.data is not None
        assert value.status == OK, "a state that was saved is an error"
        self.state = value.data
        frame.started = self.world.now
        [golden] = self.cluster.golden.values[frame.program.site]
        self.ended(frame, Result(OK, [(SMALL, golden.hash, [])]))

    def _check_order(self, spec: TaskHeader, program: Program) -> None:
        """A caller's calls come in its order, and are replayed in that."""
        # The next driver of a job begins with its first call, which its arguments may have changed.
        call, last = (spec.driver, program.order), self._orders.get(spec.parent_id, (0, 0))
        self.cluster.checks.require(
            call > last, f"{self.name}: call {call[1]} of a caller after {last[1]}"
        )
        self._orders[spec.parent_id] = call

    def block(self, frame: Frame) -> None:
        waiting = frame.waits is not None and frame.waits[0] in ("get", "wait", "credit")
        if not frame.blocked and waiting:
            frame.blocked = True
            if self.queue and not self.is_actor:
                self._give_back(len(self.queue))
            self.send(Blocked(frame.task_id))

    def wake(self) -> None:
        frame = self.frame
        if frame is None or frame.waits is None or frame.waits[0] == "time":
            return
        found, answer = self.found(frame)
        if found:
            frame.waits = None
            if frame.blocked:
                frame.blocked = False
                self.send(Unblocked(frame.task_id))
            self.resume(frame, answer)

    def ended(self, frame: Frame, result: Result) -> None:
        frame.result = result
        assert frame.run is not None
        state = self._step(frame)
        for index, (size, digest, refs) in enumerate(result.returns):
            data = digest + b"".join(ref.object_id for ref in refs) + state
            ref_ids = [ref.object_id for ref in refs]
            if size > SMALL and result.status == OK:
                frame.unwritten.append((index, data, size))
                frame.returns.append(Return(size, digest_of(data), None, ref_ids))
                self.cluster.checks.large(digest_of(data), data)
            else:
                frame.returns.append(Return(len(data), digest_of(data), data, ref_ids))
        frame.waits = ("results",)
        self.write_results(frame)

    def _step(self, frame: Frame) -> bytes:
        """The state of an actor that restarts after a call, which its result tells: so a call that
        is lost, done twice or out of order shows in everything after it."""
        program = frame.program
        assert frame.run is not None
        if not program.recoverable:
            return b""
        if program.kind == ACTOR_CREATION:
            self._checkpoint_every = program.checkpoint_every
            self.state = self.state or mix(program.site)
            return b""
        self.state = mix(self.state, program.site)
        self._calls += 1
        return self.state

    def _save(self, frame: Frame, exact: bool) -> None:
        """Between two calls; with the result of the first, if the state is due after every one."""
        every = self._checkpoint_every
        if frame.program.kind != ACTOR_CALL or not every or (every == 1) != exact:
            return
        if self._calls < every:
            return
        self._calls = 0
        oid = put_object_id(self.world.rng.randbytes(16))
        saved = Handle(oid, Golden(OK, self.state, [], False))
        self.cluster.checks.put(oid, saved.golden)
        self.hold(saved, borrowed=False)
        ref = self.refs[oid]
        ref.status, ref.content = OK, self.state
        maker = self.world.rng.randbytes(16)
        self._submit(PutValue(oid, maker, frame.job, digest_of(self.state), self.state, []))
        self.send(Checkpoint(oid, False, exact))
        if self._saved is not None:
            self.let_go([self._saved])
        self._saved = saved

    def write_results(self, frame: Frame) -> None:
        assert frame.run is not None and frame.result is not None
        if frame.unwritten:
            index, _, size = frame.unwritten[0]
            self.send(Create(object_id(frame.task_id, index), frame.run.attempt, size))
            return
        duration = int((self.world.now - frame.started) * 1000)
        done = TaskDone(
            frame.task_id, frame.run.attempt, frame.result.status, frame.returns, duration,
            frame.result.retry,
        )  # fmt: skip
        self._save(frame, exact=True)
        self.send(Done([done]))
        self._save(frame, exact=False)
        self.let_go(frame.handles)
        self.frame = None
        if frame.program.kind == ACTOR_CREATION and frame.result.status == OK:
            self.is_actor = True
        self._next()

    def frame_that_writes(self, oid: bytes) -> Frame | None:
        return self.frame
