"""Named points at which the chaos suite lets a process die, and ways that it cuts.

Off, and free but for the look at a constant, unless ``REGROW_FAILPOINTS`` names a folder when the
process starts. Only the chaos suite sets that. In the folder:

    crash/<point>     the next process that comes to this point dies there, by SIGKILL
    fired/<point>-N   left by it
    links             lines "FROM TO cut", "FROM TO reset", "FROM TO SECONDS": what is wrong with
                      the way from one node ("*": any) to another, or to or from "gcs"

Every crash point is declared here. They are in shells only: a core cannot die in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from typing import Final

_FOLDER: Final = os.environ.get("REGROW_FAILPOINTS", "")
#: Whether any may be armed; callers look at this first.
ON: Final = bool(_FOLDER)

#: The control store, as the end of a way.
GCS: Final = "gcs"
CUT: Final = "cut"
RESET: Final = "reset"
_LOOK_S: Final = 0.02

#: Bugs that can be put in, to see that the suite finds them (``make chaos-mutants``), and what
#: each does. ``REGROW_MUTANT`` names one; it counts only where failpoints may be armed.
MUTANTS: Final = {
    "call-applied-twice": "each call of an actor is executed twice, and answered once",
    "commit-skipped": "every third batch of a node's log is answered for and not written",
    "lineage-row-dropped": "every third batch loses the row of a task",
}
MUTANT: Final = os.environ.get("REGROW_MUTANT", "") if ON else ""

#: What it means to die there.
CRASH_POINTS: Final = {
    "node.before_append": "a node has records and has not sent them to Postgres",
    "node.after_append": "a batch is committed; nobody has been told",
    "node.before_dispatch": "a task is about to be given to a worker",
    "node.before_hand_over": "the new holder of tasks is committed; they are not sent",
    "node.checkpoint_stored": "an object is in storage, and the log does not say so yet",
    "worker.running": "a worker has begun a task",
    "worker.sealed": "the result is written into memory; the node has not been told",
    "worker.saving": "the state of an actor is written; the node has not been told",
    "gcs.before_write": "the control store is about to write to Postgres",
    "gcs.after_write": "the control store has written; nobody has been told",
    "gcs.creating_actor": "the name of an actor is reserved; its creator has not been told",
    "gcs.restoring_actor": "an actor is given to a node, which has not been told",
}


def crash_point(name: str) -> None:
    """Die here if the suite wants it. Callers ask `ON` first."""
    try:
        os.unlink(f"{_FOLDER}/crash/{name}")  # of several that come here, one dies
    except OSError:
        return
    with open(f"{_FOLDER}/fired/{name}-{os.getpid()}", "w"):
        os.kill(os.getpid(), signal.SIGKILL)


_links: list[tuple[str, str, str]] = []
_links_read_s = -1.0


async def passage(source: str, target: str) -> None:
    """Wait until what ``source`` sends may reach ``target`` ("gcs", or a node's number).

    Raises ConnectionResetError if the connection is to break here. Callers ask `ON` first.
    """
    while state := _link(source, target):
        if state == RESET:
            raise ConnectionResetError(f"the chaos suite broke the way from {source} to {target}")
        if state != CUT:
            await asyncio.sleep(float(state))
            return
        await asyncio.sleep(_LOOK_S)


def _link(source: str, target: str) -> str:
    """CUT, RESET, or seconds of delay; "" if nothing is wrong with it."""
    global _links_read_s
    now = time.monotonic()
    if now - _links_read_s > _LOOK_S:
        _links_read_s = now
        _links.clear()
        with contextlib.suppress(OSError), open(f"{_FOLDER}/links") as file:
            for line in file:
                a, b, state = line.split()
                _links.append((a, b, state))
    for a, b, state in _links:
        if a in ("*", source) and b in ("*", target):
            return state
    return ""
