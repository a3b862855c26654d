"""Faults that strike a stage by a schedule, each written down with its time and its target.

Who calls ``step`` decides how long: a run of a scenario, or a test that runs meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from regrow.chaos.history import Recorder
from regrow.chaos.nemeses import NEMESES
from regrow.chaos.nemeses.nemesis import Nemesis, NotYetError
from regrow.chaos.scenario import NemesisPlan
from regrow.chaos.schedule import Due, Schedule
from regrow.chaos.stage import Stage

#: Is told of what happens: a kind of news and a text.
Watch = Callable[[str, str], None]
#: Nothing is waited for longer without a look at what else there is.
STEP_S: Final = 0.1
#: At the end of the faults everything has to be healed in so many seconds.
HEAL_S: Final = 60.0


class Strikes:
    """See the module. Made before the stage stands: what makes no sense is refused at once."""

    def __init__(self, plans: Sequence[NemesisPlan], seed: int, watch: Watch) -> None:
        self._watch = watch
        self._plans = plans
        self._nemeses: list[Nemesis] = [NEMESES[plan.name](plan.options) for plan in plans]
        self._schedule = Schedule(plans, seed)
        #: How often each has struck.
        self.fired: Counter[str] = Counter()
        self._stage: Stage
        self._recorder: Recorder

    @property
    def kill_driver(self) -> bool:
        """Whether any of them does."""
        return any(nemesis.kills_driver for nemesis in self._nemeses)

    def driver_is_to_come(self) -> bool:
        """Whether the driver was killed, and is to be run again."""
        return any(self._nemeses[due.number].kills_driver for due in self._schedule.to_heal())

    def set_up(self, stage: Stage, recorder: Recorder) -> None:
        """Before the cluster has anything to do."""
        self._stage, self._recorder = stage, recorder
        for nemesis in self._nemeses:
            nemesis.set_up(stage)

    def begin(self) -> None:
        """From now on they strike."""
        self._schedule.begin(time.monotonic())

    def step(self) -> float:
        """Carry out one thing, if any is due; how many seconds there is nothing to do."""
        now = time.monotonic()
        due = self._schedule.take(now)
        if due is not None:
            self._carry_out(due)
            return 0.0
        next_s = self._schedule.next_s()
        return STEP_S if next_s is None else min(max(next_s - now, 0.0), STEP_S)

    def end(self) -> None:
        """No more strike, and all is healed."""
        deadline = time.monotonic() + HEAL_S
        left = self._schedule.stop()
        while left:  # what one broke may have to be mended before another's
            left = [due for due in left if not self._heal(due)]
            assert time.monotonic() < deadline, f"not healed in {HEAL_S:g} s: {left}"
        for nemesis in self._nemeses:
            nemesis.heal(self._stage)

    def _carry_out(self, due: Due) -> None:
        if due.heals:
            if self._heal(due):
                self._schedule.healed(due, time.monotonic())
            else:
                self._schedule.not_healed(due, time.monotonic())
            return
        plan, nemesis = self._plans[due.number], self._nemeses[due.number]
        before = time.monotonic()
        target = nemesis.inject(self._stage, self._schedule.targets[due.number])
        if not target:  # nothing to hit just now
            self._schedule.missed(due, time.monotonic())
            return
        self.fired[plan.name] += 1
        self._recorder.fault(max(before, nemesis.struck_s), plan.name, target)
        self._watch("fault", f"{plan.name}: {target}")
        self._schedule.struck(due, time.monotonic(), target)

    def _heal(self, due: Due) -> bool:
        """Whether it is healed; else it has to be tried again."""
        name = self._plans[due.number].name
        try:
            self._nemeses[due.number].heal(self._stage)
        except NotYetError:
            return False
        self._recorder.heal(name, due.target)
        self._watch("heal", f"{name}: {due.target}")
        return True
