"""A failing seed is made small, and what is left of it fails the same way, exactly."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow import _cli_chaos
from regrow.chaos.simulation.cluster import Scale
from regrow.chaos.simulation.runner import run_seed
from regrow.chaos.simulation.shrink import Case, kind_of, load, minimize, save, shrink
from regrow.cli import app

MUTANT = "output-released-early"
#: A failure that comes late leaves much to leave out.
EVENTS = 800


def failing_seed() -> int:
    for seed in range(100):
        cluster, error = run_seed(seed, MUTANT)
        if error.startswith("SafetyViolation") and cluster.world.steps > EVENTS:
            return seed
    raise AssertionError("none fails late enough")


@pytest.mark.slow
def test_a_failing_seed_is_shrunk_and_the_printed_command_replays_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    seed = failing_seed()
    _, error = run_seed(seed, MUTANT)
    assert _cli_chaos.shrink_case(Case(seed, MUTANT)) == 1
    said = capsys.readouterr().out
    before, after = re.findall(r"from ([\d,]+) events to ([\d,]+):", said)[0]
    assert int(after.replace(",", "")) < int(before.replace(",", "")) / 10
    [command] = re.findall(r"replay: (regrow .*)", said)
    with pytest.raises(SystemExit) as left:
        app(shlex.split(command)[1:])
    assert left.value.code == 1
    replayed = capsys.readouterr().out.splitlines()[-1]
    assert kind_of(replayed) == kind_of(error)
    assert f"events to {after}: {replayed}" in said, "it is exactly the same"


def test_what_passes_is_not_shrunk() -> None:
    assert shrink(Case(3)) is None


def test_a_case_is_read_as_it_was_written() -> None:
    case = Case(42, "fencing-off", Scale(nodes=2, without=["drain"], strikes=[], steps=[[1], []]))
    assert load(save(case)) == case


def test_nothing_but_what_is_left_out_changes_with_it() -> None:
    whole = run_seed(5, scale=Scale(nodes=3, drivers=2))[0]
    kept = [[0, 1, 2], list(range(len(whole.programs[whole.driver_sites[1]].steps)))]
    less = run_seed(5, scale=Scale(nodes=3, drivers=2, strikes=[], steps=kept))[0]
    assert [node.total for node in less.nodes] == [node.total for node in whole.nodes]
    assert less.config == whole.config
    one, two = whole.driver_sites
    assert less.programs[two] == whole.programs[two]
    assert less.programs[one].steps == whole.programs[one].steps[:3]


@given(st.sets(st.integers(0, 30)), st.integers(0, 31))
def test_what_can_be_left_out_is(needed: set[int], size: int) -> None:
    items = list(range(max(size, *needed, 0) + 1)) if needed else list(range(size))
    assert minimize(items, lambda kept: needed <= set(kept)) == sorted(needed)


def test_ids_and_numbers_do_not_tell_failures_apart() -> None:
    one = "SafetyViolation: n2.3 told of 759b36be1991997e000000000000000200000000 before its commit"
    two = "SafetyViolation: n4.1 told of 10f1487ea61e1f16ceeca13bb67b635400000000 before its commit"
    other = "SafetyViolation: a batch of (2, 1) was applied after its fencing"
    assert kind_of(one) == kind_of(two) != kind_of(other)
