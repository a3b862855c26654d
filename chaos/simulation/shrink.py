"""Makes a failing seed small: fewer faults, fewer nodes, less to do, while it fails the same way.

What is left out, one thing or half of all things at a time, is decided by delta debugging (Zeller
and Hildebrandt, TSE'02): a smaller run that fails in the same words is kept. The parts of a seed
are drawn apart (``faults``, ``cluster``), so the rest of a run stays what it was; only the moments
at which messages arrive change, and with them the failure sometimes goes: so each smaller run is
tried in a few courses. A shrunk case is a seed and its ``Scale``: it is replayed exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from regrow.chaos.simulation.cluster import Cluster, Scale
from regrow.chaos.simulation.faults import KINDS, draw
from regrow.chaos.simulation.mutants import MUTANTS, Mutation
from regrow.chaos.simulation.runner import run_seed

#: Runs that one case is worth.
RUNS_MAX: Final = 800
#: Courses of each smaller run that are tried.
COURSES: Final = 3
#: Of a failure's words so many have to stay the same.
WORDS: Final = 6

T = TypeVar("T")

_NUMBERS: Final = re.compile(r"[0-9a-f]{8,}|\d+")


class Case(Struct):
    """A run that can be repeated: what ``--replay`` reads."""

    seed: int
    mutant: str = ""
    scale: Scale = msgspec.field(default_factory=Scale)


class Shrunk(Struct):
    """What is left of a case."""

    case: Case
    error: str
    #: What happened in it, in events of the simulation; and before.
    steps: int
    steps_before: int
    runs: int


def save(case: Case) -> bytes:
    """As a file."""
    return msgspec.json.format(msgspec.json.encode(case), indent=1) + b"\n"


def load(data: bytes) -> Case:
    """Raises msgspec.DecodeError."""
    case = msgspec.json.decode(data, type=Case)
    if case.mutant and case.mutant not in MUTANTS:
        raise msgspec.ValidationError(f"there is no mutant {case.mutant!r}")
    return case


def kind_of(error: str) -> str:
    """What is the same when a case fails the same way: the exception, and its first words that are
    no numbers. What did not happen in time is told in words that differ with every run."""
    name, _, text = error.partition(": ")
    if name == "LivenessViolation":
        return name
    words = _NUMBERS.sub(" ", text).split()
    return " ".join([name, *words[:WORDS]])


def shrink(case: Case, progress: Callable[[Shrunk], None] | None = None) -> Shrunk | None:
    """The smallest case that was found; None: this one does not fail."""
    return _Shrinking(case, progress).run()


class _Shrinking:
    def __init__(self, case: Case, progress: Callable[[Shrunk], None] | None) -> None:
        self._case = case
        self._progress = progress
        self._runs = 0
        self._best: Shrunk

    def run(self) -> Shrunk | None:
        cluster, error = run_seed(self._case.seed, self._case.mutant, self._case.scale)
        if not error:
            return None
        self._kind = kind_of(error)
        whole = _spelled_out(self._case)
        self._best = Shrunk(self._case, error, cluster.world.steps, cluster.world.steps, 1)
        self._best.case = whole
        left = -1
        while left != self._best.steps and self._runs < RUNS_MAX:
            left = self._best.steps
            self._fewer_nodes()
            self._fewer_strikes()
            self._fewer_steps()
            self._fewer_kinds()
        return self._best

    @property
    def _scale(self) -> Scale:
        return self._best.case.scale

    def _fails(self, scale: Scale) -> bool:
        """Tries a smaller run; keeps it if it fails the same way, and no later."""
        first = self._scale.course
        for course in range(first, first + COURSES):
            if self._runs < RUNS_MAX and self._fails_so(replace(scale, course=course)):
                return True
        return False

    def _fails_so(self, scale: Scale) -> bool:
        self._runs += 1
        case = replace(self._best.case, scale=scale)
        cluster, error = run_seed(case.seed, case.mutant, scale)
        later = cluster.world.steps > self._best.steps
        if later or not error or kind_of(error) != self._kind:
            return False
        before = self._best.steps_before
        self._best = Shrunk(case, error, cluster.world.steps, before, self._runs)
        if self._progress is not None:
            self._progress(self._best)
        return True

    def _fewer_strikes(self) -> None:
        def tried(places: list[int]) -> bool:
            return self._fails(replace(self._scale, strikes=places))

        minimize(self._scale.strikes or [], tried)

    def _fewer_kinds(self) -> None:
        for kind in KINDS:
            if kind not in self._scale.without:
                self._fails(replace(self._scale, without=[*self._scale.without, kind]))

    def _fewer_steps(self) -> None:
        """Of all drivers' programs together."""
        steps = self._scale.steps or []
        all_steps = [(driver, place) for driver, kept in enumerate(steps) for place in kept]

        def tried(kept: list[tuple[int, int]]) -> bool:
            of_drivers = [[p for d, p in kept if d == driver] for driver in range(len(steps))]
            return self._fails(replace(self._scale, steps=of_drivers))

        minimize(all_steps, tried)

    def _fewer_nodes(self) -> None:
        for nodes in range(1, self._scale.nodes or 1):
            if self._fails(replace(self._scale, nodes=nodes)):
                return


def _spelled_out(case: Case) -> Case:
    """With all that its seed draws and that can be left out."""
    scale = case.scale
    cluster = Cluster(case.seed, scale, MUTANTS[case.mutant]() if case.mutant else Mutation())
    strikes = list(range(len(draw(case.seed, scale.faults).faults)))
    steps = [list(range(len(cluster.programs[site].steps))) for site in cluster.driver_sites]
    return replace(
        case,
        scale=replace(
            scale,
            nodes=len(cluster.nodes),
            drivers=len(cluster.drivers),
            strikes=strikes if scale.strikes is None else scale.strikes,
            steps=steps if scale.steps is None else scale.steps,
        ),
    )


def minimize(items: list[T], fails: Callable[[list[T]], bool]) -> list[T]:
    """Leaves out of ``items`` what can be left out; none of the others can be alone. ``fails`` is
    asked of fewer and fewer."""
    size = len(items)
    while items:
        place, shrunk = 0, False
        while place < len(items):
            fewer = items[:place] + items[place + size :]
            if fails(fewer):
                items, shrunk = fewer, True
            else:
                place += size
        if size > 1:
            size //= 2
        elif not shrunk:
            break
    return items
