"""The control store's core: who leads, and which part answers which event.

Everything that the control store decides is decided here or in the parts below this:
``membership`` and ``fencing`` (nodes), ``directory``, ``lineage`` and ``recovery`` (objects),
``jobs``, ``actors``, ``inquiries``. Nothing here waits, reads a clock, draws a random number or
does I/O: ``handle`` takes an event and returns effects, to be carried out in order.

Leadership is a row in Postgres with an epoch, which every write carries. While another leads, or
the row could not be renewed in time, nothing is begun here; a ``NotLeader`` ends everything at
once: sessions are closed, and nodes find the new leader or wait for us to lead again.
"""

from __future__ import annotations

from typing import ClassVar, Final, assert_never

from regrow.gcs.actors import Actors
from regrow.gcs.core_context import Context, Continuation, Reply
from regrow.gcs.core_events import (
    Effect,
    Event,
    FromNode,
    NodeConnected,
    NodeDisconnected,
    ProbeResult,
    Settings,
    StoreFailed,
    StoreReplied,
    Tick,
)
from regrow.gcs.directory import Directory
from regrow.gcs.fencing import Fencing
from regrow.gcs.inquiries import Inquiries
from regrow.gcs.jobs import Jobs
from regrow.gcs.membership import Membership, Node
from regrow.gcs.operations import Lead, Leadership, NodeFenced
from regrow.gcs.recovery import Recovery
from regrow.gcs.restarts import Restarts
from regrow.gcs.trimming import Trimming
from regrow.messages import (
    ActorHere,
    AskStore,
    CloseJob,
    FetchFunctions,
    FindActor,
    JobDropped,
    Leave,
    Locate,
    LookUpTasks,
    NameActor,
    NodeStatus,
    ObjectsHere,
    OpenJob,
    Rebuilt,
    Register,
    Suspect,
    ToStore,
)

#: While another leads, it is asked this often whether it still does.
ACQUIRE_S: Final = 0.25
#: Messages of a session that is not registered yet, at most.
BACKLOG_MAX: Final = 10_000


class _Leading(Continuation):
    """``started``: when the try began, from which its lease counts."""

    RETRIED: ClassVar[bool] = False
    started: float


class Core:
    """``handle(event) -> effects``; ``check()`` raises if an invariant is broken."""

    def __init__(self, settings: Settings) -> None:
        self.context = Context(settings)
        #: Sessions that are open, and their messages that wait for a registration.
        self._backlogs: dict[int, list[FromNode]] = {}
        self._leading_pending = False
        self._lead_at = 0.0
        #: When our leadership ends, unless it is renewed.
        self.leads_until = 0.0
        #: Since when another leads, as far as we know.
        self._followed_since: float | None = None
        #: Of the database that we lead.
        self.cluster_id = b""
        self._make_parts()

    def _make_parts(self) -> None:
        """All that is known, anew: at the start, and when a leadership ends."""
        context = self.context
        context.forget_operations()
        self.members = Membership(context)
        self.fencing = Fencing(context, self.members)
        self.directory = Directory(context, self.members)
        self.restarts = Restarts(context, self.members)
        self.recovery = Recovery(context, self.members, self.directory, self.restarts)
        self.jobs = Jobs(context, self.members)
        self.actors = Actors(context, self.members, self.restarts)
        self.restarts.dead = self.actors.died
        self.fencing.restarting = self.restarts.lost
        self.jobs.restarting = self.restarts.lost
        self.jobs.sweep = self.fencing.sweep
        self.fencing.remind_restarts = self.restarts.remind
        self.trimming = Trimming(context)
        self.inquiries = Inquiries(context, self.members)
        self.members.replace = self.fencing.replace
        self.members.joined = self._joined
        self.members.resumed = self._resumed
        self.members.all_reported = self.directory.all_reported
        self.fencing.died = self._node_died
        self.fencing.swept = self._swept
        self.directory.lost = self.recovery.lost
        self.directory.lost_all = self.recovery.start
        self.directory.remind = self.fencing.resumed
        self.directory.sweep = self.inquiries.sweep = self.fencing.sweep
        self.jobs.closed = self._job_closed
        context.on(_Leading, self._led)

    def handle(self, event: Event) -> list[Effect]:
        """One step."""
        match event:
            case FromNode():
                self._from_node(event)
            case Tick(now):
                self._tick(now)
            case StoreReplied(number, result):
                if not self.context.store_replied(number, result):
                    self._step_down()
            case NodeConnected(conn):
                self._backlogs[conn] = []
            case NodeDisconnected(conn):
                self._disconnected(conn)
            case ProbeResult():
                self.fencing.probed(event)
            case _:
                assert_never(event)
        self.directory.flush()
        effects, self.context.effects = self.context.effects, []
        return effects

    @property
    def leads(self) -> bool:
        """Whether our leadership was renewed in time."""
        return self.context.epoch != 0 and self.context.now < self.leads_until

    @property
    def busy(self) -> bool:
        """Whether ticks are wanted soon."""
        return (
            not self.leads
            or self.context.retries_pending
            or self.members.busy
            or self.directory.busy
            or self.jobs.busy
            or self.actors.busy
        )

    # leadership

    def _tick(self, now: float) -> None:
        self.context.now = now
        self._lead()
        if not self.leads:
            return
        self.context.retry_due()
        if self.members.loaded:
            self.members.tick()
            self.fencing.tick()
            self.directory.tick()
            self.jobs.tick()
            self.actors.tick()
            self.trimming.tick()

    def _lead(self) -> None:
        """Acquires leadership or renews it, in good time."""
        context, ttl = self.context, self.context.settings.leader_ttl_s
        now = context.now
        if context.epoch and now > self.leads_until + 2 * ttl:
            self._step_down()  # Postgres is away: whether another leads we cannot know
        if not self._leading_pending and self._lead_at <= now:
            self._leading_pending = True
            self._lead_at = now + (ttl / 3 if context.epoch else ACQUIRE_S)
            context.execute(Lead(context.settings.holder, context.epoch, ttl), _Leading(now))

    def _led(self, then: _Leading, reply: Reply) -> None:
        self._leading_pending = False
        leadership: Leadership | StoreFailed = reply.result
        context = self.context
        if isinstance(leadership, StoreFailed):
            return
        if leadership.epoch == 0 or (context.epoch and leadership.epoch != context.epoch):
            if context.epoch:
                self._step_down()
            self._another_leads()
            return
        self._followed_since = None
        lapsed = not self.leads
        self.leads_until = then.started + context.settings.leader_ttl_s
        if lapsed:
            # Nodes may have had no chance to renew their leases.
            self.fencing.wait_a_lease()
        if context.epoch == 0:
            context.epoch = leadership.epoch
            self.cluster_id = leadership.cluster_id
            self.members.load()
            self.jobs.load()

    def _another_leads(self) -> None:
        """Nodes that wait here are to look for it, once it is not just what is left of a process
        that is gone, perhaps our own last one."""
        context = self.context
        if self._followed_since is None:
            self._followed_since = context.now
        elif context.now - self._followed_since > context.settings.leader_ttl_s:
            self._step_down()

    def _step_down(self) -> None:
        self.context.epoch = 0
        for conn in self._backlogs:
            self.context.close(conn)
        self._backlogs.clear()
        self._leading_pending = False
        self._make_parts()

    # nodes

    def _from_node(self, event: FromNode) -> None:
        backlog = self._backlogs.get(event.conn)
        if backlog is None:
            return  # the session is being closed
        if isinstance(event.message, Register):
            backlog.clear()
            self.members.register(event.conn, event.message)
            return
        node = self.members.of_conn(event.conn)
        if node is not None:
            self._message(node, event.message, event.entropy)
        elif self.members.awaits(event.conn):
            # What a node says of its objects before it is registered, it says again after.
            if not isinstance(event.message, ObjectsHere):
                backlog.append(event)
            if len(backlog) > BACKLOG_MAX:
                self.context.close(event.conn)

    def _message(self, node: Node, message: ToStore, entropy: bytes) -> None:
        match message:
            case NodeStatus():
                self.members.status(node, message)
            case ObjectsHere():
                self.directory.objects_here(node, message)
                self.members.has_reported(node)
            case Locate():
                self.directory.locate(node, message)
            case LookUpTasks():
                self.inquiries.look_up_tasks(node, message)
            case Suspect():
                self.fencing.suspected(message)
            case OpenJob():
                self.jobs.open(node, message, entropy)
            case CloseJob():
                self.jobs.close(node, message)
            case JobDropped():
                self.jobs.successions.dropped(node, message)
            case NameActor() | ActorHere() | FindActor():
                self._about_actors(node, message)
            case AskStore():
                self.inquiries.ask(node, message)
            case FetchFunctions():
                self.inquiries.fetch_functions(node, message)
            case Rebuilt():
                self.recovery.rebuilt(node, message)
            case Leave():
                self.fencing.left(node, message.reason)
            case Register():
                raise AssertionError("registrations are handled before")
            case _:
                assert_never(message)

    def _about_actors(self, node: Node, message: NameActor | ActorHere | FindActor) -> None:
        match message:
            case NameActor():
                self.actors.name(node, message)
            case ActorHere():
                self.actors.here(node, message)
            case FindActor():
                self.actors.find(node, message)
            case _:
                assert_never(message)

    def _disconnected(self, conn: int) -> None:
        self._backlogs.pop(conn, None)
        node = self.members.disconnected(conn)
        if node is None:
            return
        if self.context.stopping:
            self.fencing.left(node)
        else:
            self.fencing.look(node)

    def _joined(self, node: Node) -> None:
        self.fencing.joined()
        self.recovery.joined()
        self.restarts.joined()
        self._replay_backlog(node)

    def _resumed(self, node: Node) -> None:
        """What the node was told just before its last session broke may have been lost."""
        self.fencing.resumed(node)
        self.directory.resumed(node)
        self.recovery.resumed(node)
        self.jobs.resumed(node)
        self._replay_backlog(node)

    def _replay_backlog(self, node: Node) -> None:
        backlog = self._backlogs.get(node.conn, [])
        if backlog:
            self._backlogs[node.conn] = []
            for event in backlog:
                self._message(node, event.message, event.entropy)

    # what several parts are told

    def _node_died(self, node: Node, reason: str, fenced: NodeFenced) -> None:
        self.directory.node_died(node)
        self.recovery.node_died(node)
        self.actors.node_died(node, reason, fenced.actors)
        self.restarts.lost(fenced.restarting)
        self.restarts.node_died(node)
        self.jobs.node_died(node)
        if node.report_by is not None and not self.members.reporting:
            self.directory.all_reported()

    def _swept(self) -> None:
        self.directory.swept()
        self.inquiries.swept()

    def _job_closed(self, job: int) -> None:
        self.actors.job_closed(job)
        self.restarts.job_closed(job)
        self.recovery.job_closed(job)
        self.directory.job_closed()

    def check(self) -> None:
        """Raises AssertionError if an invariant is broken."""
        for part in (self.members, self.fencing, self.directory, self.recovery):
            part.check()
        self.jobs.check()
        self.actors.check()
        self.restarts.check()
        assert self.context.epoch or not self.members.loaded
        assert not self.context.effects
