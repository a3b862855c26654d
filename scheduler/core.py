"""The core of a node: everything that changes its state happens here and in the parts it is made
of.

``handle(event)`` returns effects, which the shell carries out in their order.  Nothing here waits,
reads a clock or draws a random number.  Save, then send: an append comes before what depends on
it, and what leaves the node waits in the journal until its batch is committed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

from msgspec import Struct

from regrow.config import Config
from regrow.gcs import operations
from regrow.messages import (
    ActorAt,
    Ask,
    Blocked,
    Borrow,
    Bye,
    Checkpoint,
    ClientMessage,
    CloseJob,
    Committed,
    Create,
    DefineFunctions,
    Done,
    Drain,
    Drop,
    Fenced,
    FromStore,
    FunctionDef,
    Functions,
    HandedTask,
    HandOver,
    Hello,
    JobClosed,
    JobDropped,
    JobOpened,
    KillActor,
    Locate,
    Locations,
    NodeDied,
    NodeMessage,
    Nodes,
    NodeStatus,
    NodeView,
    OpenJob,
    Output,
    PeerDrop,
    PeerMessage,
    PeerOutput,
    PeerValues,
    Printed,
    Put,
    Read,
    Reassigned,
    Rebuild,
    Rebuilt,
    Refused,
    Registered,
    RegisterRefused,
    Release,
    Reply,
    Resources,
    RestoreActor,
    Returned,
    Seal,
    Stop,
    Submit,
    Subscribe,
    Suspect,
    TaskStates,
    ToStore,
    Unblocked,
    Value,
    Values,
    Watch,
    WatchFor,
    Welcome,
)
from regrow.objectstore.core import StoreCore
from regrow.objectstore.effects import ObjectKey
from regrow.scheduler import events, policy
from regrow.scheduler.actors import ActorTable
from regrow.scheduler.checkpoints import Checkpointer
from regrow.scheduler.draining import Draining
from regrow.scheduler.events import Effect, Event
from regrow.scheduler.fenced_drivers import FencedDrivers
from regrow.scheduler.journal import Journal, OpenBatch
from regrow.scheduler.ledger import Ledger, Shape
from regrow.scheduler.objects import Entry, ObjectTable
from regrow.scheduler.outage import Outage
from regrow.scheduler.pressure import Pressure
from regrow.scheduler.questions import Questions
from regrow.scheduler.replay_costs import ReplayCosts
from regrow.scheduler.tasks import TaskTable
from regrow.scheduler.transport import Transport
from regrow.scheduler.workers import Pool

#: A control store that is away for so long is told of.
STORE_PATIENCE_MS: Final = 3_000.0
#: The status of a node whose log is refused is repeated this often.
STATUS_AGAIN_MS: Final = 1_000.0


class NodeSettings(Struct, frozen=True, kw_only=True):
    """What a node is told at its start."""

    node_id: int
    incarnation: int
    total: Resources
    arena_size: int
    arena_path: str
    storage: str
    home: str
    prestart: int = 0


class Driver:
    """A driver that is, or was, connected here."""

    __slots__ = ("client", "gone", "hello", "is_async", "job", "number", "said_bye", "welcomed")

    def __init__(self, client: int, hello: Hello) -> None:
        self.client = client
        self.hello = hello
        self.is_async = hello.durability == "async"
        self.job = 0
        #: Which driver of a named job.
        self.number = hello.driver
        self.said_bye = False
        self.welcomed = False
        #: Its connection broke; it may come back within the grace.
        self.gone = False


class Core:
    """See the module."""

    def __init__(
        self,
        settings: NodeSettings,
        config: Config,
        store: StoreCore,
        file_path: Callable[[ObjectKey], str],
    ) -> None:
        self.settings = settings
        self.config = config
        self.node_id = settings.node_id
        self.self_id = (settings.node_id, settings.incarnation)
        self.now_ms = 0.0
        self.nodes: dict[int, NodeView] = {}
        #: Nodes that died and have not come back, with their last incarnation. One that is in
        #: neither may have joined just now.
        self._dead: dict[int, int] = {}
        #: The newest incarnation that spoke.
        self._heard: dict[int, int] = {}
        self.functions: dict[bytes, FunctionDef] = {}
        self.journal = Journal(self.self_id)
        self.ledger = Ledger(settings.total)
        self.objects = ObjectTable(self)
        self.transport = Transport(self, store, file_path)
        self.tasks = TaskTable(self)
        self.actors = ActorTable(self)
        self.checkpointer = Checkpointer(self)
        self.replay_costs = ReplayCosts(self)
        self.pool = Pool(self)
        self.pressure = Pressure(self)
        self.questions = Questions(self)
        self.outage = Outage(self)
        self.draining = Draining(self)
        self.drivers: dict[int, Driver] = {}
        self._driver_of_job: dict[int, int] = {}
        #: Where a job's driver was last heard of, for the output of its workers.
        self._node_of_job: dict[int, int] = {}
        self.fenced = FencedDrivers()
        #: Jobs whose drivers are no more and of whose ends nothing was heard yet.
        self._closing: dict[int, CloseJob] = {}
        self._functions_at: dict[int, set[bytes]] = {}
        self._room: dict[int, Resources] = {}
        self._values: dict[int, list[Value]] = {}
        self._locates: dict[bytes, None] = {}
        self._gone: list[tuple[bytes, int]] = []
        self._relocate: dict[bytes, None] = {}
        self._awaiting_restore: dict[ObjectKey, list[events.FetchAsked]] = {}
        #: Rebuilds that ended in this event.
        self.rebuilt: list[tuple[bytes, bool]] = []
        self._effects: list[Effect] = []
        self._flush_armed = False
        self._copy_number = 1_000_000
        self._status = NodeStatus({}, -1)
        self._status_ms = 0.0
        self._over = False
        #: Since when the control store is away (negative: it is not), and whether drivers know.
        self._store_lost_ms = -1.0
        self._told_of_store = False

    # --- events -----------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """The first effects: workers for the CPUs of this node."""
        self.pool.start(self.settings.prestart)
        return self._finish()

    def handle(self, event: Event) -> list[Effect]:  # noqa: C901 - one arm per event
        """What follows from ``event``, in order."""
        if self._over:
            return []
        match event:
            case events.ClientSaid():
                self._client_said(event.client, event.message)
            case events.Appended():
                self._appended(event)
            case events.DrainAsked():
                self.draining.begin(event.deadline_s, event.reason)
            case events.LogFailed():
                self.outage.failed(event)
            case events.FlushDue():
                self._flush_armed = False
                self._flush(due=True)
            case events.Tick():
                self._tick(event.now_ms)
            case events.MemoryMeasured():
                self.pressure.measured(event)
            case events.PeerSaid():
                self._hear(event.node_id, event.incarnation)
                self._peer_said(event.node_id, event.message)
            case events.StoreSaid():
                self._store_said(event.message)
            case events.ClientArrived():
                self._client_arrived(event.client, event.hello)
            case events.ClientGone():
                self._client_gone(event.client)
            case events.DriverExited():
                self._driver_exited(event.client)
            case events.WorkerExited():
                self._worker_exited(event.number)
            case events.PeerLost():
                self.send_store(Suspect(event.node_id, event.incarnation, event.refused))
            case events.StoreLost():
                # What was asked is asked again when it is back.
                if self._store_lost_ms < 0:
                    self._store_lost_ms = self.now_ms
            case events.FetchAsked():
                self.transport.serve(event)
            case events.BytesServed():
                self.transport.served(event.number)
            case events.Fetched():
                self.transport.fetched(event)
            case events.Spilled():
                self.transport.spilled(event)
            case events.Restored():
                self.transport.restored(event)
            case events.Stored():
                self.transport.stored(event)
            case _:
                assert_never(event)
        return self._finish()

    def _finish(self) -> list[Effect]:
        """What every event ends with: dispatch, the messages it gathered, perhaps an append."""
        self.pool.dispatch()
        self.pool.flush()
        if self._locates:
            self.send_store(Locate(list(self._locates), self._gone))
            self._locates, self._gone = {}, []
        if self.rebuilt:
            # Where the copies are comes first, or the control store would take them for lost still.
            self._report_objects()
            rebuilt, self.rebuilt = self.rebuilt, []
            self.send_store_held(Rebuilt(rebuilt))
        self._flush()
        if self._values:
            values, self._values = self._values, {}
            for client, items in values.items():
                self._effects.append(events.ToClient(client, Values(items)))
        effects, self._effects = self._effects, []
        return effects

    def _client_said(  # noqa: C901 - one arm per message
        self, client: int, message: ClientMessage
    ) -> None:
        match message:
            case Submit():
                self.tasks.submit(client, message.specs, message.resent)
            case Done():
                self._with_worker(client, lambda w: self.pool.done(w, message.tasks))
            case Drop():
                self.objects.drop(client, message.object_ids)
            case Put():
                self.transport.put_small(client, message.values)
            case Read():
                self.objects.read(client, message.object_ids)
            case Release():
                self.transport.unpin(client, message.pins)
            case Subscribe():
                self.objects.subscribe(client, message.object_ids)
            case Borrow():
                self.objects.borrow(client, message.object_ids)
            case DefineFunctions():
                self._define(message.functions)
            case Create():
                self.transport.create(client, message)
            case Seal():
                self.transport.put_large(client, message, self.now_ms)
            case Checkpoint():
                self._with_worker(client, lambda w: self.checkpointer.taken(w, message))
            case Returned():
                self._with_worker(client, lambda w: self.pool.returned(w, message.task_ids))
            case Blocked():
                self._with_worker(client, self.pool.blocked)
            case Unblocked():
                self._with_worker(client, self.pool.unblocked)
            case Output():
                self._output(client, message)
            case Ask():
                self.questions.ask(client, message)
            case Bye():
                self._bye(client, message)
            case Hello():
                self.emit(events.CloseClient(client))  # once is enough
            case _:
                assert_never(message)

    def _with_worker(self, client: int, act: Callable[..., None]) -> None:
        worker = self.pool.by_client.get(client)
        if worker is not None:
            act(worker)

    def _progressed(self, worker: object) -> None:
        setattr(worker, "progress_ms", self.now_ms)  # noqa: B010

    def _define(self, functions: list[FunctionDef]) -> None:
        for definition in functions:
            if definition.function_id not in self.functions:
                self.functions[definition.function_id] = definition
                self.journal.function(definition)
        self.tasks.functions_arrived([f.function_id for f in functions])

    def _hear(self, node_id: int, incarnation: int) -> None:
        """A peer spoke: one that came back may do so before the control store tells of it."""
        if incarnation > self._heard.get(node_id, 0):
            self._heard[node_id] = incarnation
            if self._dead.get(node_id, incarnation) < incarnation:
                del self._dead[node_id]

    def _peer_said(self, node_id: int, message: PeerMessage) -> None:
        match message:
            case HandOver():
                self._learn(message.functions)
                for handed in message.tasks:
                    self.tasks.handed(handed)
            case PeerValues():
                self.objects.peer_values(node_id, message.values)
            case Watch():
                asker = message.node_id or node_id
                if not self.is_dead(asker):  # a zombie's question is nobody's
                    self.objects.watch(asker, message.object_ids)
            case PeerDrop():
                self.objects.peer_drop(node_id, message.object_ids)
            case KillActor():
                self.actors.kill(message.actor_id, message.no_restart)
            case PeerOutput():
                self._print(message.printed)
            case _:
                raise AssertionError(f"{type(message).__name__} is for the shell")

    def _learn(self, functions: list[FunctionDef]) -> None:
        """Functions that are in the log already."""
        for definition in functions:
            self.functions.setdefault(definition.function_id, definition)
        self.tasks.functions_arrived([f.function_id for f in functions])

    def _store_said(self, message: FromStore) -> None:  # noqa: C901 - one arm per message
        match message:
            case Registered():
                self._nodes(message.nodes)
                self._store_is_back()
            case Nodes():
                self._nodes(message.nodes)
            case NodeDied():
                self._node_died(message)
            case Reassigned():
                self._learn(message.functions)
                for held in message.tasks:
                    self.tasks.hold(held)
            case Rebuild():
                self._learn(message.functions)
                for held in message.tasks:
                    self.tasks.hold(held, rebuild=True)
            case Locations():
                self.objects.locations(message.objects)
            case TaskStates():
                if message.number > 0:
                    self.tasks.looked_up(message)
                else:
                    self.actors.call_order.looked_up(message)
            case JobOpened():
                self._job_opened(message)
            case JobClosed():
                self._job_closed(message.job, message.driver)
                if message.driver:
                    self.send_store_held(JobDropped(message.job, message.driver))
            case ActorAt():
                self.actors.located(message)
            case RestoreActor():
                self._learn(message.functions)
                self.actors.restorer.begin(message)
            case Reply():
                self.questions.replied(message)
            case Functions():
                self._learn(message.functions)
            case Drain():
                self.draining.begin(message.deadline_s, message.reason)
            case WatchFor():
                self.objects.watch(message.node_id, message.object_ids)
            case Fenced():
                self._end(events.Restart(message.reason))
            case RegisterRefused():
                self._end(events.StopNode(message.message))
            case Stop():
                self._end(events.StopNode(""))
            case _:
                assert_never(message)

    # --- the log ----------------------------------------------------------------------------------

    def _appended(self, event: events.Appended) -> None:
        if event.verdict == operations.APPLIED:
            self._release(self.journal.committed(event.number))
            if self.outage.told and self._store_lost_ms >= 0:
                self._store_lost_ms = self.now_ms  # it waited for Postgres too
            self.outage.answered()
        elif event.verdict == operations.BEHIND:
            self._end(
                events.StopNode(
                    "the database is older than what this node has committed: it was restored "
                    "from a backup. Nothing more is written. Stop the cluster, and start it on "
                    "this database if losing what came after the backup is intended."
                )
            )
        else:
            self._end(events.Restart(f"append {event.number}: {event.verdict} {event.detail}"))

    def _release(self, batch: OpenBatch) -> None:
        """A batch is committed: what waited for it leaves."""
        emit = self._effects.append
        for client, count in batch.acks.items():
            emit(events.ToClient(client, Committed(count)))
        for client, values in batch.values.items():
            emit(events.ToClient(client, Values(values)))
        for (node_id, incarnation), handed in batch.handed.items():
            view = self.nodes.get(node_id)
            if view is None or view.incarnation != incarnation:
                continue  # it died: the control store gives the tasks to another
            emit(events.ToPeer(node_id, HandOver(handed, self._functions_for(node_id, handed))))
        for node_id, values in batch.peer_values.items():
            emit(events.ToPeer(node_id, PeerValues(values)))
        self._effects.extend(batch.effects)

    def _functions_for(self, node_id: int, handed: list[HandedTask]) -> list[FunctionDef]:
        sent = self._functions_at.setdefault(node_id, set())
        needed = dict.fromkeys(self.tasks.function_of(task) for task in handed)
        missing = [self.functions[f] for f in needed if f in self.functions and f not in sent]
        sent.update(definition.function_id for definition in missing)
        return missing

    def _flush(self, due: bool = False) -> None:
        """Appends the open batch if somebody waits for it and the log is idle, if it is large, or
        if its time has come; else sees to it that its time comes."""
        journal = self.journal
        batch = journal.open
        if not batch.records:
            if batch.acks and not journal.in_flight:
                acks, batch.acks = batch.acks, {}
                for client, count in acks.items():
                    self._effects.append(events.ToClient(client, Committed(count)))
            return
        in_flight = len(journal.in_flight)
        config = self.config
        if (in_flight == 0 and (due or batch.awaited)) or (
            in_flight < config.append_pipeline and batch.records >= config.batch_max_records
        ):
            number, content = journal.close()
            self._effects.append(events.AppendBatch(number, content))
        elif not self._flush_armed:
            self._flush_armed = True
            self._effects.append(events.ArmFlush())

    # --- what the parts say -----------------------------------------------------------------------

    def emit(self, effect: Effect) -> None:
        """An effect that waits for nothing."""
        self._effects.append(effect)

    def send_client(self, client: int, message: NodeMessage) -> None:
        """To a client of this node, at once."""
        self._effects.append(events.ToClient(client, message))

    def send_store(self, message: ToStore) -> None:
        """Questions and reports to the control store: they promise nothing."""
        self._effects.append(events.ToControlStore(message))

    def send_store_held(self, message: ToStore) -> None:
        """News for the control store that others will act upon: after the commit."""
        effect = events.ToControlStore(message)
        if not self.journal.hold(effect):
            self._effects.append(effect)

    def send_peer(self, node_id: int, message: PeerMessage) -> None:
        """Requests to a peer: they promise nothing."""
        self._effects.append(events.ToPeer(node_id, message))

    def send_peer_held(self, node_id: int, message: PeerMessage) -> None:
        """To a peer, after the commit, behind what was handed to it before."""
        effect = events.ToPeer(node_id, message)
        if not self.journal.hold(effect):
            self._effects.append(effect)

    def tell(self, client: int, value: Value, ungated: bool = False) -> None:
        """A value for a client: to a driver only after the commit. Hot path."""
        driver = self.drivers.get(client)
        gated = driver is not None and not ungated and not driver.is_async
        if gated and self.journal.hold_value(client, value):
            return
        values = self._values.get(client)
        if values is None:
            self._values[client] = [value]
        else:
            values.append(value)

    def tell_peer(self, node_id: int, value: Value) -> None:
        """A value for a peer, after the commit."""
        gate = self.journal.gate()
        if gate is None:
            self._effects.append(events.ToPeer(node_id, PeerValues([value])))
        else:
            gate.peer_values.setdefault(node_id, []).append(value)

    def hand_over(self, holder: tuple[int, int], handed: HandedTask) -> None:
        """A task for another node, after the commit that makes it the holder."""
        gate = self.journal.gate()
        assert gate is not None, "a hand-over that was not logged"
        gate.handed.setdefault(holder, []).append(handed)

    def locate(self, object_id: bytes, gone: list[tuple[bytes, int]] | None = None) -> None:
        """Asks the control store where an object is, with the others of this event."""
        self._locates[object_id] = None
        if gone:
            self._gone.extend(gone)

    def is_dead(self, node_id: int) -> bool:
        """Whether the node is known to be dead."""
        return node_id in self._dead

    def relocate_if_dead(self, entry: Entry) -> None:
        """An answer that names a node that is gone is asked for again at the next tick."""
        view = self.nodes.get(entry.maker)
        if view is None or not view.alive:
            entry.maker = 0
            self.relocate(entry)

    def relocate(self, entry: Entry) -> None:
        """The answer is out of date already: it is asked for again at the next tick."""
        entry.locating = True
        self._relocate[entry.object_id] = None

    def is_driver(self, client: int) -> bool:
        return client in self.drivers

    def next_copy_number(self) -> int:
        """In place of an attempt, for a copy that must not meet another of the same object."""
        self._copy_number += 1
        return self._copy_number

    def await_restore(self, key: ObjectKey, asked: events.FetchAsked) -> None:
        self._awaiting_restore.setdefault(key, []).append(asked)

    def restore_ended(self, key: ObjectKey) -> None:
        for asked in self._awaiting_restore.pop(key, ()):
            self.transport.served(asked.number)  # the pin of the restore
            self.transport.serve(asked)

    # --- nodes ------------------------------------------------------------------------------------

    def nodes_alive(self) -> list[NodeView]:
        """As the control store last told; this node as it is now."""
        alive = [node for node in self.nodes.values() if node.alive]
        if self.draining:
            return [node for node in alive if node.node_id != self.node_id]
        if self.node_id not in self.nodes:
            settings = self.settings
            alive.append(
                NodeView(
                    *self.self_id, "", 0, "", settings.total, self.ledger.available,
                    self.pool.queued, {}, True, False,
                )
            )  # fmt: skip
        return alive

    @property
    def has_peers(self) -> bool:
        """Whether another node could take over what this one has."""
        others = (n for n in self.nodes.values() if n.node_id != self.node_id)
        return any(node.alive and not node.draining for node in others)

    def peer_with_room(self, shape: Shape) -> int | None:
        """The peer with the most free CPU that could start ``shape`` now; its room shrinks by
        it."""
        best: tuple[int, int] | None = None
        for node_id, room in self._room.items():
            if policy.fits(shape, room):
                candidate = (room.get("CPU", 0), -node_id)
                if best is None or candidate > best:
                    best = candidate
        if best is None:
            return None
        room = self._room[-best[1]]
        for name, amount in shape or (("CPU", 1),):
            room[name] = room.get(name, 0) - amount
        return -best[1]

    def _nodes(self, nodes: list[NodeView]) -> None:
        self.nodes = {node.node_id: node for node in nodes}
        heard = self._heard
        self._dead = {
            node.node_id: node.incarnation
            for node in nodes
            if not node.alive and heard.get(node.node_id, 0) <= node.incarnation
        }
        self._room = {
            node.node_id: dict(node.available)
            for node in nodes
            if node.alive and node.node_id != self.node_id and not node.queued and not node.draining
        }
        self.tasks.retry_infeasible()
        self.pool.offload()

    def _node_died(self, message: NodeDied) -> None:
        node_id = message.node_id
        if (node_id, message.incarnation) == self.self_id:
            self._end(events.Restart(message.reason))
            return
        view = self.nodes.get(node_id)
        if view is not None and view.incarnation > message.incarnation:
            return
        self.nodes.pop(node_id, None)
        came_back = self._heard.get(node_id, 0) > message.incarnation
        if not came_back:
            self._dead[node_id] = message.incarnation
        self._room.pop(node_id, None)
        self._functions_at.pop(node_id, None)
        self.tasks.node_died(node_id)
        self.objects.node_died(node_id, came_back)
        self.actors.node_died(node_id, message.reason)

    def tell_drivers(self, text: str) -> None:
        """A line on the standard error of every driver of this node."""
        for driver in self.drivers.values():
            self.warn_driver(driver.job, text)

    def _store_is_back(self) -> None:
        """It may be a new leader, which knows only what it is told."""
        self._store_lost_ms = -1.0
        if self._told_of_store:
            self._told_of_store = False
            self.tell_drivers("the control store is back")
        report = self.transport.report(everything=True)
        if report is not None:
            self.send_store_held(report)
        for here in self.actors.report():
            self.send_store_held(here)
        self.objects.locate_all()
        self.tasks.look_up_again()
        self.actors.call_order.ask_again()
        self.tasks.ask_functions_again()
        self.actors.find_again()
        self.questions.ask_again()
        for closed in self._closing.values():
            self.send_store_held(closed)
        driven = set(self._closing)
        for driver in self.drivers.values():
            if not driver.gone and not driver.said_bye:
                driven.add(driver.job)
                self._open_job(driver)
        elsewhere = [driver.job for driver in self.drivers.values()]
        elsewhere += [task.header.job for task in self.tasks.tasks.values()]
        for job in dict.fromkeys([*elsewhere, *self._node_of_job]):
            if job not in driven:  # its end may have been missed: then the answer says so
                lost = CloseJob(job, failed=True, lost=True, driver=self.fenced.newest(job))
                self.send_store(lost)
        self._status = NodeStatus({}, -1)

    # --- clients and jobs -------------------------------------------------------------------------

    def _client_arrived(self, client: int, hello: Hello) -> None:
        if hello.role == "operator":
            # It asks questions, and has no job.
            self.send_client(client, self._welcome(JobOpened(0, 0, b"")))
            return
        if hello.role == "worker":
            if self.pool.arrived(hello.number, hello.pid, client) is None:
                self.emit(events.CloseClient(client))
                return
            self.send_client(client, self._welcome(JobOpened(0, 0, b"")))
            return
        driver = self.drivers[client] = Driver(client, hello)
        driver.job = hello.number
        self._open_job(driver)

    def _open_job(self, driver: Driver) -> None:
        hello = driver.hello
        self.send_store(
            OpenJob(
                driver.client,
                driver.job,
                hello.entrypoint,
                hello.pid,
                hello.job_name,
                hello.takeover,
                driver.number,
                hello.runtime,
                hello.detached,
                hello.on_changed_code,
            )
        )

    def _job_opened(self, message: JobOpened) -> None:
        driver = self.drivers.get(message.number)
        if driver is None:
            if message.error is None:
                self.send_store(CloseJob(message.job, failed=True, driver=message.driver))
            return
        if message.error is not None:
            refused = Refused(message.error.code, message.error.message)
            self.send_client(driver.client, refused)
            self.emit(events.CloseClient(driver.client))
            return
        if driver.job not in (0, message.job):
            # Asked twice, because the first answer was late: the driver has its job.
            self.send_store(CloseJob(message.job, failed=True))
            return
        if driver.gone:
            return  # the control store hears of that, or has
        driver.job, driver.number = message.job, message.driver
        self.admits(driver.job, driver.number)
        self._driver_of_job[message.job] = driver.client
        if not driver.welcomed:
            driver.welcomed = True
            self.send_client(driver.client, self._welcome(message))

    def _welcome(self, opened: JobOpened) -> Welcome:
        settings = self.settings
        return Welcome(
            self.node_id, settings.incarnation, opened.job, opened.job_root, settings.arena_size,
            settings.arena_path, settings.storage, self.config.submit_window, settings.home,
            opened.driver, opened.runtime, opened.versions,
        )  # fmt: skip

    def _bye(self, client: int, message: Bye) -> None:
        driver = self.drivers.get(client)
        if driver is not None:
            driver.said_bye = True
            self._close_job(driver, message.failed)
        worker = self.pool.by_client.get(client)
        if worker is not None and worker.actor is not None and message.reason:
            self.actors.left(worker.actor, message.reason)

    def _worker_exited(self, number: int) -> None:
        """The process has ended. What it said last may still lie in its connection, which ends with
        it, unless a child that it left behind has it too: that is not waited for."""
        worker = self.pool.workers.get(number)
        if worker is None:
            self.pool.never_came(number)
        else:
            worker.exited_ms = self.now_ms

    def _client_gone(self, client: int) -> None:
        self.transport.client_gone(client)
        worker = self.pool.by_client.get(client)
        if worker is not None:
            self.pool.gone(worker)
            self.objects.client_gone(client)
            return
        driver = self.drivers.get(client)
        if driver is not None and driver.job and not driver.said_bye:
            # Its references are kept: it may come back within the grace.
            self.objects.stop_waiting(client)
            driver.gone = True
            self.emit(events.WatchDriver(client))
            closed = CloseJob(driver.job, failed=True, lost=True, driver=driver.number)
            self.send_store(closed)
        elif driver is not None:
            self._forget_driver(driver)

    def _driver_exited(self, client: int) -> None:
        driver = self.drivers.get(client)
        if driver is not None and driver.gone:
            # No grace: nobody is left who could come back, and its tasks hold what others wait for.
            self._close_job(driver, True)

    def _close_job(self, driver: Driver, failed: bool) -> None:
        """Its driver is no more: the control store is told until it has ended the job."""
        closed = self._closing[driver.job] = CloseJob(driver.job, failed, driver=driver.number)
        self.send_store_held(closed)

    def _forget_driver(self, driver: Driver) -> None:
        self.drivers.pop(driver.client, None)
        if self._driver_of_job.get(driver.job) == driver.client:
            del self._driver_of_job[driver.job]
        self.objects.client_gone(driver.client)

    def admits(self, job: int, driver: int) -> bool:
        """Something of this driver came: False if another has replaced it. What the drivers before
        it left is dropped first: it submits the same again."""
        if self.fenced.is_over(job, driver):
            return False
        older = self.fenced.arrived(job, driver)
        if older:
            self._job_closed(job, older)
        return True

    def _job_closed(self, job: int, number: int) -> None:
        """Its drivers up to this number are over."""
        if not self.fenced.end(job, number):
            return
        self.tasks.job_closed(job)
        self.actors.job_closed(job)
        of_job = [driver for driver in self.drivers.values() if driver.job == job]
        for driver in [d for d in of_job if d.number <= number or not number]:
            if not driver.gone and not driver.said_bye:  # it asks, and is told why
                self.emit(events.CloseClient(driver.client))
            self._forget_driver(driver)
        self._node_of_job.pop(job, None)
        self._closing.pop(job, None)

    def _output(self, client: int, output: Output) -> None:
        worker = self.pool.by_client.get(client)
        if worker is not None:
            worker.told[output.stream] = max(output.end, worker.told[output.stream])
            self._print(Printed(self.node_id, worker.pid, output))

    def _print(self, printed: Printed) -> None:
        job = printed.output.job
        client = self._driver_of_job.get(job)
        if client is not None:
            self.send_client(client, printed)
        elif job in self._node_of_job and printed.node_id == self.node_id:
            self.send_peer(self._node_of_job[job], PeerOutput(printed))

    def note_job(self, job: int, node_id: int) -> None:
        """A task of the job came from that node."""
        if node_id != self.node_id:
            self._node_of_job[job] = node_id

    def is_connected(self, client: int) -> bool:
        """Whether the client is there. (A driver that is not may have come back elsewhere.)"""
        driver = self.drivers.get(client)
        return client in self.pool.by_client or (driver is not None and not driver.gone)

    def warn_driver(self, job: int, text: str) -> None:
        """A line on the driver's standard error."""
        self._print(Printed(self.node_id, 0, Output(2, job, "regrow", [text])))

    def tell_driver(self, job: int, message: NodeMessage) -> None:
        client = self._driver_of_job.get(job)
        if client is not None:
            self.send_client(client, message)

    # --- time -------------------------------------------------------------------------------------

    def _tick(self, now_ms: float) -> None:
        self.now_ms = now_ms
        self.outage.tick()
        self.draining.tick()
        if self._over:
            return
        # Without Postgres no control store leads: then it is not the one that is away.
        patience = 0 <= self._store_lost_ms < now_ms - STORE_PATIENCE_MS
        if patience and not self._told_of_store and not self.outage.told:
            self._told_of_store = True
            self.tell_drivers(
                "the control store does not answer. Tasks and actors go on; new jobs, names and "
                "the recovery of lost nodes wait for it. `regrow start --head` on its machine "
                "starts it again."
            )
        self.pool.tick(now_ms)
        self.pressure.tick(now_ms)
        self.questions.tick()
        if len(self.nodes) > 1 and self.pool.queued:
            self.pool.offload()
        if self.tasks.infeasible:
            self.tasks.retry_infeasible()
        self.transport.store_again(now_ms)
        self.transport.puts.tick(now_ms)
        self.objects.tick(now_ms)
        relocate, self._relocate = self._relocate, {}
        for object_id in relocate:
            entry = self.objects.entries.get(object_id)
            if entry is not None and entry.locating:
                self.locate(object_id)
        self._report_objects()
        refused = self.outage.lacking
        status = NodeStatus(
            dict(self.ledger.available), self.pool.queued, refused, self.draining.reason
        )
        if status != self._status or (refused and now_ms - self._status_ms > STATUS_AGAIN_MS):
            self._status = status
            self._status_ms = now_ms
            self.send_store(status)

    def _report_objects(self) -> None:
        report = self.transport.report()
        if report is not None:
            self.send_store_held(report)

    def renew(self) -> list[Effect]:
        """An idle node's empty batch, which renews its lease."""
        if self._over or self.journal.in_flight:
            return []
        number, content = self.journal.close()
        return [events.AppendBatch(number, content)]

    def leave(self, reason: str) -> None:
        """This node goes: everything that it did is logged first."""
        self._flush_all()
        self._end(events.LeaveCluster(reason))

    def _flush_all(self) -> None:
        """What is in the open batch is sent, whatever is under way."""
        if self.journal.open.records:
            number, content = self.journal.close()
            self._effects.append(events.AppendBatch(number, content))

    def _end(self, effect: Effect) -> None:
        """This incarnation is over: nothing more is handled."""
        self._effects.append(effect)
        self._over = True

    def check(self) -> None:
        """All invariants; run after every simulated step and on fixture teardown."""
        self.journal.check()
        self.ledger.check()
        self.objects.check()
        self.tasks.check()
        self.actors.call_order.check()
        self.pool.check()
        self.transport.store.check()
