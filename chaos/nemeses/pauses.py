"""Processes that stand still, starve, or are asked to leave."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from typing import ClassVar

import msgspec

from regrow import _daemons
from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.stage import START_S, Stage, wait_until
from regrow.cluster_utils import Node


class _Pause(Nemesis):
    """Processes that stand still from SIGSTOP to SIGCONT."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._stopped: list[int] = []

    def _stop(self, pids: list[int]) -> None:
        self._stopped = pids
        _signal(pids, signal.SIGSTOP)

    def heal(self, stage: Stage) -> None:
        _signal(self._stopped, signal.SIGCONT)
        self._stopped = []


class NodePause(_Pause):
    """SIGSTOP of all processes of a node, and SIGCONT when healed: past its lease, a zombie."""

    name: ClassVar[str] = "node_pause"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = stage.nodes()
        if self._stopped or not nodes:
            return ""
        node = rng.choice(nodes)
        self._stop(_daemons.session_members([node.pid]))
        return f"node {node.node_id}"


class GcsPause(_Pause):
    """SIGSTOP of the control store that leads, and SIGCONT: it may still think that it leads."""

    name: ClassVar[str] = "gcs_pause"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        pid = stage.gcs_pid()
        if self._stopped or not pid:
            return ""
        self._stop([pid])
        return f"control store {pid}"


class NodeDrain(Nemesis):
    """SIGTERM to a node, as before its machine is taken away; healed when it has left."""

    name: ClassVar[str] = "node_drain"

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._leaving: Node | None = None

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = stage.nodes()
        if self._leaving is not None or len(nodes) < 2:
            return ""
        node = self._leaving = rng.choice(nodes)
        _signal([node.pid], signal.SIGTERM)
        return f"node {node.node_id}"

    def heal(self, stage: Stage) -> None:
        if self._leaving is not None:
            leaving, self._leaving = self._leaving, None
            wait_until(lambda: not leaving.alive(), START_S)
            stage.replace_dead_nodes()


class CpuStarvation(Nemesis):
    """Processes that only burn CPU time, many more than there are cores."""

    name: ClassVar[str] = "cpu_starvation"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """How many for each core."""

        per_core: int = 4

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._burning: list[subprocess.Popen[bytes]] = []

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._burning:
            return ""
        count = self.options.per_core * len(os.sched_getaffinity(0))
        burn = [sys.executable, "-S", "-c", "while True: pass"]
        self._burning = [subprocess.Popen(burn) for _ in range(count)]
        return f"{count} processes on {len(os.sched_getaffinity(0))} cores"

    def heal(self, stage: Stage) -> None:
        for process in self._burning:
            process.kill()
            process.wait()
        self._burning = []


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
