"""The same seed draws the same times and targets; faults strike and heal as the plan says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from regrow.chaos.scenario import NemesisPlan
from regrow.chaos.schedule import AGAIN_S, Due, Schedule

PLANS = [
    NemesisPlan("node_crash", every_s=4.0, heal_after_s=1.0),
    NemesisPlan("worker_crash", every_s=1.0, heal_after_s=0.0),
]


def carried_out(seed: int, *, late_s: float = 0.0, until_s: float = 40.0) -> list[Due]:
    """What is due until then, when everything is carried out so much later than it is due."""
    schedule = Schedule(PLANS, seed)
    schedule.begin(0.0)
    done = []
    now_s = 0.0
    while (next_s := schedule.next_s()) is not None and next_s < until_s:
        now_s = max(now_s, next_s + late_s)
        due = schedule.take(now_s)
        assert due is not None
        done.append(due)
        if due.heals:
            schedule.healed(due, now_s)
        else:
            target = str(schedule.targets[due.number].randrange(1000))
            schedule.struck(due, now_s, target)
    return done


@given(st.integers(0, 10_000))
def test_the_same_seed_gives_the_same_faults(seed: int) -> None:
    assert carried_out(seed) == carried_out(seed)


def test_another_seed_gives_others() -> None:
    assert carried_out(1) != carried_out(2)


@given(st.integers(0, 10_000))
def test_the_nth_target_of_a_fault_does_not_depend_on_how_long_anything_took(seed: int) -> None:
    quick, slow = carried_out(seed), carried_out(seed, late_s=0.2)
    for number in range(len(PLANS)):
        first = [due.target for due in quick if due.number == number and due.heals]
        second = [due.target for due in slow if due.number == number and due.heals]
        common = min(len(first), len(second))
        assert common
        assert first[:common] == second[:common]


@given(st.integers(0, 10_000))
def test_a_fault_strikes_again_only_after_it_was_healed(seed: int) -> None:
    for number in range(len(PLANS)):
        kinds = [due.heals for due in carried_out(seed) if due.number == number]
        assert kinds == [bool(index % 2) for index in range(len(kinds))]


@given(st.integers(0, 10_000))
def test_the_first_strike_is_about_half_a_period_away(seed: int) -> None:
    first = next(due for due in carried_out(seed) if due.number == 0)
    assert 1.0 <= first.at_s <= 3.0


def test_what_found_nothing_to_hit_tries_again_soon_and_draws_no_new_time() -> None:
    schedule, other = Schedule(PLANS[:1], 7), Schedule(PLANS[:1], 7)
    schedule.begin(0.0)
    other.begin(0.0)
    due, same = schedule.take(10.0), other.take(10.0)
    assert due is not None
    assert due == same
    schedule.missed(due, 10.0)
    assert schedule.next_s() == 10.0 + AGAIN_S
    again = schedule.take(11.0)
    assert again is not None
    for one, which in ((schedule, again), (other, due)):
        one.struck(which, 11.0, "node 1")
        heal = one.take(12.0)
        assert heal is not None
        one.healed(heal, 12.0)
    assert schedule.next_s() == other.next_s()


def test_a_fault_strikes_no_more_often_than_it_may() -> None:
    schedule = Schedule([NemesisPlan("node_crash", every_s=1.0, most=1)], 0)
    schedule.begin(0.0)
    due = schedule.take(5.0)
    assert due is not None
    schedule.struck(due, 5.0, "node 1")
    heal = schedule.take(6.0)
    assert heal is not None
    assert heal.heals
    schedule.healed(heal, 6.0)
    assert schedule.next_s() is None


def test_at_the_end_only_healings_are_left() -> None:
    schedule = Schedule(PLANS, 3)
    schedule.begin(0.0)
    due = schedule.take(10.0)
    assert due is not None
    schedule.struck(due, 10.0, "node 1")
    left = schedule.stop()
    assert [(one.number, one.heals, one.target) for one in left] == [(due.number, True, "node 1")]
    assert schedule.next_s() is None


def test_a_plan_that_may_not_strike_never_does() -> None:
    schedule = Schedule([NemesisPlan("node_crash", most=0)], 0)
    schedule.begin(0.0)
    assert schedule.next_s() is None
