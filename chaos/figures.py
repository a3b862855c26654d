"""The figures of a run, from its history and its log: what reports show besides the verdict."""

from __future__ import annotations

import re
import time
from collections import Counter
from typing import Any, Final

from regrow.chaos.checkers.checker import Evidence, Rows
from regrow.chaos.checkers.log import amplification
from regrow.chaos.history import Fault, History, Kind, Operation, recovery_times
from regrow.chaos.result import Phase, Replay, RunResult, Struck

#: About so many slices, each of a round number of seconds.
SLICES: Final = 60
ROUND_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
#: So many replays are told of one by one.
REPLAYS_MAX: Final = 200
#: Targets that are nodes: "node 3", "nodes 1, 2".
NODES: Final = re.compile(r"nodes? (\d+(?:, \d+)*)$")


def collect(result: RunResult, evidence: Evidence) -> None:
    """Fill in all that history and log tell. The log has to stand."""
    history = evidence.history
    collect_history(result, history)
    _of_the_log(result, evidence)
    offset_s = time.time() - time.monotonic()
    died = evidence.rows(
        "SELECT node_id, extract(epoch FROM died_at)::float8 FROM regrow.nodes "
        "WHERE died_at IS NOT NULL ORDER BY died_at"
    )
    deaths = [(int(node), float(at_s) - offset_s - history.begun_s) for node, at_s in died]
    if not evidence.workload.joins:
        _count_tasks(result, evidence.rows, offset_s + history.begun_s)
    for struck in result.faults:
        struck.detection_s = detection(struck, deaths)
    result.detections_s = [
        struck.detection_s for struck in result.faults if struck.detection_s is not None
    ]


def collect_history(result: RunResult, history: History) -> None:
    """Fill in what the history alone tells."""
    operations = history.operations()
    kinds = Counter(one.kind for one in operations)
    result.acknowledged = kinds[Kind.OK]
    result.failed, result.unknown = kinds[Kind.FAIL], kinds[Kind.UNKNOWN]
    faults = history.faults()
    result.fired = dict(sorted(Counter(fault.name for fault in faults).items()))
    result.faults = [_struck(fault, history, operations) for fault in faults]
    result.recoveries_s = [
        struck.recovery_s for struck in result.faults if struck.recovery_s is not None
    ]
    result.phases = [
        Phase(str(line.value), line.at_s - history.begun_s) for line in history.notes("phase")
    ]
    result.span_s = max(history.ended_s - history.begun_s, 0.001)
    result.slice_s = next((s for s in ROUND_S if result.span_s <= s * SLICES), ROUND_S[-1])
    ends = [
        (one.ended_s - history.begun_s, one.kind is Kind.FAIL)
        for one in operations
        if one.ended_s is not None and one.kind in (Kind.OK, Kind.FAIL)
    ]
    result.slices = _sliced(result, ends)


def _sliced(result: RunResult, ends: list[tuple[float, bool]]) -> list[tuple[int, int]]:
    """How many ended well and how many failed in each slice of the history."""
    counts = [[0, 0] for _ in range(int(result.span_s / result.slice_s) + 1)]
    for at_s, failed in ends:
        if 0 <= at_s <= result.span_s:
            counts[int(at_s / result.slice_s)][failed] += 1
    return [(ok, failed) for ok, failed in counts]


def _count_tasks(result: RunResult, rows: Rows, begun_s: float) -> None:
    """A user's program is one operation; so its tasks are counted, as the log has them."""
    result.counted = "tasks and calls"
    ends = rows(
        "SELECT extract(epoch FROM finished_at)::float8, state <> 'FINISHED' FROM regrow.tasks "
        "WHERE finished_at IS NOT NULL"
    )
    result.slices = _sliced(result, [(float(at_s) - begun_s, bool(bad)) for at_s, bad in ends])


def _struck(fault: Fault, history: History, operations: list[Operation]) -> Struck:
    times = recovery_times([fault], operations)
    begun = history.begun_s
    healed = None if fault.healed_s is None else fault.healed_s - begun
    recovery = times[0] if times else None
    return Struck(fault.name, fault.target, fault.at_s - begun, healed, recovery)


def detection(struck: Struck, deaths: list[tuple[int, float]]) -> float | None:
    """Until the last of its nodes was declared dead, if all were before the fault was healed or
    soon after; the deaths are in the order of time."""
    found = NODES.match(struck.target)
    if found is None:
        return None
    times = []
    for node in map(int, found[1].split(", ")):
        after = [at_s - struck.at_s for died, at_s in deaths if died == node]
        later = [took_s for took_s in after if took_s >= 0]
        if not later:
            return None
        times.append(later[0])
    return max(times)


def _of_the_log(result: RunResult, evidence: Evidence) -> None:
    rows = evidence.rows
    result.amplification = amplification(evidence)
    [(result.lost, result.doubled)] = rows(
        "SELECT (SELECT count(*) FROM regrow.tasks WHERE state = 'PENDING' OR (state = 'FINISHED' "
        "AND num_returns > 0 AND result_digest IS NULL)), (SELECT count(*) FROM "
        "(SELECT 1 FROM regrow.tasks GROUP BY task_id HAVING count(*) > 1 UNION ALL "
        "SELECT 1 FROM regrow.actor_calls WHERE actor_seq IS NOT NULL GROUP BY actor_id, actor_seq "
        "HAVING count(*) > 1) AS twice)"
    )
    result.run_again = [
        (name, int(attempts), int(rebuilds))
        for name, attempts, rebuilds in rows(
            "SELECT t.name, sum(t.attempt - 1), sum(coalesce(r.count, 0)) FROM regrow.tasks t "
            "LEFT JOIN (SELECT task_id, count(*) FROM regrow.rebuilds GROUP BY 1) r "
            "USING (task_id) WHERE t.attempt > 1 OR r.count > 0 GROUP BY 1 ORDER BY 1"
        )
    ]
    result.replays = _replays(rows)


def _replays(rows: Rows) -> list[Replay]:
    found: list[tuple[str, str, int, float, float | None, bool | None]] = rows(
        "SELECT encode(r.task_id, 'hex'), t.name, r.node_id, extract(epoch FROM r.started_at - "
        "min(r.started_at) OVER ())::float8, extract(epoch FROM r.finished_at - r.started_at)"
        "::float8, r.differs FROM regrow.rebuilds r JOIN regrow.tasks t USING (task_id) "
        "ORDER BY r.id LIMIT %s",
        REPLAYS_MAX,
    )
    needs: dict[str, list[str]] = {}
    edges: list[tuple[Any, ...]] = rows(
        "WITH made AS (SELECT DISTINCT task_id FROM regrow.rebuilds) "
        "SELECT DISTINCT encode(p.task_id, 'hex'), encode(m.task_id, 'hex') FROM made m "
        "JOIN regrow.tasks t USING (task_id) "
        "CROSS JOIN LATERAL regrow.object_ids(coalesce(t.deps, '') || coalesce(t.nested, '')) "
        "AS d (id) JOIN made p ON p.task_id = substr(d.id, 1, 16) "
        "UNION SELECT encode(m.task_id, 'hex'), encode(p.task_id, 'hex') FROM made m "
        "JOIN regrow.tasks t USING (task_id) JOIN made p ON p.task_id = t.parent_id ORDER BY 1, 2"
    )
    for made, needed_by in edges:
        needs.setdefault(made, []).append(needed_by)
    return [Replay(*row, needed_by=needs.get(row[0], [])) for row in found]
