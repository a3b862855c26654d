"""What must hold in a simulation: invariants after every step, and all of it at the end.

Golden results come from running the same programs without a cluster. A *sure* object may never be
an error, whatever happens; of the others a system's error is legitimate once there are faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.chaos.simulation.programs import TAINTED, Golden, Program, mix
from regrow.chaos.simulation.world import SafetyViolation
from regrow.gcs import operations as ops
from regrow.gcs.core import Core as ControlCore
from regrow.gcs.operations import Append, AppendResult, Operation, Outcome
from regrow.ids import is_put, producer
from regrow.messages import (
    ACTOR_CALL,
    OK,
    PENDING,
    RECOVERABLE,
    SYSTEM_ERROR,
    TASK,
    HandOver,
    NodeMessage,
    PeerMessage,
    PeerValues,
    TaskHeader,
    Value,
    Values,
    failure_decoder,
    header_decoder,
)

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.node import NodeShell


class Checks:
    """See the module."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._sites: dict[bytes, int] = {}
        self._puts: dict[bytes, Golden] = {}
        self._large: dict[bytes, bytes] = {}
        #: What the log says of each object, once it does: (status, digest).
        self._committed: dict[bytes, tuple[int, bytes]] = {}
        #: Incarnations of which a batch was rejected.
        self._over: set[tuple[int, int]] = set()
        #: Of actors that restart: what each call has made of the state, by its place.
        self._states: dict[bytes, dict[int, bytes]] = {}
        #: Tasks that ended well; those of them that a resumed job submitted again.
        self._finished: set[bytes] = set()
        self._found: set[bytes] = set()
        self.restarts = 0
        self.outcomes = 0
        self._steps = 0

    def require(self, condition: bool, message: str) -> None:
        """Raises SafetyViolation."""
        if not condition:
            raise SafetyViolation(message)

    # --- what programs did ------------------------------------------------------------------------

    def submitted(self, task_id: bytes, site: int) -> None:
        """One id is one call, whoever submits it, and however often."""
        known = self._sites.setdefault(task_id, site)
        self.require(known == site, f"id {task_id.hex()} is of call {known} and of call {site}")

    def put(self, oid: bytes, golden: Golden) -> None:
        known = self._puts.setdefault(oid, golden)
        self.require(known.hash == golden.hash, f"the put {oid.hex()} has two values")

    def large(self, digest: bytes, data: bytes) -> None:
        """A worker wrote these bytes."""
        self._large[digest] = data

    def resubmitted(self, task_id: bytes, program: Program) -> None:
        """Something in a job that was resumed."""
        if program.kind == TASK and task_id in self._finished:
            self._found.add(task_id)

    def started(self, spec: TaskHeader, node: NodeShell | None) -> None:
        """A worker begins a task: none that a resumed job was to find."""
        if spec.task_id not in self._found or node is None or node.core is None:
            return
        task = node.core.tasks.tasks.get(spec.task_id)
        alive = self._cluster.database.store.alive((node.node_id, node.incarnation))
        self.require(
            not alive or task is None or task.rebuild,
            f"{spec.task_id.hex()} had finished before its job was resumed, and runs again",
        )

    def golden(self, oid: bytes) -> Golden | None:
        """What the object has to be."""
        if is_put(oid):
            return self._puts.get(oid)
        site = self._sites.get(producer(oid))
        if site is None:
            return None
        values = self._cluster.golden.values[site]
        index = int.from_bytes(oid[16:], "big")
        return values[min(index, len(values) - 1)]

    def is_over(self, job: int, driver: int) -> bool:
        """Whether this driver of a named job is no more: its tasks are told so."""
        entry = self._cluster.database.store.jobs.get(job)
        return entry is None or entry.status != "running" or driver < entry.driver

    def content(
        self, golden: Golden, status: int, data: bytes, who: str, over: bool = False
    ) -> None:
        """A program reads a value; ``over``: its driver is no more."""
        if over and status == SYSTEM_ERROR and failure_decoder.decode(data).code == "cancelled":
            return
        if status == golden.status and status != SYSTEM_ERROR and data[:8] == golden.hash:
            return
        legitimate = status == SYSTEM_ERROR or (status != OK and data == TAINTED)
        why = failure_decoder.decode(data) if status == SYSTEM_ERROR else data.hex()
        excused = not golden.sure and self._cluster.may_fail
        self.require(
            legitimate and excused,
            f"{who} sees status {status} ({why}), golden is {golden.status} {golden.hash.hex()}"
            + (", for sure" if golden.sure else ""),
        )

    def value_seen(self, value: Value, who: str, over: bool) -> None:
        """A client is told of a value."""
        golden = self.golden(value.object_id)
        self.require(golden is not None, f"{who} is told of an object that nobody made")
        if value.data is not None and golden is not None:
            self.content(golden, value.status, value.data, f"{who} ({value.object_id.hex()})", over)

    # --- what leaves a node -----------------------------------------------------------------------

    def left_to_client(self, node: NodeShell, client: int, message: NodeMessage) -> None:
        """To a driver only what is committed."""
        core = node.core
        if core is None or client not in core.drivers or not isinstance(message, Values):
            return
        for value in message.values:
            self._must_be_committed(node, value)

    def left_to_peer(self, node: NodeShell, message: PeerMessage) -> None:
        if isinstance(message, PeerValues):
            for value in message.values:
                self._must_be_committed(node, value)
        elif isinstance(message, HandOver):
            store = self._cluster.database.store
            for handed in message.tasks:
                task_id = header_decoder.decode(handed.spec).task_id
                self.require(
                    task_id in store.tasks or task_id in store.discarded,
                    f"{task_id.hex()} was handed over before its commit",
                )
                for value in handed.values:
                    self._must_be_committed(node, value)

    def left_bytes(self, node: NodeShell, oid: bytes, data: bytes) -> None:
        store = self._cluster.database.store
        row = store.object(oid)
        self.require(
            (row.known and row.status != PENDING) or producer(oid) in store.discarded,
            f"{node.name} gave the bytes of {oid.hex()} away before their commit",
        )

    def _must_be_committed(self, node: NodeShell, value: Value) -> None:
        """What left has to be what the log says, now and for ever (the log never changes)."""
        store = self._cluster.database.store
        oid = value.object_id
        row = store.object(oid)
        if not is_put(oid):
            task = store.tasks.get(producer(oid))
            is_call = task is not None and task.header.kind == ACTOR_CALL
            is_call = is_call and not (task is not None and task.header.flags & RECOVERABLE)
            if is_call and task is not None and task.submitter == node.node_id:
                return  # not waited for on the actor's own node (docs/durability.md)
            if task is None and self._is_call(oid):
                return
        if value.status == SYSTEM_ERROR:
            return  # an object that is lost is a lost object, not a result
        if producer(oid) in store.discarded:
            return  # of a driver that is no more, and so is who is told
        self.require(
            row.known and row.status != PENDING and row.value is not None,
            f"{node.name} told of {oid.hex()} before its commit",
        )
        assert row.value is not None
        if row.value.status == SYSTEM_ERROR:
            # Its job ended.
            return
        self.require(
            (row.value.status, row.value.digest) == (value.status, value.digest)
            or (value.data is None and not value.digest),
            f"{node.name} told something else of {oid.hex()} than the log says",
        )

    def _is_call(self, oid: bytes) -> bool:
        site = self._sites.get(producer(oid))
        if site is None:
            return False
        program = self._cluster.programs[site]
        return program.kind == ACTOR_CALL and not program.recoverable

    # --- the log ----------------------------------------------------------------------------------

    def append(self, append: Append) -> AppendResult:
        """Carries a batch out, and looks at what that did."""
        store = self._cluster.database.store
        key = (append.node, append.incarnation)
        before = store.nodes[key]
        events = len(store.events)
        result = store.append(append)
        if result.verdict == ops.APPLIED:
            self.require(before.view.alive, f"a batch of {key} was applied after its fencing")
        if append.number <= before.last_batch:
            unchanged = store.nodes[key] is before and len(store.events) == events
            self.require(unchanged, f"batch {append.number} of {key} was applied twice")
        self._appended(append, result)
        return result

    def _appended(self, append: Append, result: AppendResult) -> None:
        """A batch was answered."""
        key = (append.node, append.incarnation)
        if result.verdict == ops.CONFLICT:
            self._over.add(key)
            self.require(self._cluster.faults.may_fail, f"conflict without fault: {result.detail}")
        if key not in self._over:  # what follows a batch that was rejected is ahead, of course
            self.require(result.verdict != ops.BEHIND, f"{append.node} is ahead of the database")
        if result.verdict != ops.APPLIED:
            return
        outcomes = [s.outcome for s in append.batch.submitted if s.outcome is not None]
        outcomes += append.batch.outcomes
        for outcome in sorted(outcomes, key=lambda outcome: outcome.actor_seq):
            self._outcome(outcome)
        self._holders(append)

    def _outcome(self, outcome: Outcome) -> None:
        """A result is committed: it is the golden one, and the only one."""
        self.outcomes += 1
        store = self._cluster.database.store
        row = store.tasks.get(outcome.task_id)
        if row is None or row.outcome is None:
            return  # cancelled, or taken out of the log with its job's last driver
        if outcome.status == OK:
            self._finished.add(outcome.task_id)
        said = (outcome.status, [returned.digest for returned in outcome.returns])
        kept = (row.outcome.status, [returned.digest for returned in row.outcome.returns])
        self.require(said == kept, f"task {outcome.task_id.hex()} has two results in the log")
        site = self._sites[outcome.task_id]
        values = self._cluster.golden.values[site]
        for returned, golden in zip(outcome.returns, values, strict=False):
            data = returned.data if returned.data is not None else self._large[returned.digest]
            self.content(golden, outcome.status, data, f"the log ({outcome.task_id.hex()})")
            if outcome.actor_seq and row.header.flags & RECOVERABLE and outcome.status == OK:
                self._call_ended(row.header.actor_id, outcome.actor_seq, site, data[-8:])

    def _call_ended(self, actor_id: bytes, seq: int, site: int, state: bytes) -> None:
        """Every call of an actor that restarts takes effect once, in the order of the log."""
        states = self._states.setdefault(actor_id, {0: mix(self._sites[actor_id])})
        self.require(seq - 1 in states, f"call {seq} of {actor_id.hex()} follows none")
        expected = states.setdefault(seq, mix(states[seq - 1], site))
        self.require(
            state == expected,
            f"call {seq} of {actor_id.hex()} found another state than the calls before it made",
        )

    def _holders(self, append: Append) -> None:
        store = self._cluster.database.store
        for task_id in [s.header.task_id for s in append.batch.submitted]:
            row = store.tasks.get(task_id)
            if row is None:
                continue
            self.require(row.holder in store.nodes, f"task {task_id.hex()} has no holder")

    def executed(self, operation: Operation, result: object) -> None:
        """The control store changed the log: after a fence no task is held by the dead while
        somebody could have it."""
        if not isinstance(operation, ops.Fence | ops.Sweep) or not isinstance(
            result, ops.NodeFenced
        ):
            return
        store = self._cluster.database.store
        if isinstance(operation, ops.Fence) and not result.landed:
            return
        if any(store.alive(heir) for heir in operation.heirs):
            for task_id, row in store.unfinished.items():
                self.require(
                    store.alive(row.holder), f"task {task_id.hex()} is held by a dead node"
                )

    def waits_in_vain(self, task_id: bytes) -> bool:
        """Whether the task was left behind by an earlier driver of its job, and an argument is
        something that failed then and that the present one does not submit: it called an actor that
        died without its state, and its calls have other ids now. The end of the job ends it."""
        store = self._cluster.database.store
        row = store.unfinished.get(task_id)
        if row is None or store.jobs[row.header.job].driver < 2:
            return False
        makers = [producer(oid) for oid in row.header.deps if not is_put(oid)]
        return any(maker not in store.tasks or self.waits_in_vain(maker) for maker in makers)

    # --- the cores --------------------------------------------------------------------------------

    def node_begins(self, node: NodeShell) -> None:
        """A new incarnation."""

    def restarted(self, node: NodeShell, reason: str) -> None:
        self.restarts += 1
        self.require(
            self._cluster.faults.may_fail, f"{node.name} restarted without fault: {reason}"
        )

    def node_stepped(self, node: NodeShell) -> None:
        """After each step."""
        self._steps += 1
        core = node.core
        if core is not None and not self._steps % self._cluster.check_every:
            core.check()

    def control_stepped(self, core: ControlCore) -> None:
        self._steps += 1
        if not self._steps % self._cluster.check_every:
            core.check()

    # --- the end ----------------------------------------------------------------------------------

    def at_rest(self) -> str:
        """What is still there although nobody wants anything any more; "" if nothing."""
        store = self._cluster.database.store
        if store.unfinished:
            return f"unfinished tasks in the log: {[t.hex() for t in store.unfinished]}"
        for node in self._cluster.nodes:
            core = node.core
            if core is None:
                return f"slot {node.slot} has no core"
            left = {
                "entries": [oid.hex() for oid in core.objects.entries],
                "tasks": [task_id.hex() for task_id in core.tasks.tasks],
                "queued": core.pool.queued,
                "busy workers": [w.number for w in core.pool.by_client.values() if w.in_flight],
                "copies": [key[0].hex() for key in core.transport.store.object_keys()],
                "open records": core.journal.open.records,
                "drivers": list(core.drivers),
                "actors": [a.hex() for a in core.actors.table],
            }
            for what, things in left.items():
                if things:
                    return f"{node.name} still has {what}: {things}"
            if core.ledger.available != core.ledger.total:
                return f"{node.name} has {core.ledger.available} of {core.ledger.total} available"
        return ""
