"""What a call was answered is what its replay is answered, or the difference is told."""

from __future__ import annotations

import pytest

from regrow._answers import Answers
from regrow.exceptions import ReplayMismatchError


def replay_of(*noted: list[int] | bool) -> Answers:
    first = Answers(None)
    for answer in noted:
        first.note(answer)
    return Answers(first.packed())


def test_answers_come_back_in_their_order() -> None:
    again = replay_of([1], True, [], [0, 2], False)
    assert again.replays
    assert list(again.places(2)) == [1]
    assert again.in_time() is True
    assert list(again.places(3)) == []
    assert list(again.places(3)) == [0, 2]
    assert again.in_time() is False


def test_a_call_that_was_answered_nothing_logs_nothing() -> None:
    first = Answers(None)
    assert not first.replays
    assert first.packed() == b""
    assert Answers(b"").replays


def test_what_was_noted_is_not_changed_by_who_was_answered() -> None:
    first, places = Answers(None), [1]
    first.note(places)
    places.append(2)
    assert list(Answers(first.packed()).places(3)) == [1]


def test_a_replay_that_asks_for_something_else_is_told_so() -> None:
    with pytest.raises(ReplayMismatchError, match="more often"):
        Answers(b"").in_time()
    with pytest.raises(ReplayMismatchError, match="calls get"):
        replay_of([0]).in_time()
    with pytest.raises(ReplayMismatchError, match="waits for 2"):
        replay_of(True).places(2)
    with pytest.raises(ReplayMismatchError, match="waits for 1"):
        replay_of([1]).places(1)


def test_a_replay_notes_nothing() -> None:
    again = replay_of([0])
    again.note([1])
    assert again.packed() == b""
