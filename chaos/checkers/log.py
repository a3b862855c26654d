"""What the log says: one result for each task, whole lineage, one incarnation at a time.

The functions judge a `Logbook`, which may be a simulation's; the checkers are these on a run's.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import ClassVar

from regrow.chaos.checkers.checker import FINDINGS_MAX, Checker, Evidence
from regrow.chaos.checkers.logbook import CALL, FINISHED, TASK, Logbook, LoggedTask
from regrow.ids import is_put, producer

#: Ended well, raised, given up.
ENDED = "('FINISHED', 'FAILED')"


def one_result(log: Logbook) -> list[str]:
    """Every task has ended, has one row, and what has finished has all its results."""
    wrong = [
        f"{task} is unfinished, on node {task.node}, attempt {task.attempt}"
        for task in log.tasks
        if task.state == "PENDING"
    ]
    rows = Counter(task.task_id for task in log.tasks)
    wrong += [f"task {task_id.hex()} has {n} rows" for task_id, n in rows.items() if n > 1]
    others = Counter(one.task_id for one in log.objects if not is_put(one.object_id))
    twice = Counter(one.object_id for one in log.objects)
    wrong += [f"object {oid.hex()} has {n} rows" for oid, n in twice.items() if n > 1]
    for task in log.tasks:
        if task.state == FINISHED and task.num_returns > 0 and not task.digest:
            wrong.append(f"{task} has finished without a result")
        elif task.state == FINISHED and others[task.task_id] < task.num_returns - 1:
            found = others[task.task_id] + 1
            wrong.append(f"{task} has finished with {found} of {task.num_returns} results")
    return wrong


def fencing(log: Logbook) -> list[str]:
    """One incarnation of a node lives at a time, and none commits after its end."""
    alive = Counter(node.node for node in log.nodes if node.alive)
    wrong = [f"node {node} has {n} living incarnations" for node, n in alive.items() if n > 1]
    lives = {(one.node, one.incarnation): one for one in log.nodes}
    for (node, number), life in lives.items():
        after = lives.get((node, number + 1))
        if after is None:
            continue
        if life.alive or (
            life.died_s is not None
            and after.registered_s is not None
            and life.died_s > after.registered_s
        ):
            wrong.append(f"node {node} registered anew before incarnation {number} had ended")
    for task in log.tasks:
        if not task.ended:
            continue
        holder = lives.get((task.node, task.incarnation))
        if holder is None:
            wrong.append(f"{task} was committed by a node that never registered")
        elif (
            task.finished_s is not None
            and holder.died_s is not None
            and task.finished_s > holder.died_s
        ):
            wrong.append(
                f"{task} was committed by node {task.node}, incarnation {task.incarnation}, "
                "after its end"
            )
    return wrong


def actor_order(log: Logbook) -> list[str]:
    """The calls of an actor that restarts have places without gaps or doubles, and who executed
    them did so one after the other: places and commits have one order."""
    calls: dict[bytes, list[LoggedTask]] = defaultdict(list)
    for task in log.tasks:
        if task.kind == CALL and task.actor_seq and log.max_restarts.get(task.actor_id):
            calls[task.actor_id].append(task)
    wrong = []
    for actor_id, made in calls.items():
        made.sort(key=lambda task: task.actor_seq)
        places = [task.actor_seq for task in made]
        if places != list(range(1, len(made) + 1)):
            doubled = sorted(place for place, n in Counter(places).items() if n > 1)
            missing = sorted(set(range(1, max(places) + 1)) - set(places))
            wrong.append(
                f"calls of actor {actor_id.hex()}: places {missing[:5]} are missing, "
                f"{doubled[:5]} are there twice"
            )
        for before, after in itertools.pairwise(made):
            if (
                before.finished_s is not None
                and after.finished_s is not None
                and after.finished_s < before.finished_s
            ):
                wrong.append(
                    f"call {after.actor_seq} of actor {actor_id.hex()} was committed by node "
                    f"{after.node} before call {before.actor_seq} was by node {before.node}"
                )
    return wrong


def lineage(log: Logbook) -> list[str]:
    """What made each thing that the log refers to is in the log, and nothing was made of itself."""
    tasks = {task.task_id: task for task in log.tasks}
    objects = {one.object_id for one in log.objects}
    wrong = []

    def known(oid: bytes) -> bool:
        return oid in objects if is_put(oid) else producer(oid) in tasks

    for task in log.tasks:
        for what, ids in (
            ("an argument", [*task.deps, *task.nested]),
            ("part of the result", task.result_refs),
        ):
            wrong += [
                f"the log does not have what made {oid.hex()}, {what} of {task}"
                for oid in ids
                if not known(oid)
            ]
        if task.parent_id not in tasks and task.parent_id not in log.drivers | log.detached:
            wrong.append(f"who submitted {task} is not in the log")
        if task.function_id and task.function_id not in log.functions:
            wrong.append(f"what {task} runs is not in the log")
        if task.kind == CALL and task.actor_id not in tasks:
            wrong.append(f"the creation of the actor of {task} is not in the log")
    for one in log.objects:
        wrong += [
            f"the log does not have what made {oid.hex()}, part of object {one.object_id.hex()}"
            for oid in one.refs
            if not known(oid)
        ]
    return wrong + _irreproducible(log, tasks) + _circles(tasks)


def _irreproducible(log: Logbook, tasks: dict[bytes, LoggedTask]) -> list[str]:
    """Every result is in the log, in storage, or can be made again (docs/durability.md)."""
    wrong = []
    for task in tasks.values():
        if task.kind == TASK and task.max_retries == 0 and task.state == FINISHED:
            first = task.task_id + bytes(4)
            if task.num_returns and not task.inline and first not in log.stored:
                wrong.append(f"the result of {task} is nowhere, and may not be made again")
    return wrong


def _circles(tasks: dict[bytes, LoggedTask]) -> list[str]:
    """Tasks that need themselves: by their arguments, or by the calls before them."""
    needs = {
        task.task_id: [producer(oid) for oid in task.deps if not is_put(oid)]
        for task in tasks.values()
    }
    done: set[bytes] = set()
    for start in needs:
        path: dict[bytes, None] = {}
        stack = [(start, iter(needs[start]))] if start not in done else []
        path[start] = None
        while stack:
            current, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                path.pop(current)
                done.add(current)
            elif following in path:
                return [f"{tasks[following]} depends on itself"]
            elif following in needs and following not in done:
                path[following] = None
                stack.append((following, iter(needs[following])))
    return []


class OneResult(Checker):
    """What was submitted has ended, once."""

    name: ClassVar[str] = "one_result"
    claim: ClassVar[str] = "every task in the log has ended, with exactly one result"

    def check(self, evidence: Evidence) -> list[str]:
        return one_result(evidence.logbook())


class Fencing(Checker):
    """One incarnation of a node at a time, and none writes after its end."""

    name: ClassVar[str] = "fencing"
    claim: ClassVar[str] = "one incarnation of a node lives at a time, and none commits once fenced"

    def check(self, evidence: Evidence) -> list[str]:
        return fencing(evidence.logbook())


class ActorOrder(Checker):
    """One incarnation of an actor at a time."""

    name: ClassVar[str] = "actor_order"
    claim: ClassVar[str] = "an actor's calls have one order, and one incarnation commits at a time"

    def check(self, evidence: Evidence) -> list[str]:
        return actor_order(evidence.logbook())


class Lineage(Checker):
    """What made each result is known as long as it may be needed, and has no circles."""

    name: ClassVar[str] = "lineage"
    claim: ClassVar[str] = "lineage is complete and acyclic"

    def check(self, evidence: Evidence) -> list[str]:
        return lineage(evidence.logbook())


class ReplaysAgree(Checker):
    """What was made again has the digest of what was lost."""

    name: ClassVar[str] = "replays_agree"
    claim: ClassVar[str] = "what was made again is what was lost, byte for byte"

    def check(self, evidence: Evidence) -> list[str]:
        allowed = evidence.workload.nondeterministic
        return [
            f"a run of {name} made something else when it ran again"
            for name in evidence.logbook().differing
            if name not in allowed
        ]


class DifferencesTold(Checker):
    """Every difference that a replay made is in the log's events."""

    name: ClassVar[str] = "differences_told"
    claim: ClassVar[str] = "every replay that made something else was told of"

    def check(self, evidence: Evidence) -> list[str]:
        return [
            f"task {task} ({name}) made something else, and no event says so"
            for task, name in evidence.rows(
                "SELECT encode(r.task_id, 'hex'), t.name FROM regrow.rebuilds r "
                "JOIN regrow.tasks t USING (task_id) WHERE r.differs AND NOT EXISTS (SELECT FROM "
                "regrow.events e WHERE e.kind = 'replay_difference' AND e.subject = r.task_id) "
                "LIMIT %s",
                FINDINGS_MAX,
            )
        ]


class AtRest(Checker):
    """Nothing is still held or under way when nobody wants anything."""

    name: ClassVar[str] = "at_rest"
    claim: ClassVar[str] = "at rest no resource, task, object or rebuild is held"

    def check(self, evidence: Evidence) -> list[str]:
        wrong = [
            f"node {node}: {count} {what} at rest"
            for node, stats in sorted(evidence.node_stats.items())
            for what, count in sorted(stats.items())
            if count
        ]
        open_rebuilds = evidence.logbook().open_rebuilds
        if open_rebuilds:
            wrong.append(f"{open_rebuilds} rebuilds have not ended")
        return wrong


class DatabaseAtRest(Checker):
    """No transaction is open, no lock is waited for, and no connection of the dead is left."""

    name: ClassVar[str] = "database_at_rest"
    claim: ClassVar[str] = "at rest the database has no open transaction, lock or stray connection"
    #: Connections of nodes; each node has one, for its log.
    NODE: ClassVar[str] = "regrow-node"

    def __init__(self, open_s: float = 5.0) -> None:
        #: A transaction may be open for so long.
        self._open_s = open_s

    def check(self, evidence: Evidence) -> list[str]:
        wrong = [
            f"a transaction of {name} has been open for {seconds:.0f} s: {query}"
            for name, seconds, query in evidence.rows(
                "SELECT application_name, extract(epoch FROM clock_timestamp() - xact_start), "
                "left(query, 80) FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend' "
                "AND clock_timestamp() - xact_start > make_interval(secs => %s)",
                self._open_s,
            )
        ]
        [(waiting, advisory)] = evidence.rows(
            "SELECT count(*) FILTER (WHERE NOT granted), count(*) FILTER (WHERE locktype = "
            "'advisory') FROM pg_locks WHERE pid <> pg_backend_pid() AND "
            "database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        if waiting:
            wrong.append(f"{waiting} locks are waited for")
        if advisory:
            wrong.append(f"{advisory} advisory locks are held")
        [(connections, nodes)] = evidence.rows(
            "SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name = %s), (SELECT count(*) FROM regrow.nodes WHERE alive)",
            self.NODE,
        )
        if connections > nodes:
            wrong.append(f"{connections} connections of {nodes} nodes")
        return wrong


class NothingLeft(Checker):
    """After the cluster was shut down nothing of it is left on the machine."""

    name: ClassVar[str] = "nothing_left"
    claim: ClassVar[str] = "no process, socket, shared memory or folder is left"
    afterwards: ClassVar[bool] = True

    def check(self, evidence: Evidence) -> list[str]:
        return [f"left behind: {what}" for what in evidence.left_behind]


class CleanLogs(Checker):
    """The daemons' logs have no traceback."""

    name: ClassVar[str] = "clean_logs"
    claim: ClassVar[str] = "the daemons' logs tell of no failure of their own"
    afterwards: ClassVar[bool] = True

    def check(self, evidence: Evidence) -> list[str]:
        return list(evidence.log_errors)


class Amplification(Checker):
    """Work done again is a bounded multiple of the work that was lost."""

    name: ClassVar[str] = "amplification"
    claim: ClassVar[str] = "little was run again that had not been lost"

    def check(self, evidence: Evidence) -> list[str]:
        most = evidence.scenario.amplification_max
        if not most:
            return []
        found = amplification(evidence)
        if found > most:
            return [f"work amplification is {found:.2f}, at most {most:.2f} is expected"]
        return []


def amplification(evidence: Evidence) -> float:
    """Runs of tasks and calls, as a multiple of the tasks and calls that have ended."""
    [(tasks, attempts, rebuilds)] = evidence.rows(
        f"SELECT (SELECT count(*) FROM regrow.tasks WHERE state IN {ENDED}),"
        " (SELECT coalesce(sum(attempt - 1), 0) FROM regrow.tasks),"
        " (SELECT count(*) FROM regrow.rebuilds)"
    )
    return float((tasks + attempts + rebuilds) / tasks) if tasks else 1.0
