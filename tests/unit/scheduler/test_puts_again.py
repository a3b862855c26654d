"""What one attempt put and the next one puts again, while the first lets go of it."""

from __future__ import annotations

from regrow.ids import put_object_id
from regrow.messages import Create, Created, Drop, Located, Read, Seal
from tests.unit.scheduler.harness import DRIVER, Harness

PUT = put_object_id(b"p" * 16)
SIZE = 50_000


def test_a_put_that_is_there_already_is_held_from_when_that_was_told() -> None:
    node = Harness()
    node.driver()
    node.core.pool.start(1)
    worker = node.worker()
    seal = Seal(PUT, b"t" * 16, 1, SIZE, b"d" * 16)
    node.client(DRIVER, Create(PUT, 0, SIZE))
    node.client(DRIVER, seal)
    node.client(worker, Create(PUT, 0, SIZE))
    [created] = node.messages(worker, Created)
    assert created.location is None and created.error is None, "it need not be written"
    node.client(DRIVER, Drop([PUT]))
    node.client(worker, seal)
    node.client(worker, Read([PUT]))
    [located] = node.messages(worker, Located)
    assert [place.object_id for place in located.locations] == [PUT]
    node.client(worker, Drop([PUT]))
    node.core.objects.check()
    assert PUT not in node.core.objects.entries, "it is let go of once"
