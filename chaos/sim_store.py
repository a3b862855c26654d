"""The control store's database in memory: every operation, with the semantics of Postgres's.

For the simulator: deterministic, without I/O, on a clock that it is given.  It never fails by
itself: the simulator loses requests and answers outside of it.  The conformance suite runs on this
store and on Postgres, so that the two do not drift apart; ``regrow.gcs.store`` says why things are
as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from regrow.chaos.sim_reads import SimReads, digests
from regrow.chaos.sim_tables import ActorEntry, JobEntry, NodeKey, NodeRow, RebuildRow, TaskRow
from regrow.gcs import operations as ops
from regrow.gcs.operations import Append, Operation, Result
from regrow.gcs.store_values import (
    ACTOR_LOST,
    CANCELLED,
    JOB_ENDED,
    NO_RESTART_LEFT,
    STATE_LOST,
)
from regrow.ids import answers_object_id, driver_task_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    PENDING,
    TASK_ERROR,
    HeldTask,
    JobCode,
    header_decoder,
    keyed_content,
    spec_that_goes_on,
)

CLUSTER_ID: Final = b"simulated store."
NO_STAMP: Final = 0
#: Saved states that are kept of each actor.
KEPT: Final = 2


class SimStore(SimReads):
    """See the module. ``now`` is Postgres's clock, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now)
        #: When the server started: set it when the simulated server restarts.
        self.up_since_s = now()
        self.epoch = 0
        self.leader = ""
        self.leader_expires_s = float("-inf")
        self._last_node_id = 0
        #: Counts operations that give tasks away.
        self._stamp = NO_STAMP

    def execute(self, op: Operation | Append) -> Any:
        """Carries an operation out: a ``Result``, or for an ``Append`` an ``AppendResult``."""
        if isinstance(op, Append):
            return self.append(op)
        if not isinstance(op, ops.Lead) and getattr(op, "epoch", self.epoch) != self.epoch:
            return ops.NotLeader()
        result = _HANDLERS[type(op)](self, op)
        self.commit()
        return result

    # --- leadership and nodes ---------------------------------------------------------------------

    def _lead(self, op: ops.Lead) -> ops.Leadership:
        now = self.now()
        if op.epoch:
            ours = op.epoch == self.epoch and op.holder == self.leader
        else:
            ours = self.leader_expires_s <= now or op.holder == self.leader
            self.epoch += ours
        if ours:
            self.leader, self.leader_expires_s = op.holder, now + op.ttl_s
        return ops.Leadership(self.epoch if ours else 0, CLUSTER_ID, now)

    def _register_node(self, op: ops.RegisterNode) -> ops.NodeRegistered:
        node_id = op.view.node_id
        lives = [key for key in self.nodes if key[0] == node_id]
        alive = [key for key in lives if self.alive(key)]
        for key in alive:
            self._end(key, NO_STAMP)
        if not lives:
            self._last_node_id += 1
            node_id = self._last_node_id
        incarnation = max((key[1] for key in lives), default=0) + 1
        view = replace(op.view, node_id=node_id, incarnation=incarnation, alive=True)
        row = NodeRow(view, op.ttl_s, self.now() + op.ttl_s)
        self.nodes.put((node_id, incarnation), row)
        fenced = max((key[1] for key in alive), default=0)
        return ops.NodeRegistered(node_id, incarnation, fenced)

    def _end(self, key: NodeKey, stamp: int) -> None:
        row = self.nodes[key]
        self.nodes.put(key, replace(row, view=replace(row.view, alive=False), died=stamp))

    def _read_leases(self, op: ops.ReadLeases) -> ops.Leases:
        now = self.now()
        alive = sorted(key for key in self.nodes if self.alive(key))
        leases = [(*key, self.nodes[key].lease_expires_s - now) for key in alive]
        return ops.Leases(leases, now - self.up_since_s)

    def _read_nodes(self, op: ops.ReadNodes) -> ops.NodeRows:
        newest = {key[0]: self.nodes[key].view for key in sorted(self.nodes)}
        return ops.NodeRows(
            [
                replace(view, available=view.total if view.alive else {}, queued=0)
                for view in newest.values()
            ]
        )

    def _update_resources(self, op: ops.UpdateResources) -> ops.Done:
        for key, row in list(self.nodes.items()):
            if key[0] == op.node_id and row.view.alive:
                self.nodes.put(key, replace(row, view=replace(row.view, total=op.total)))
        return ops.Done()

    def _node_drains(self, op: ops.NodeDrains) -> ops.Done:
        return ops.Done()  # for SQL readers only

    def _write_event(self, op: ops.WriteEvent) -> ops.Done:
        self.events.put(len(self.events) + 1, ((0, 0), op.event))
        return ops.Done()

    # --- deaths -----------------------------------------------------------------------------------

    def _fence(self, op: ops.Fence) -> ops.NodeFenced:
        return self._end_and_reap(op, op.only_expired, 1)

    def _node_left(self, op: ops.NodeLeft) -> ops.NodeFenced:
        return self._end_and_reap(op, False, 0)

    def _sweep(self, op: ops.Sweep) -> ops.NodeFenced:
        self._stamp += 1
        self._reap(op.heirs, 1)
        return self._given(True, self._stamp)

    def _end_and_reap(
        self, op: ops.Fence | ops.NodeLeft, only_expired: bool, attempts: int
    ) -> ops.NodeFenced:
        key = (op.node_id, op.incarnation)
        row = self.nodes.get(key)
        if row is None:
            return ops.NodeFenced(False, {}, [])
        if not row.view.alive:
            return self._given(False, row.died)
        if only_expired and row.lease_expires_s >= self.now():
            return ops.NodeFenced(False, {}, [])
        self._stamp += 1
        self._end(key, self._stamp)
        self._reap(op.heirs, attempts)
        return self._given(True, self._stamp)

    def _reap(self, heirs: list[NodeKey], attempts: int) -> None:
        """Reassigns what nodes that are not alive hold, and notes that their actors are dead."""
        living = {key[0]: key for key in sorted(self.nodes) if self.alive(key)}
        heirs = [heir for heir in heirs if self.alive(heir)]
        turn = 0
        for task_id, row in sorted(self.unfinished.items()):
            if self.alive(row.holder):
                continue
            target = living.get(row.submitter)
            if target is None:
                if not heirs:
                    continue
                place = turn
                if row.header.kind == ACTOR_CALL:  # a caller's calls stay together
                    place = int.from_bytes(row.header.actor_id[14:], "big")
                else:
                    turn += 1
                target = heirs[place % len(heirs)]
            attempt = row.attempt + attempts
            given = replace(row, holder=target, attempt=attempt, given=self._stamp)
            self.put_task(task_id, given)
        for actor_id, actor in list(self.actors.items()):
            if actor.state not in ("alive", "restarting") or self.alive(actor.node):
                continue
            runs = self.jobs[actor.job].status == "running"
            lives = actor.state == "alive"
            # A node that left in good order costs no restart.
            moves = attempts == 0 and lives and (actor.max_restarts or 0) > 0
            if not lives or (runs and (actor.may_restart or moves)):
                restarts = actor.restarts + (attempts if lives else 0)
                ended = replace(actor, state="restarting", restarts=restarts, error=None)
            else:
                ended = replace(actor, state="dead", error=ACTOR_LOST)
            self.actors.put(actor_id, replace(ended, died=self._stamp))
        for number, rebuild in list(self.rebuilds.items()):
            if rebuild.open and not self.alive(rebuild.holder):
                self.rebuilds.put(number, replace(rebuild, open=False))

    def _given(self, landed: bool, stamp: int) -> ops.NodeFenced:
        """What the operation with this stamp gave away and is not finished."""
        if stamp == NO_STAMP:
            return ops.NodeFenced(landed, {}, [])
        rows = [row for _, row in sorted(self.unfinished.items()) if row.given == stamp]
        reassigned: dict[int, list[HeldTask]] = {}
        for row in rows:
            reassigned.setdefault(row.holder[0], []).append(self.held(row))
        actors = [
            (key, actor.job)
            for key, actor in self.actors.items()
            if actor.died == stamp and actor.state == "dead"
        ]
        restarting = self._restarting(lambda actor: actor.died == stamp)
        functions = self.functions_of(rows)
        return ops.NodeFenced(landed, reassigned, functions, sorted(actors), restarting)

    def _restarting(self, which: Callable[[ActorEntry], bool]) -> list[ops.RestartingActor]:
        found: list[ops.RestartingActor] = []
        for actor_id, actor in sorted(self.actors.items()):
            if actor.state == "restarting" and which(actor):
                creation = self.tasks.get(actor_id)
                needs = creation.header.resources if creation is not None else None
                found.append(ops.RestartingActor(actor_id, actor.job, actor.node, needs))
        return found

    def _read_given(self, op: ops.ReadGiven) -> ops.GivenRows:
        key = (op.node_id, op.incarnation)
        rows = [
            row
            for task_id, row in sorted(self.unfinished.items())
            if row.holder == key
            and (row.given or row.submitter != op.node_id or task_id in op.asked)
        ]
        restarting = self._restarting(lambda actor: actor.node == key)
        return ops.GivenRows([self.held(row) for row in rows], self.functions_of(rows), restarting)

    # --- jobs, functions, actors ------------------------------------------------------------------

    def _create_job(self, op: ops.CreateJob) -> ops.JobCreated:
        for job, entry in self.jobs.items():
            if entry.job_root == op.job_root:
                return ops.JobCreated(job)
        job = len(self.jobs) + 1
        self.jobs.put(job, JobEntry(op.job_root, driver_task_id(op.job_root)))
        return ops.JobCreated(job)

    def _resume_job(self, op: ops.ResumeJob) -> ops.JobResumed:
        runs = [(job, entry) for job, entry in self.jobs.items() if entry.name == op.name]
        unfinished = [item for item in runs if item[1].status != "finished"]
        if not unfinished:
            job, driver_id = len(self.jobs) + 1, driver_task_id(op.job_root)
            new = JobEntry(
                op.job_root,
                driver_id,
                "running",
                op.name,
                len(runs) + 1,
                1,
                op.runtime,
                op.detached,
                op.job_root,
                op.on_changed_code,
            )
            self.jobs.put(job, new)
            return ops.JobResumed(job, op.job_root, 1, op.runtime)
        job, entry = unfinished[-1]
        if entry.opener != op.job_root:
            if entry.status == "running":
                return ops.JobResumed(0)
            entry = replace(
                entry, status="running", driver=entry.driver + 1, detached=op.detached,
                opener=op.job_root, on_changed_code=op.on_changed_code,
            )  # fmt: skip
            self.jobs.put(job, entry)
            self._restart_actors(job)
            self._let_go_on(job, entry)
            self._discard(job, entry.driver_id)
        if entry.driver == 1:
            return ops.JobResumed(job, op.job_root, 1, entry.runtime)
        restarting = self._restarting(lambda actor: actor.job == job)
        return ops.JobResumed(
            job, entry.job_root, entry.driver, entry.runtime, restarting, self._versions(job)
        )

    def _restart_actors(self, job: int) -> None:
        for actor_id, actor in list(self.actors.items()):
            ended = actor.job == job and actor.state == "dead" and actor.error == JOB_ENDED
            creation = self.tasks.get(actor_id)
            made = creation is not None and creation.status == OK
            if ended and made and actor.node != (0, 0) and actor.max_restarts:
                taken = actor.name and self.actor_named(actor.name, actor.namespace).found
                back = replace(
                    actor, state="restarting", error=None, died=0, name="" if taken else actor.name
                )
                self.actors.put(actor_id, back)

    def _let_go_on(self, job: int, entry: JobEntry) -> None:
        """What ended badly, and whose parent ended well: nobody will submit it again."""
        forgotten = self._forgotten_actors(job, entry.driver_id)
        rows = [(key, row) for key, row in self.tasks.items() if row.header.job == job]
        for key, row in rows:
            parent = self.tasks.get(row.header.parent_id)
            found = parent is not None and parent.status == OK
            gone = row.header.actor_id in forgotten or (
                parent is not None and parent.header.actor_id in forgotten
            )
            if not found or gone or row.status in (OK, PENDING) or self._is_history(row):
                continue
            submitted = row.header.max_retries
            spec = spec_that_goes_on(row.spec, entry.driver, row.attempt, submitted)
            header = replace(header_decoder.decode(spec), max_retries=submitted)
            again = replace(
                row, spec=spec, header=header, holder=(0, 0), given=0,
                attempt=row.attempt + 1, status=PENDING, outcome=None,
            )  # fmt: skip
            self.put_task(key, again)
            self.discarded.put(key, job)

    def _is_history(self, row: TaskRow) -> bool:
        """A method's exception, of an actor that comes back, or did so often enough that its
        arguments are gone."""
        if not row.spec:
            return True
        actor = self.actors.get(row.header.actor_id)
        stays = actor is not None and actor.state != "dead" and bool(actor.max_restarts)
        return row.status == TASK_ERROR and row.header.kind == ACTOR_CALL and stays

    def _forgotten_actors(self, job: int, driver_id: bytes) -> set[bytes]:
        """Actors without their state that tasks had made."""
        return {
            key
            for key, row in self.tasks.items()
            if row.header.job == job
            and row.header.kind == ACTOR_CREATION
            and not row.header.max_retries
            and row.header.parent_id != driver_id
        }

    def _discard(self, job: int, driver_id: bytes) -> None:
        """What failed or was cancelled, and actors without their state that tasks had made."""
        rows = [(key, row) for key, row in self.tasks.items() if row.header.job == job]
        forgotten = self._forgotten_actors(job, driver_id)
        for actor_id, actor in list(self.actors.items()):
            creation = self.tasks.get(actor_id)
            made = creation is not None and creation.status == OK
            known = actor.job == job and actor.state != "restarting"
            if known and (actor_id in forgotten or not made):
                self.actors.remove(actor_id)
        for key, row in rows:
            row = self.tasks[key]
            ended_badly = row.status not in (OK, PENDING) and not self._is_history(row)
            if ended_badly or row.header.actor_id in forgotten:
                self.tasks.remove(key)
                self.unfinished.remove(key)
                if row.status == CANCELLED:
                    self.discarded.put(key, job)

    def _versions(self, job: int) -> list[tuple[str, bytes]]:
        found: dict[tuple[str, bytes], None] = {}
        for row in self.tasks.values():
            header = row.header
            if header.job == job and header.kind != ACTOR_CALL and row.status == OK:
                function = self.functions.get(header.function_id)
                if function is not None and function.fingerprint:
                    found[function.name, function.fingerprint] = None
        return list(found)

    def _read_job_code(self, op: ops.ReadJobCode) -> JobCode:
        entry = self.jobs.get(op.job)
        if entry is None:
            return JobCode("", "error", [])
        return JobCode(entry.name, entry.on_changed_code, self._versions(op.job))

    def _read_job(self, op: ops.ReadJob) -> ops.JobRow:
        entry = self.jobs.get(op.job)
        if entry is None:
            return ops.JobRow(False)
        running = entry.status == "running"
        return ops.JobRow(True, entry.job_root, running, entry.name, entry.driver, entry.detached)

    def _read_jobs(self, op: ops.ReadJobs) -> ops.JobRows:
        running = [
            (job, e.job_root, e.name, e.driver, e.detached)
            for job, e in self.jobs.items()
            if e.status == "running"
        ]
        return ops.JobRows(running)

    def _end_job(self, op: ops.EndJob) -> ops.Done:
        entry = self.jobs.get(op.job)
        if entry is None or entry.status != "running":
            return ops.Done()
        self.jobs.put(op.job, replace(entry, status=op.status))
        self.cancel([op.job])
        for actor_id, actor in list(self.actors.items()):
            if actor.job == op.job and actor.state != "dead":
                self.actors.put(actor_id, replace(actor, state="dead", error=JOB_ENDED))
        for number, rebuild in list(self.rebuilds.items()):
            if rebuild.open and self.tasks[rebuild.task_id].header.job == op.job:
                self.rebuilds.put(number, replace(rebuild, open=False))
        return ops.Done()

    def _end_idle_jobs(self, op: ops.EndIdleJobs) -> ops.JobsEnded:
        for job in op.jobs:
            entry = self.jobs.get(job)
            rows = [row for row in self.tasks.values() if row.header.job == job]
            lives = any(a.job == job and a.state != "dead" for a in self.actors.values())
            if entry is None or entry.status != "running" or lives:
                continue
            if all(row.status != PENDING for row in rows):
                status = "finished" if all(row.status == OK for row in rows) else "failed"
                self.jobs.put(job, replace(entry, status=status))
        known = [(job, self.jobs[job]) for job in sorted(op.jobs) if job in self.jobs]
        return ops.JobsEnded([job for job, entry in known if entry.status != "running"])

    def _reserve_actor_name(self, op: ops.ReserveActorName) -> ops.ActorRow:
        free = not self.actor_named(op.name, op.namespace).found
        actor = self.actors.get(op.actor_id)
        job = self.jobs.get(op.job)
        if free and actor is not None and not actor.name and actor.state != "dead":
            named = replace(actor, name=op.name, namespace=op.namespace, methods=op.methods)
            self.actors.put(op.actor_id, named)
        elif free and actor is None and job is not None and job.status == "running":
            new = ActorEntry(
                op.job, "pending", op.name, op.namespace, op.function_id, methods=op.methods
            )
            self.actors.put(op.actor_id, new)
        return self.actor_named(op.name, op.namespace)

    def _read_actor(self, op: ops.ReadActor) -> ops.ActorRow:
        return self.read_actor(op)

    def _read_functions(self, op: ops.ReadFunctions) -> ops.FunctionRows:
        ids = sorted(set(op.function_ids))
        return ops.FunctionRows([self.functions[key] for key in ids if key in self.functions])

    # --- recovery ---------------------------------------------------------------------------------

    def _read_tasks(self, op: ops.ReadTasks) -> ops.TaskRows:
        states = [self.task_state(task_id) for task_id in op.task_ids]
        return ops.TaskRows(
            [
                replace(state, content=keyed_content(self.tasks[state.task_id].spec)[1])
                if state.task_id in op.keyed and state.known and self.tasks[state.task_id].spec
                else state
                for state in states
            ]
        )

    def _read_objects(self, op: ops.ReadObjects) -> ops.ObjectRows:
        return ops.ObjectRows([self.object(oid) for oid in op.object_ids])

    def _read_lineage(self, op: ops.ReadLineage) -> ops.Lineage:
        return self.lineage(op)

    def _grant_rebuilds(self, op: ops.GrantRebuilds) -> ops.RebuildsGranted:
        if not self.alive(op.holder):
            return ops.RebuildsGranted([], [], [])
        granted: dict[bytes, HeldTask] = {}
        elsewhere: dict[bytes, int] = {}
        for task_id in sorted(set(op.task_ids)):
            row = self.tasks.get(task_id)
            runs = [item for item in self.rebuilds.items() if item[1].task_id == task_id]
            for number, rebuild in runs:
                if not rebuild.open or rebuild.holder == op.holder:
                    continue
                if self.alive(rebuild.holder):
                    elsewhere[task_id] = rebuild.holder[0]
                else:
                    self.rebuilds.put(number, replace(rebuild, open=False))
            if row is None or row.status != OK or not row.spec or task_id in elsewhere:
                continue
            ours = [r for _, r in runs if r.open and r.holder == op.holder]
            if not ours:
                ours = [RebuildRow(task_id, row.attempt + 1 + len(runs), op.holder)]
                self.rebuilds.put(len(self.rebuilds) + 1, ours[0])
            granted[task_id] = self.rebuilt(row, ours[0].attempt, digests(row))
        functions = self.functions_of([self.tasks[task_id] for task_id in granted])
        return ops.RebuildsGranted(
            [granted[task_id] for task_id in op.task_ids if task_id in granted],
            functions,
            [(task_id, elsewhere[task_id]) for task_id in op.task_ids if task_id in elsewhere],
        )

    def _restore_actor(self, op: ops.RestoreActor) -> ops.ActorRestored:
        actor = self.actors.get(op.actor_id)
        if actor is None:
            return ops.ActorRestored(False)
        if actor.state == "dead":
            return ops.ActorRestored(False, actor.job, error=actor.error or NO_RESTART_LEFT)
        known = actor.node in (op.home, op.target)
        if actor.state != "restarting" or not known or not self.alive(op.target):
            return ops.ActorRestored(False, actor.job)
        saved = self.checkpoints.get(op.actor_id, {})
        after = max(saved, default=0)
        if after < actor.trimmed_seq:
            self.actors.put(op.actor_id, replace(actor, state="dead", error=STATE_LOST))
            return ops.ActorRestored(False, actor.job, error=STATE_LOST)
        executed = sorted(
            (row.outcome.actor_seq, task_id)
            for task_id, row in self.tasks.items()
            if row.header.actor_id == op.actor_id
            and row.outcome is not None
            and row.status in (OK, TASK_ERROR)
            and (row.outcome.actor_seq > after or row.header.kind == ACTOR_CREATION)
        )
        if not executed or executed[0][1] != op.actor_id:
            return ops.ActorRestored(False, actor.job)
        self.actors.put(op.actor_id, replace(actor, node=op.target))
        held = [self._open_rebuild(task_id, op.target) for _, task_id in executed]
        functions = self.functions_of([self.tasks[op.actor_id]])
        last = max(executed[-1][0], after)
        state, custom = saved.get(after, (b"", False))
        return ops.ActorRestored(
            True, actor.job, held[0], held[1:], last, functions, state, after, custom
        )

    def _trim_calls(self, op: ops.TrimCalls) -> ops.CallsTrimmed:
        left = op.limit
        for actor_id, actor in sorted(self.actors.items()):
            last = self.trimmable(actor_id)
            if actor.state == "dead" or last <= actor.trimmed_seq:
                continue
            if not left:
                return ops.CallsTrimmed(True)
            up_to = min(last, actor.trimmed_seq + left)
            self._trim(actor_id, up_to)
            left -= up_to - actor.trimmed_seq
            if up_to < last:
                return ops.CallsTrimmed(True)
        return ops.CallsTrimmed(False)

    def trimmable(self, actor_id: bytes) -> int:
        """The last call that both kept states of this actor contain, if their bytes are safe."""
        saved = self.checkpoints.get(actor_id, {})
        puts = {oid: self.puts.get(oid) for oid, _ in saved.values()}
        safe = all(
            oid in self.stored or (put is not None and put.value.data is not None)
            for oid, put in puts.items()
        )
        return min(saved) if len(saved) >= KEPT and safe else 0

    def _trim(self, actor_id: bytes, up_to: int) -> None:
        self.actors.put(actor_id, replace(self.actors[actor_id], trimmed_seq=up_to))
        for task_id, row in list(self.tasks.items()):
            of_actor = row.header.actor_id == actor_id and row.header.kind == ACTOR_CALL
            if of_actor and row.outcome is not None and 0 < row.outcome.actor_seq <= up_to:
                self.put_task(task_id, replace(row, spec=b""))

    def _open_rebuild(self, task_id: bytes, target: NodeKey) -> HeldTask:
        """Ours is opened, or is open; a dead node's is closed."""
        row = self.tasks[task_id]
        runs = [item for item in self.rebuilds.items() if item[1].task_id == task_id]
        for number, rebuild in runs:
            if rebuild.open and rebuild.holder != target:
                self.rebuilds.put(number, replace(rebuild, open=False))
        ours = [rebuild for _, rebuild in runs if rebuild.open and rebuild.holder == target]
        if not ours:
            ours = [RebuildRow(task_id, row.attempt + 1 + len(runs), target)]
            self.rebuilds.put(len(self.rebuilds) + 1, ours[0])
        made = digests(row) if row.status == OK else []
        noted = self.puts.get(answers_object_id(task_id, row.attempt))
        answers = (noted.value.data if noted is not None else None) or b""
        held = self.rebuilt(row, ours[0].attempt, made)
        return replace(held, status=row.status, answers=answers)


_HANDLERS: Final[dict[type, Callable[[SimStore, Any], Result]]] = {
    ops.Lead: SimStore._lead,
    ops.RegisterNode: SimStore._register_node,
    ops.ReadLeases: SimStore._read_leases,
    ops.ReadNodes: SimStore._read_nodes,
    ops.UpdateResources: SimStore._update_resources,
    ops.NodeDrains: SimStore._node_drains,
    ops.WriteEvent: SimStore._write_event,
    ops.Fence: SimStore._fence,
    ops.NodeLeft: SimStore._node_left,
    ops.Sweep: SimStore._sweep,
    ops.ReadGiven: SimStore._read_given,
    ops.CreateJob: SimStore._create_job,
    ops.ResumeJob: SimStore._resume_job,
    ops.ReadJob: SimStore._read_job,
    ops.ReadJobCode: SimStore._read_job_code,
    ops.ReadJobs: SimStore._read_jobs,
    ops.EndJob: SimStore._end_job,
    ops.EndIdleJobs: SimStore._end_idle_jobs,
    ops.ReserveActorName: SimStore._reserve_actor_name,
    ops.ReadActor: SimStore._read_actor,
    ops.ReadFunctions: SimStore._read_functions,
    ops.ReadTasks: SimStore._read_tasks,
    ops.ReadObjects: SimStore._read_objects,
    ops.ReadLineage: SimStore._read_lineage,
    ops.GrantRebuilds: SimStore._grant_rebuilds,
    ops.RestoreActor: SimStore._restore_actor,
    ops.TrimCalls: SimStore._trim_calls,
}
