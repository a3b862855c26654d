"""What the demo tells of a run: all of it read from Postgres, nothing remembered by the driver.

It reads the public schema only and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import psycopg
from rich.table import Table
from rich.tree import Tree

#: Levels of the lineage shown; the tasks further up are counted.
LEVELS_SHOWN = 3


@dataclass(frozen=True)
class Death:
    """A node that is dead."""

    node_id: int
    died_at: datetime
    reason: str


@dataclass(frozen=True)
class Rerun:
    """A task that ran again: because its node died under it, or because its result was lost."""

    name: str
    node_id: int
    attempt: int
    started_at: datetime
    finished_at: datetime | None
    #: It had a result, whose bytes were lost.
    rebuild: bool
    #: Of a rebuild that has ended: whether it made other bytes than were committed.
    differs: bool | None

    @property
    def outcome(self) -> str:
        """Return in two words how it ended."""
        if self.finished_at is None:
            return "not ended"
        if not self.rebuild:
            return "first result"
        return {None: "given up", False: "same bytes", True: "other bytes"}[self.differs]

    @property
    def restored(self) -> bool:
        """Return whether it brought back exactly the bytes that were lost."""
        return self.rebuild and self.differs is False


@dataclass(frozen=True)
class Ancestor:
    """A task among those from which an object came."""

    task_id: bytes
    name: str
    #: The tasks that made its arguments; of an actor's call also the call before it.
    inputs: tuple[bytes, ...]


@dataclass(frozen=True)
class Figures:
    """What a fault has cost."""

    #: Seconds from the kill until the first sign that it was noticed; None: nobody was left to.
    noticed_s: float | None
    #: What the sign was.
    sign: str
    #: Seconds until the step of the training that it hit was complete.
    recovered_s: float
    #: Since when these count.
    since: str
    #: Tasks that had no result yet and ran in another attempt.
    attempts: int
    #: Tasks and calls that had a result and ran again, for lost objects or an actor's state.
    replays: int
    #: Tasks and calls of a run without a fault.
    tasks: int

    @property
    def amplification(self) -> float:
        """Return how many times the work of a run without a fault was done."""
        return (self.tasks + self.attempts + self.replays) / self.tasks

    def lines(self) -> list[str]:
        """Return them as sentences."""
        noticed = "nobody was left to notice"
        if self.noticed_s is not None:
            noticed = f"noticed after {self.noticed_s:.2f} s ({self.sign})"
        recovered = f"recovered after {self.recovered_s:.2f} s, counted from {self.since}"
        again = f"{self.attempts} unfinished tasks, {self.replays} finished tasks and calls"
        share = f"work amplification {self.amplification:.3f} over {self.tasks} tasks and calls"
        return [f"{noticed}; {recovered}", f"run again: {again}; {share}"]


class History:
    """The log of a cluster, for questions. A context manager; reads in autocommit mode."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.close()

    def now(self) -> datetime:
        """Return the time on Postgres's clock, with which all rows are stamped."""
        [[now]] = self._rows("SELECT clock_timestamp()")
        moment: datetime = now
        return moment

    def tasks(self) -> int:
        """Return how many tasks and calls have ended well."""
        [[count]] = self._rows("SELECT count(*) FROM regrow.tasks WHERE state = 'FINISHED'")
        return int(count)

    def run_again(self, since: datetime) -> tuple[int, int]:
        """Return how many tasks ended in another attempt, and how many were rebuilt or replayed."""
        [[attempts, replays]] = self._rows(
            "SELECT (SELECT count(*) FROM regrow.tasks WHERE attempt > 1 AND finished_at >= %s),"
            " (SELECT count(*) FROM regrow.rebuilds WHERE started_at >= %s)",
            since,
            since,
        )
        return int(attempts), int(replays)

    def job_status(self, name: str) -> str:
        """Return the status of the newest run of a named job; empty: there is none."""
        rows = self._rows(
            "SELECT status FROM regrow.jobs WHERE name = %s ORDER BY run DESC LIMIT 1", name
        )
        return str(rows[0][0]) if rows else ""

    def made_on(self, task_ids: Sequence[bytes]) -> Counter[int]:
        """Return how many of these tasks each node ran."""
        rows = self._rows(
            "SELECT node_id, count(*) FROM regrow.tasks"
            " WHERE task_id = ANY (%s) AND state = 'FINISHED' GROUP BY node_id",
            list(task_ids),
        )
        return Counter(dict(rows))

    def death(self, node_id: int) -> Death | None:
        """Return a node's last death, None if it lives."""
        rows = self._rows(
            "SELECT node_id, died_at, reason FROM regrow.nodes"
            " WHERE node_id = %s AND NOT alive ORDER BY incarnation DESC LIMIT 1",
            node_id,
        )
        return Death(*rows[0]) if rows else None

    def reruns(self, death: Death) -> list[Rerun]:
        """Return what ran again after a death: the dead node's unfinished tasks, and rebuilds."""
        rows = self._rows(
            # The transaction that declared the node dead gave its unfinished tasks to others.
            "SELECT name, node_id, attempt, %(died_at)s, finished_at, false, NULL::boolean"
            "  FROM regrow.tasks WHERE attempt > 1 AND finished_at >= %(died_at)s "
            "UNION ALL "
            "SELECT t.name, r.node_id, r.attempt, r.started_at, r.finished_at, true, r.differs"
            "  FROM regrow.rebuilds r JOIN regrow.tasks t USING (task_id)"
            "  WHERE r.started_at >= %(died_at)s "
            "ORDER BY 4, 5, 1",
            {"died_at": death.died_at},
        )
        return [Rerun(*row) for row in rows]

    def lineage(self, object_id: bytes) -> list[Ancestor]:
        """Return the tasks from which an object came, the one that returned it first."""
        rows = self._rows(
            "SELECT a.task_id, a.name, ARRAY("
            "    SELECT substr(o.id, 1, 16) FROM regrow.object_ids(t.deps) AS o (id)),"
            "  (SELECT b.task_id FROM regrow.actor_calls b"
            "   WHERE b.actor_id = a.actor_id AND b.actor_seq < a.actor_seq"
            "   ORDER BY b.actor_seq DESC LIMIT 1) "
            "FROM regrow.ancestry(%s) a JOIN regrow.tasks t USING (task_id) "
            "ORDER BY a.finished_at DESC, a.task_id",
            object_id,
        )
        ancestors = {
            task: Ancestor(task, name, (*inputs, *([before] if before is not None else [])))
            for task, name, inputs, before in rows
        }
        return _nearest_first(ancestors, object_id[:16])

    def _rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        values = parameters[0] if len(parameters) == 1 and isinstance(parameters[0], dict) else None
        return self._connection.execute(query, values or parameters).fetchall()


def losses_table(killed_at: datetime, death: Death, reruns: Sequence[Rerun]) -> Table:
    """Return the table of what was lost and run again; times count from the kill."""
    table = Table(title=f"lost with node {death.node_id}, and run again", title_justify="left")
    table.add_column("what")
    table.add_column("on node", justify="right")
    table.add_column("attempt", justify="right")
    table.add_column("from", justify="right")
    table.add_column("to", justify="right")
    table.add_column("result")
    table.add_row("(node declared dead)", "", "", "", _after(killed_at, death.died_at), "")
    for rerun in reruns:
        table.add_row(
            rerun.name,
            str(rerun.node_id),
            str(rerun.attempt),
            _after(killed_at, rerun.started_at),
            _after(killed_at, rerun.finished_at) if rerun.finished_at else "-",
            rerun.outcome,
        )
    return table


def _after(start: datetime, end: datetime) -> str:
    return f"{(end - start).total_seconds():.2f} s"


def _nearest_first(ancestors: dict[bytes, Ancestor], task_id: bytes) -> list[Ancestor]:
    """Return the ancestors breadth first from a task; what cannot be reached is left out."""
    seen = {task_id: None}
    for task in (queue := [task_id]):
        for source in ancestors[task].inputs:
            if source in ancestors and source not in seen:
                seen[source] = None
                queue.append(source)
    return [ancestors[task] for task in queue]


def lineage_tree(ancestors: Sequence[Ancestor]) -> Tree:
    """Return the nearest ancestors as a tree, each task once, and the others as numbers.

    Tasks of one name that feed the same branch are one branch.
    """
    made = Counter(ancestor.name for ancestor in ancestors)
    total = ", ".join(f"{count} {name}" for name, count in sorted(made.items()))
    tree = Tree(f"final weights, from {len(ancestors)} tasks:\n{total}")
    by_id = {ancestor.task_id: ancestor for ancestor in ancestors}
    first = ancestors[0]
    shown = {first.task_id}
    level = [(tree.add(first.name), [first])]
    for _ in range(LEVELS_SHOWN):
        below: list[tuple[Tree, list[Ancestor]]] = []
        for branch, tasks in level:
            groups: dict[str, list[Ancestor]] = {}
            for source in dict.fromkeys(source for task in tasks for source in task.inputs):
                if source in by_id and source not in shown:
                    shown.add(source)
                    groups.setdefault(by_id[source].name, []).append(by_id[source])
            for name, group in groups.items():
                title = f"{len(group)} x {name}" if len(group) > 1 else name
                below.append((branch.add(title), group))
        level = below
    if len(shown) < len(ancestors):
        tree.add(f"... {len(ancestors) - len(shown)} tasks before these")
    return tree
