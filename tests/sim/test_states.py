"""The transitions that simulated clusters make are those of docs/states.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from regrow.chaos.simulation.cluster import Scale
from regrow.chaos.simulation.runner import run_seed
from regrow.objectstore import core as store_core
from regrow.objectstore.copies import CopyState
from regrow.scheduler import actors, tasks
from tests.unit.state_diagrams import diagrams

SEEDS = 250
#: Further ones, in which workers crash and nothing else happens.
CRASHING = 50
#: So rare in the simulator, or impossible there, that they are drawn but not asked for here.
RARE = {
    "Task, on a node": set[tuple[str, str]](),
    "Object, a copy on a node": {("RESTORING", "SPILLED")},
    "Actor, on a node": {
        ("PENDING", "AWAY"),
        ("AWAY", "DEAD"),
        ("AWAY", "PENDING"),
        ("RESTORING", "PENDING"),
        ("RESTORING", "DEAD"),
    },
}


def recording(cls: type[Any], name: Callable[[Any], str], seen: set[tuple[str, str]]) -> type[Any]:
    """The class, whose ``state`` notes every change."""

    class Recording(cls):  # type: ignore[misc]
        __slots__ = ("_state",)

        @property
        def state(self) -> Any:
            return self._state

        @state.setter
        def state(self, new: Any) -> None:
            old = getattr(self, "_state", new)
            if old != new:
                seen.add((name(old), name(new)))
            self._state = new

    return Recording


def named(module: Any, states: set[str]) -> Callable[[Any], str]:
    names = {getattr(module, state): state for state in states}
    return lambda value: names[value]


@pytest.fixture(scope="module")
def seen() -> dict[str, set[tuple[str, str]]]:
    """What was seen in some seeds, by diagram."""
    found: dict[str, set[tuple[str, str]]] = {title: set() for title in RARE}
    with pytest.MonkeyPatch.context() as patch:
        for title, module, attribute, name in (
            ("Task, on a node", tasks, "Task", None),
            ("Actor, on a node", actors, "Actor", None),
            ("Object, a copy on a node", store_core, "ObjectCopy", _copy_state),
        ):
            spell = name or named(module, diagrams()[title].states)
            cls = getattr(module, attribute)
            patch.setattr(module, attribute, recording(cls, spell, found[title]))
        for seed in range(SEEDS):
            run_seed(seed)  # whether it passes, test_seeds tells
        for seed in range(CRASHING):
            run_seed(seed, scale=Scale(faults=["worker_crash"]))
    return found


def _copy_state(state: CopyState) -> str:
    return state.name


@pytest.mark.parametrize("title", RARE)
def test_what_happens_is_drawn(title: str, seen: dict[str, set[tuple[str, str]]]) -> None:
    assert seen[title] <= diagrams()[title].transitions


@pytest.mark.parametrize("title", RARE)
def test_what_is_drawn_happens(title: str, seen: dict[str, set[tuple[str, str]]]) -> None:
    assert diagrams()[title].transitions - RARE[title] <= seen[title]
