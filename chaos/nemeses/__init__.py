"""The faults that chaos runs inject into real processes, by name."""

from __future__ import annotations

from typing import Final

from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.nemeses.processes import (
    DriverKill,
    EverythingCrash,
    GcsCrash,
    NodeCrash,
    WorkerCrash,
)

NEMESES: Final[dict[str, type[Nemesis]]] = {
    nemesis.name: nemesis
    for nemesis in (DriverKill, EverythingCrash, GcsCrash, NodeCrash, WorkerCrash)
}
