"""What the log says: one result for each task, whole lineage, one incarnation at a time."""

from __future__ import annotations

from typing import ClassVar

from regrow.chaos.checkers.checker import FINDINGS_MAX, Checker, Evidence

#: Ended well, raised, given up.
ENDED = "('FINISHED', 'FAILED')"


class OneResult(Checker):
    """Total queue: what was submitted has ended, once; nothing was invented or lost."""

    name: ClassVar[str] = "one_result"
    claim: ClassVar[str] = "every task in the log has ended, with exactly one result"

    def check(self, evidence: Evidence) -> list[str]:
        pending = evidence.rows(
            "SELECT encode(task_id, 'hex'), name, node_id, attempt FROM regrow.tasks "
            "WHERE state = 'PENDING' LIMIT %s",
            FINDINGS_MAX,
        )
        wrong = [
            f"task {task} ({name}) is unfinished, on node {node}, attempt {attempt}"
            for task, name, node, attempt in pending
        ]
        twice = evidence.rows(
            "SELECT encode(task_id, 'hex'), count(*) FROM regrow.tasks GROUP BY task_id "
            "HAVING count(*) > 1 LIMIT %s",
            FINDINGS_MAX,
        )
        wrong += [f"task {task} has {count} rows" for task, count in twice]
        bare = evidence.rows(
            "SELECT encode(task_id, 'hex'), name FROM regrow.tasks WHERE state = 'FINISHED' "
            "AND num_returns > 0 AND (finished_at IS NULL OR result_digest IS NULL) LIMIT %s",
            FINDINGS_MAX,
        )
        return wrong + [
            f"task {task} ({name}) has finished without a result" for task, name in bare
        ]


class Fencing(Checker):
    """One incarnation of a node at a time, and none writes after its end."""

    name: ClassVar[str] = "fencing"
    claim: ClassVar[str] = "one incarnation of a node lives at a time, and none commits once fenced"

    def check(self, evidence: Evidence) -> list[str]:
        wrong = [
            f"node {node} has {count} living incarnations"
            for node, count in evidence.rows(
                "SELECT node_id, count(*) FROM regrow.nodes WHERE alive GROUP BY node_id "
                "HAVING count(*) > 1"
            )
        ]
        late = evidence.rows(
            "SELECT encode(t.task_id, 'hex'), t.name, t.node_id, t.incarnation "
            "FROM regrow.tasks t JOIN regrow.nodes n USING (node_id, incarnation) "
            f"WHERE t.state IN {ENDED} AND t.finished_at > n.died_at LIMIT %s",
            FINDINGS_MAX,
        )
        wrong += [
            f"task {task} ({name}) was committed by node {node}, incarnation {life}, after its end"
            for task, name, node, life in late
        ]
        overlap = evidence.rows(
            "SELECT a.node_id, a.incarnation FROM regrow.nodes a JOIN regrow.nodes b "
            "ON b.node_id = a.node_id AND b.incarnation = a.incarnation + 1 "
            "WHERE a.died_at IS NULL OR a.died_at > b.registered_at"
        )
        return wrong + [
            f"node {node} registered anew before incarnation {life} had ended"
            for node, life in overlap
        ]


class Lineage(Checker):
    """What made each result is known as long as it may be needed, and has no circles."""

    name: ClassVar[str] = "lineage"
    claim: ClassVar[str] = "lineage is complete and acyclic"

    def check(self, evidence: Evidence) -> list[str]:
        missing = evidence.rows(
            "SELECT encode(t.task_id, 'hex'), t.name, encode(d.id, 'hex') FROM regrow.tasks t "
            "CROSS JOIN LATERAL regrow.object_ids(coalesce(t.deps, '') || coalesce(t.nested, '')) "
            "AS d (id) WHERE NOT EXISTS (SELECT FROM regrow.task_log p "
            "WHERE p.task_id = substr(d.id, 1, 16) AND get_byte(d.id, 16) < 128) "
            "AND NOT EXISTS (SELECT FROM regrow.object_log o WHERE o.object_id = d.id) LIMIT %s",
            FINDINGS_MAX,
        )
        wrong = [
            f"the log does not have what made {thing}, an argument of task {task} ({name})"
            for task, name, thing in missing
        ]
        orphans = evidence.rows(
            "SELECT encode(t.task_id, 'hex'), t.name FROM regrow.tasks t "
            "WHERE NOT EXISTS (SELECT FROM regrow.task_log p WHERE p.task_id = t.parent_id) "
            "AND NOT EXISTS (SELECT FROM regrow.jobs j WHERE j.driver_id = t.parent_id) LIMIT %s",
            FINDINGS_MAX,
        )
        wrong += [f"who submitted task {task} ({name}) is not in the log" for task, name in orphans]
        # An argument was committed before what it is an argument of: so there are no circles.
        backwards = evidence.rows(
            "SELECT encode(t.task_id, 'hex'), t.name FROM regrow.tasks t "
            "CROSS JOIN LATERAL regrow.object_ids(t.deps) AS d (id) "
            "JOIN regrow.task_log p ON p.task_id = substr(d.id, 1, 16) "
            "WHERE t.state = 'FINISHED' AND p.task_id = t.task_id LIMIT %s",
            FINDINGS_MAX,
        )
        return wrong + [f"task {task} ({name}) depends on itself" for task, name in backwards]


class ReplaysAgree(Checker):
    """What was made again has the digest of what was lost."""

    name: ClassVar[str] = "replays_agree"
    claim: ClassVar[str] = "what was made again is what was lost, byte for byte"

    def check(self, evidence: Evidence) -> list[str]:
        return [
            f"task {task} ({name}) made something else when it ran again"
            for task, name in evidence.rows(
                "SELECT encode(r.task_id, 'hex'), t.name FROM regrow.rebuilds r "
                "JOIN regrow.tasks t USING (task_id) WHERE r.differs LIMIT %s",
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
        [(open_rebuilds,)] = evidence.rows(
            "SELECT count(*) FROM regrow.rebuilds WHERE finished_at IS NULL"
        )
        if open_rebuilds:
            wrong.append(f"{open_rebuilds} rebuilds have not ended")
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
