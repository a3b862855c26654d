"""The walk up the lineage, on random graphs."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from regrow.gcs.lineage import Plan, Walk
from regrow.gcs.operations import LineageTask, ObjectRow
from regrow.messages import OK, TASK
from tests.unit.gcs.harness import oid, tid


class Graph:
    """Tasks 0..n-1, one large object each; task i needs objects of earlier tasks only."""

    def __init__(self, needs: list[list[int]], copies: set[int], single_run: set[int]) -> None:
        self.needs = needs
        self.copies = copies
        self.single_run = single_run
        self.asked: list[int] = []

    def task(self, number: int) -> LineageTask:
        retries = 0 if number in self.single_run else 3
        needs = [oid(need) for need in self.needs[number]]
        return LineageTask(tid(number), OK, TASK, retries, needs, [], [b"d"], 0)

    def plan(self, roots: list[int]) -> Plan:
        """Reads one task at a time, as a store with the smallest limits would answer."""
        rows = [ObjectRow(oid(n), True, OK, producer=tid(n), max_retries=3) for n in roots]
        has_copy = {oid(n) for n in self.copies}.__contains__
        walk = Walk(rows, has_copy, lambda _: False)
        while True:
            tasks, puts = walk.unread()
            assert not puts
            if not tasks:
                return walk.plan()
            number = int.from_bytes(tasks[0], "big")
            self.asked.append(number)
            walk.add_tasks(tasks[:1], [self.task(number)])

    def hopeless(self, number: int) -> bool:
        """Whether this lost object cannot come back (plain recursion, as the specification)."""
        lacks = [need for need in self.needs[number] if need not in self.copies]
        return number in self.single_run or any(map(self.hopeless, lacks))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[int]]:
    size = draw(st.integers(1, 12))
    needs = [
        draw(st.lists(st.integers(0, number - 1), max_size=3, unique=True)) if number else []
        for number in range(size)
    ]
    numbers = st.integers(0, size - 1)
    copies = draw(st.sets(numbers))
    single_run = draw(st.sets(numbers, max_size=2))
    lost = [number for number in range(size) if number not in copies]
    roots = draw(st.lists(st.sampled_from(lost), min_size=1, unique=True)) if lost else []
    return Graph(needs, copies, single_run), roots


@settings(deadline=None)
@given(graphs())
def test_a_plan_makes_every_lost_object_that_can_come_back_in_an_order_that_works(
    case: tuple[Graph, list[int]],
) -> None:
    graph, roots = case
    plan = graph.plan(roots)
    exist = set(graph.copies)
    for task, wanted in plan.order:
        number = int.from_bytes(task.task_id, "big")
        assert set(graph.needs[number]) <= exist, "its arguments were made before"
        assert number not in exist, "nothing is made that exists, or twice"
        assert wanted in [oid(root) for root in roots]
        exist.add(number)
    for root in roots:
        assert (oid(root) in plan.failed) == graph.hopeless(root)
        assert (root in exist) == (not graph.hopeless(root))


@settings(deadline=None)
@given(graphs())
def test_a_walk_reads_each_task_once_and_none_behind_a_copy(case: tuple[Graph, list[int]]) -> None:
    graph, roots = case
    graph.plan(roots)
    assert len(graph.asked) == len(set(graph.asked))
    assert set(graph.asked) <= set(_reachable(graph, roots))


def _reachable(graph: Graph, roots: list[int]) -> Iterator[int]:
    for root in roots:
        yield root
        if root not in graph.single_run:
            lacks = [need for need in graph.needs[root] if need not in graph.copies]
            yield from _reachable(graph, lacks)


def test_a_task_that_is_rebuilt_already_is_neither_read_nor_planned() -> None:
    row = ObjectRow(oid(2), True, OK, producer=tid(2), max_retries=3)
    walk = Walk([row], lambda _: False, {tid(1)}.__contains__)
    assert walk.unread() == ([tid(2)], [])
    walk.add_tasks([tid(2)], [LineageTask(tid(2), OK, TASK, 3, [oid(1)], [], [b"d"], 0)])
    assert walk.unread() == ([], [])
    assert [task.task_id for task, _ in walk.plan().order] == [tid(2)]


def test_a_task_that_is_not_in_the_log_is_said_to_be_so() -> None:
    walk = Walk([ObjectRow(oid(2), True, OK, producer=tid(2))], lambda _: False, lambda _: False)
    walk.unread()
    walk.add_tasks([tid(2)], [])
    code, why = walk.plan().failed[oid(2)]
    assert code == "object_lost"
    assert "not in the log" in why
