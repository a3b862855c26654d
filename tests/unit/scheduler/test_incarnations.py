"""Which incarnation of a peer is spoken to: lists of news and calls, and what follows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from regrow.messages import NodeView, PeerDrop, PeerMessage
from regrow.scheduler.incarnations import Incarnations
from tests.unit.scheduler.harness import view

PEER = 2


def dead(node_id: int, incarnation: int) -> NodeView:
    return replace(view(node_id, incarnation), alive=False)


def message(number: int = 0) -> PeerMessage:
    return PeerDrop([bytes([number])])


def test_a_member_is_current_until_the_news_of_its_death() -> None:
    peers = Incarnations()
    peers.told([view(PEER, 1)])
    assert peers.is_current(PEER, 1)
    peers.died(PEER, 1)
    assert not peers.is_current(PEER, 1)
    assert peers.is_gone(PEER)


def test_the_death_of_one_incarnation_is_not_that_of_the_next() -> None:
    peers = Incarnations()
    peers.told([view(PEER, 2)])
    peers.died(PEER, 1)
    assert peers.is_current(PEER, 2)
    assert not peers.is_gone(PEER)


def test_what_is_for_a_node_not_yet_told_of_is_kept_in_order_and_given_once() -> None:
    peers = Incarnations()
    for number in range(3):
        peers.keep(PEER, message(number))
    peers.keep(3, message())
    peers.told([view(PEER, 1)])
    assert peers.take_kept() == [(PEER, message(number)) for number in range(3)]
    assert peers.take_kept() == []
    peers.told([view(PEER, 1), view(3, 1)])
    assert peers.take_kept() == [(3, message())]


def test_nothing_is_kept_for_a_dead_node() -> None:
    peers = Incarnations()
    peers.keep(PEER, message())
    peers.told([dead(PEER, 1)])
    peers.keep(PEER, message())
    peers.told([view(PEER, 2)])
    assert peers.take_kept() == []


def test_a_caller_newer_than_the_news_is_written_to_only_when_it_is_told_of() -> None:
    peers = Incarnations()
    peers.told([view(PEER, 1)])
    assert peers.called(PEER, 2), "links to the one before end"
    assert not peers.called(PEER, 2), "only once"
    assert peers.view(PEER) is None
    peers.keep(PEER, message())
    peers.told([view(PEER, 1)])  # said before it came back
    assert peers.take_kept() == []
    peers.told([dead(PEER, 1)])  # so was this
    assert not peers.is_gone(PEER)
    peers.told([view(PEER, 2)])
    assert peers.take_kept() == [(PEER, message())]


def test_a_late_word_of_an_incarnation_before_changes_nothing() -> None:
    peers = Incarnations()
    peers.told([view(PEER, 2)])
    assert not peers.called(PEER, 2)
    assert not peers.called(PEER, 1)
    assert peers.is_current(PEER, 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["told", "told dead", "died", "called"]), st.integers(1, 4)),
        max_size=20,
    )
)
def test_an_incarnation_is_never_current_before_one_that_called(
    news: list[tuple[str, int]],
) -> None:
    peers = Incarnations()
    heard = 0
    for what, incarnation in news:
        match what:
            case "told":
                peers.told([view(PEER, incarnation)])
            case "told dead":
                peers.told([dead(PEER, incarnation)])
            case "died":
                peers.died(PEER, incarnation)
            case "called":
                peers.called(PEER, incarnation)
                heard = max(heard, incarnation)
        current = peers.view(PEER)
        assert current is None or current.incarnation >= heard
        assert current is None or peers.is_current(PEER, current.incarnation)
