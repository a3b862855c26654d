"""Kills at the crash points of `regrow.failpoints`: a process dies exactly there."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import ClassVar

import msgspec

from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.scenario import ScenarioError
from regrow.chaos.stage import POLL_S, Stage
from regrow.failpoints import CRASH_POINTS


class CrashPoint(Nemesis):
    """SIGKILL of the first process that comes to a named point, of those that are listed."""

    name: ClassVar[str] = "crash_point"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Which points, by name or by what they begin with; empty: all."""

        points: list[str] = []
        #: A point to which nobody comes in so many seconds is given up.
        patience_s: float = 2.0

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._fired: Counter[str] = Counter()

    def _points(self) -> list[str]:
        wanted = tuple(self.options.points)
        found = [point for point in CRASH_POINTS if not wanted or point.startswith(wanted)]
        if not found:
            raise ScenarioError(
                f"nemesis {self.name}: no crash point begins with {', '.join(wanted)}; "
                f"there are {', '.join(CRASH_POINTS)}"
            )
        return found

    def set_up(self, stage: Stage) -> None:
        self._points()

    def inject(self, stage: Stage, rng: random.Random) -> str:
        """Arm one point after the other until somebody has died, first those at which the fewest
        have, among these in an order that is drawn."""
        points = rng.sample(self._points(), len(self._points()))
        for point in sorted(points, key=self._fired.__getitem__):
            armed = stage.failpoints / "crash" / point
            armed.touch()
            deadline = time.monotonic() + self.options.patience_s
            while armed.exists() and time.monotonic() < deadline:
                time.sleep(POLL_S / 4)
            try:
                armed.unlink()
            except FileNotFoundError:
                self._fired[point] += 1
                self.struck_s = time.monotonic()
                return f"{point} ({self._victim(stage, point)})"
        return ""

    @staticmethod
    def _victim(stage: Stage, point: str) -> str:
        left = sorted((stage.failpoints / "fired").glob(f"{point}-*"), key=os.path.getmtime)
        return f"process {left[-1].name.rpartition('-')[2]}" if left else "a process"

    def heal(self, stage: Stage) -> None:
        stage.ensure_gcs()
        stage.replace_dead_nodes()
