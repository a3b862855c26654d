"""A node that drains: what it gives away, what it waits for, and when it goes."""

from __future__ import annotations

from msgspec.structs import replace

from regrow.messages import (
    SYSTEM_ERROR,
    HandOver,
    Nodes,
    NodeStatus,
    failure_decoder,
)
from regrow.scheduler.events import (
    DrainAsked,
    KillWorker,
    LeaveCluster,
    StoreSaid,
    Tick,
    ToControlStore,
    ToPeer,
)
from tests.unit.scheduler.harness import Harness, view


class Draining:
    """Node 1 with one CPU and a driver; node 2 is there too."""

    def __init__(self, peers: bool = True) -> None:
        self.harness = Harness()
        self.harness.driver()
        if peers:
            self.harness.say(StoreSaid(Nodes([view(1), view(2)])))
        self.harness.commit_all()
        self.now_ms = 1_000.0

    def tick(self, by_ms: float = 100) -> None:
        self.now_ms += by_ms
        self.harness.core.now_ms = self.now_ms
        self.harness.say(Tick(self.now_ms))
        self._commit()

    def drain(self, deadline_s: float = 10.0) -> None:
        self.harness.core.now_ms = self.now_ms
        self.harness.say(DrainAsked(deadline_s, "a test"))
        self._commit()

    def _commit(self) -> None:
        """A node that has left hears of no commit any more."""
        if not self.left:
            self.harness.commit_all()

    @property
    def left(self) -> list[str]:
        return [effect.reason for effect in self.harness.of(LeaveCluster)]

    def handed(self) -> int:
        """Tasks that were handed to node 2."""
        messages = [e.message for e in self.harness.of(ToPeer) if e.node_id == 2]
        return sum(len(m.tasks) for m in messages if isinstance(m, HandOver))


def test_an_idle_node_leaves_at_once_and_says_why() -> None:
    node = Draining()
    node.drain()
    assert node.left == ["it was drained (a test)"]


def test_what_is_queued_and_what_comes_goes_to_others_and_what_runs_is_waited_for() -> None:
    node = Draining()
    harness = node.harness
    running = harness.spec()
    harness.submit(running)
    worker = harness.worker()
    harness.submit(harness.spec(max_retries=0), harness.spec(max_retries=0))
    assert node.handed() == 0
    node.drain()
    assert node.handed() == 2
    harness.submit(harness.spec())
    harness.commit_all()
    assert node.handed() == 3
    node.tick()
    assert not node.left
    harness.finish(worker, running)
    node.tick()
    assert not node.left, "its result is not committed yet"
    harness.commit_all()
    node.tick()
    assert node.left


def test_it_says_that_it_drains_in_its_status() -> None:
    node = Draining()
    harness = node.harness
    harness.submit(harness.spec())
    harness.worker()
    node.drain()
    node.tick()
    said = [e.message for e in harness.of(ToControlStore) if isinstance(e.message, NodeStatus)]
    assert said[-1].draining == "a test"


def test_at_the_deadline_it_leaves_and_what_must_not_run_twice_fails_with_the_reason() -> None:
    node = Draining()
    harness = node.harness
    once = harness.spec(max_retries=0)
    harness.submit(once)
    harness.worker()
    node.drain(deadline_s=5)
    node.tick(4_900)
    assert not node.left
    node.tick(200)
    assert node.left
    assert len(harness.of(KillWorker)) == 1
    [outcome] = [o for batch in harness.batches() for o in batch.outcomes]
    assert outcome.status == SYSTEM_ERROR
    assert outcome.returns[0].data is not None
    assert failure_decoder.decode(outcome.returns[0].data).code == "node_died"


def test_what_may_run_again_is_left_to_others_at_the_deadline() -> None:
    node = Draining()
    harness = node.harness
    harness.submit(harness.spec())
    harness.worker()
    node.drain(deadline_s=5)
    node.tick(5_100)
    assert node.left
    assert [o for batch in harness.batches() for o in batch.outcomes] == []


def test_what_no_other_node_can_run_is_waited_for() -> None:
    node = Draining(peers=False)
    harness = node.harness
    running, waiting = harness.spec(), harness.spec(max_retries=0)
    harness.submit(running)
    worker = harness.worker()
    node.drain()
    harness.submit(waiting)
    harness.commit_all()
    harness.finish(worker, running)
    node.tick()
    assert not node.left
    harness.finish(worker, waiting)
    harness.commit_all()
    node.tick()
    assert node.left


def test_asked_again_only_an_earlier_deadline_counts() -> None:
    node = Draining()
    harness = node.harness
    harness.submit(harness.spec())
    harness.worker()
    node.drain(deadline_s=5)
    node.drain(deadline_s=50)
    node.tick(5_100)
    assert node.left


def test_another_that_drains_is_given_nothing() -> None:
    node = Draining(peers=False)
    harness = node.harness
    harness.say(StoreSaid(Nodes([view(1), replace(view(2), draining=True)])))
    harness.submit(*(harness.spec() for _ in range(5)))
    harness.commit_all()
    node.tick(1_000)
    assert node.handed() == 0
