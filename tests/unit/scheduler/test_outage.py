"""While Postgres does not take the log: who is told of it, when, and in which words."""

from __future__ import annotations

from regrow.messages import NodeStatus, Printed
from regrow.scheduler.events import FlushDue, LogFailed, Tick, ToControlStore
from tests.unit.scheduler.harness import DRIVER, Harness

FULL = 'ERROR:  could not extend file "x": No space left on device\nHINT:  Check free disk space.'


def lines(harness: Harness) -> list[str]:
    """What the driver was told."""
    return [message.output.lines[0] for message in harness.messages(DRIVER, Printed)]


def kinds(harness: Harness) -> list[str]:
    """Events that were logged, oldest first."""
    return [event.kind for batch in harness.batches() for event in batch.events]


def statuses(harness: Harness) -> list[bool]:
    """Whether the log is refused, as the control store was told."""
    said = [effect.message for effect in harness.of(ToControlStore)]
    return [message.log_refused for message in said if isinstance(message, NodeStatus)]


class Clock:
    """Ticks of a node that has a task in its log."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0
        self.harness = Harness()
        self.harness.driver()
        self.harness.commit_all()
        self.submit()

    def submit(self) -> None:
        self.harness.submit(self.harness.spec())
        self.harness.say(FlushDue())

    def tick(self, by_ms: float) -> None:
        self.now_ms += by_ms
        self.harness.core.now_ms = self.now_ms
        self.harness.say(Tick(self.now_ms))


def test_a_batch_that_is_not_answered_is_told_of_after_three_seconds_and_once() -> None:
    clock = Clock()
    harness = clock.harness
    clock.tick(100)
    harness.say(LogFailed("the connection broke"))
    clock.tick(3_000)
    assert lines(harness) == []
    clock.tick(200)
    clock.tick(5_000)
    [line] = lines(harness)
    assert "Postgres does not answer: the connection broke." in line
    harness.commit_all()
    assert lines(harness)[1:] == ["Postgres is back after 8 s; everything goes on"]
    assert kinds(harness) == ["postgres_lost", "postgres_works"]


def test_a_log_that_is_slow_but_answered_is_not_told_of() -> None:
    clock = Clock()
    harness = clock.harness
    for _ in range(10):
        clock.submit()
        clock.tick(1_000)
        harness.commit_all()
    assert lines(harness) == []


def test_a_full_disk_is_told_of_at_once_with_what_to_do() -> None:
    clock = Clock()
    harness = clock.harness
    for _ in range(3):
        harness.say(LogFailed(FULL, "53100"))
    [line] = lines(harness)
    assert 'could not extend file "x": No space left on device' in line
    assert "Make room on the disk" in line
    assert "HINT" not in line
    harness.commit_all()
    assert kinds(harness) == ["postgres_full", "postgres_works"]


def test_a_node_whose_log_is_refused_says_so_every_second() -> None:
    clock = Clock()
    harness = clock.harness
    harness.say(LogFailed(FULL, "53100"))
    for _ in range(30):
        clock.tick(100)
    assert statuses(harness).count(True) in (3, 4)
    harness.commit_all()
    clock.tick(100)
    assert statuses(harness)[-1] is False
