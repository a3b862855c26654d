"""Copies that a node gets from others, or from storage: what it knows of them, and checks."""

from __future__ import annotations

from regrow.ids import object_id
from regrow.messages import (
    OK,
    Borrow,
    Locate,
    Located,
    Locations,
    NodeDied,
    Nodes,
    Read,
    Value,
    Whereabouts,
)
from regrow.objectstore.layout import digest
from regrow.scheduler import events
from tests.unit.scheduler.harness import DRIVER, Harness, view

OID = object_id(b"x" * 16, 0)
SIZE = 60_000
DIGEST = digest(b"what it is")


def reading() -> Harness:
    """The driver reads an object of which the control store has just answered that node 2 has it,
    which is all that it knows of objects in the memory of nodes."""
    node = Harness(arena=100_000)
    node.driver()
    node.say(events.StoreSaid(Nodes([view(1), view(2)])))
    node.commit_all()
    node.client(DRIVER, Borrow([OID]))
    node.client(DRIVER, Read([OID]))
    node.say(events.StoreSaid(Locations([Whereabouts(OID, nodes=[2], size=SIZE)])))
    (fetch,) = node.of(events.FetchBytes)
    assert (fetch.node_id, fetch.digest) == (2, b"")
    return node


def test_bytes_in_storage_are_checked_against_the_digest_that_came_with_their_path() -> None:
    """Node 2 died before the control store knew it: asked again, it tells the path in storage."""
    node = reading()
    node.say(events.Fetched(node.of(events.FetchBytes)[0].key, False))
    node.say(events.StoreSaid(NodeDied(2, 1, "gone")))
    asked = [e.message for e in node.of(events.ToControlStore) if isinstance(e.message, Locate)]
    assert asked[-1].gone == [(OID, 2)]
    where = Whereabouts(OID, stored="storage/x", size=SIZE, digest=DIGEST)
    node.say(events.StoreSaid(Locations([where])))
    (load,) = node.of(events.LoadBytes)
    assert load.digest == DIGEST


def test_the_digest_of_a_copy_is_known_once_the_copy_is_here() -> None:
    node = reading()
    node.say(events.Fetched(node.of(events.FetchBytes)[0].key, True, digest=DIGEST))
    assert len(node.messages(DRIVER, Located)) == 1
    value = node.core.objects.entries[OID].value
    assert value == Value(OID, OK, SIZE, None, DIGEST)
    node.say(events.FetchAsked(1, 3, OID))
    (served,) = node.of(events.ServeBytes)
    assert served.digest == DIGEST
