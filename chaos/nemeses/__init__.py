"""The faults that chaos runs inject into real processes, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.nemeses import (
    crash_points,
    database,
    network,
    pauses,
    processes,
    storage,
)
from regrow.chaos.nemeses.nemesis import Nemesis

_ALL: Final[tuple[type[Nemesis], ...]] = (
    processes.WorkerCrash,
    processes.NodeCrash,
    processes.GcsCrash,
    processes.DriverKill,
    processes.EverythingCrash,
    crash_points.CrashPoint,
    pauses.NodePause,
    pauses.GcsPause,
    pauses.NodeDrain,
    pauses.CpuStarvation,
    network.CutLinks,
    network.BreakLinks,
    network.SlowLinks,
    network.BlackOut,
    network.NetworkPartition,
    database.PostgresStop,
    database.PostgresAway,
    database.LogBreak,
    database.LostAnswers,
    database.SlowCommits,
    database.DatabaseLocked,
    database.DatabaseRefuses,
    database.BackendsKilled,
    database.ConnectionsExhausted,
    storage.FilesDamaged,
    storage.DiskFull,
    storage.StorageAway,
)

NEMESES: Final[dict[str, type[Nemesis]]] = {nemesis.name: nemesis for nemesis in _ALL}
