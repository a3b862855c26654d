"""Short memory: which worker is ended, and what becomes of its task."""

from __future__ import annotations

from typing import Any

import pytest

from regrow.messages import (
    SYSTEM_ERROR,
    SystemFailure,
    TaskSpec,
    Values,
    failure_decoder,
)
from regrow.scheduler import events
from regrow.scheduler.pressure import BACKOFF_MAX_MS, BACKOFF_MS
from tests.unit.scheduler.harness import DRIVER, Harness, first

GIB = 1 << 30


def node_with(workers: int, **config: Any) -> Harness:
    """A node on which so many workers wait for tasks."""
    node = Harness(cpus=workers, **config)
    node.driver()
    node.core.pool.start(workers)
    for _ in range(workers):
        node.worker()
    node.commit_all()
    node.effects.clear()
    return node


def running(node: Harness, **fields: Any) -> TaskSpec:
    """A task that has begun."""
    spec = node.spec(**fields)
    node.submit(spec)
    assert worker_of(node, spec)
    return spec


def worker_of(node: Harness, spec: TaskSpec) -> int:
    """The number of the worker that has it; 0: none."""
    task = node.core.tasks.tasks.get(spec.task_id)
    return task.worker.number if task is not None and task.worker is not None else 0


def measure(node: Harness, used: float, sizes: dict[int, int] | None = None) -> list[int]:
    """The workers that are ended for it. All are equally big, if nothing else is said."""
    before = len(node.of(events.KillWorker))
    sizes = sizes or dict.fromkeys(node.core.pool.workers, GIB)
    node.say(events.MemoryMeasured(int(used * GIB), 10 * GIB, sizes))
    return [kill.number for kill in node.of(events.KillWorker)[before:]]


def end(node: Harness, number: int) -> None:
    """The worker's process is dead."""
    node.say(events.ClientGone(node.core.pool.workers[number].client))


def tick(node: Harness, at_ms: float) -> None:
    node.say(events.Tick(at_ms))


def failure_of(node: Harness, spec: TaskSpec) -> SystemFailure:
    node.commit_all()
    values = [v for m in node.messages(DRIVER, Values) for v in m.values]
    (value,) = [v for v in values if v.object_id == first(spec)]
    assert value.status == SYSTEM_ERROR
    assert value.data is not None
    return failure_decoder.decode(value.data)


def test_the_task_that_came_last_goes_first_and_only_above_the_threshold() -> None:
    node = node_with(3)
    old, new = running(node), running(node)
    assert measure(node, 9.4) == []
    assert measure(node, 9.6) == [worker_of(node, new)]
    assert worker_of(node, old)


def test_no_second_worker_is_ended_before_the_first_is_gone() -> None:
    node = node_with(3)
    old, new = running(node), running(node)
    (number,) = measure(node, 9.9)
    assert measure(node, 9.9) == []
    end(node, number)
    assert worker_of(node, new) == 0
    assert measure(node, 9.9) == [worker_of(node, old)]


def test_what_may_run_again_goes_before_what_may_not() -> None:
    node = node_with(3)
    again = running(node)
    running(node, max_retries=0)
    assert measure(node, 9.9) == [worker_of(node, again)]


def test_a_worker_whose_end_would_free_next_to_nothing_is_left_alone() -> None:
    node = node_with(3)
    big, small = running(node), running(node)
    sizes = {worker_of(node, big): 5 * GIB, worker_of(node, small): GIB // 10}
    assert measure(node, 9.9, sizes) == [worker_of(node, big)]


def test_nothing_is_ended_where_others_have_the_memory() -> None:
    node = node_with(3)
    task = running(node)
    few = dict.fromkeys(node.core.pool.workers, GIB // 100)
    assert measure(node, 9.9, few) == []
    assert measure(node, 9.52, few) == [worker_of(node, task)]


def test_idle_workers_are_left_alone() -> None:
    assert measure(node_with(3), 9.9) == []


def test_an_ended_task_runs_again_later_each_time_and_keeps_its_retries() -> None:
    node = node_with(1, task_oom_retries=7)
    spec = running(node, max_retries=1)
    at_ms, waits = 0.0, []
    for kills in range(1, 8):
        (number,) = measure(node, 9.9)
        end(node, number)
        if node.core.pool.starting:
            node.worker()
        wait_ms = min(BACKOFF_MS * 2 ** (kills - 1), BACKOFF_MAX_MS)
        tick(node, at_ms + wait_ms - 1)
        assert not worker_of(node, spec), "too early"
        at_ms += wait_ms
        tick(node, at_ms)
        if node.core.pool.starting:
            node.worker()
        waits.append(wait_ms)
        task = node.core.tasks.tasks[spec.task_id]
        assert task.worker is not None
        assert task.attempt == kills + 1
    assert waits[0] < waits[-2] == waits[-1] == BACKOFF_MAX_MS
    end(node, worker_of(node, spec))  # a crash, which is its one retry
    assert spec.task_id in node.core.tasks.tasks
    node.worker()
    end(node, worker_of(node, spec))
    assert failure_of(node, spec).code == "worker_crashed"


@pytest.mark.parametrize(("max_retries", "allowed", "runs"), [(3, 2, 3), (0, 2, 1), (-1, 0, 1)])
def test_a_task_that_may_not_run_again_fails_with_what_used_the_memory(
    max_retries: int, allowed: int, runs: int
) -> None:
    node = node_with(1, task_oom_retries=allowed)
    spec = running(node, max_retries=max_retries)
    for run in range(1, runs + 1):
        (number,) = measure(node, 9.9)
        pid = node.core.pool.workers[number].pid
        end(node, number)
        if run < runs:
            tick(node, node.core.now_ms + BACKOFF_MAX_MS)
            node.worker()
    failure = failure_of(node, spec)
    assert failure.code == "out_of_memory"
    for part in ("node 1", "9.90 GiB of 10.00 GiB", f"f (pid {pid}) 1.00 GiB", "num_cpus"):
        assert part in failure.message, part
    assert not node.core.tasks.tasks


def test_what_was_queued_behind_an_ended_task_is_not_charged() -> None:
    node = node_with(1)
    warm = running(node)
    node.finish(2, warm)  # short: others may be queued behind the next one
    specs = [node.spec(max_retries=0) for _ in range(1)] + [node.spec()]
    node.submit(*specs)
    task = node.core.tasks.tasks[specs[1].task_id]
    (number,) = measure(node, 9.9)
    end(node, number)
    assert failure_of(node, specs[0]).code == "out_of_memory"
    assert (task.attempt, task.oom_kills) == (1, 0)


def test_a_task_whose_job_ended_while_it_waited_does_not_come_back() -> None:
    node = node_with(1)
    spec = running(node)
    (number,) = measure(node, 9.9)
    end(node, number)
    node.core.tasks.job_closed(1)
    tick(node, BACKOFF_MAX_MS)
    assert spec.task_id not in node.core.tasks.tasks
    assert not node.core.pool.queued
