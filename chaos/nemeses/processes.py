"""Processes that are killed: workers, nodes, the control store, the driver, everything."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from typing import ClassVar

import msgspec

from regrow import _daemons
from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.stage import Stage
from regrow.gcs import embedded


class WorkerCrash(Nemesis):
    """SIGKILL of a worker process of some node."""

    name: ClassVar[str] = "worker_crash"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = stage.nodes()
        workers = [(node.node_id, pid) for node in nodes for pid in stage.workers(node)]
        if not workers:
            return ""
        node_id, pid = rng.choice(workers)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return f"worker {pid} of node {node_id}"
        return ""


class NodeCrash(Nemesis):
    """SIGKILL of all processes of one node or several; healed by as many new ones."""

    name: ClassVar[str] = "node_crash"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """How many at once, at most; one survives unless ``all`` may go."""

        count: int = 1
        all: bool = False

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = stage.nodes()
        count = min(self.options.count, len(nodes) if self.options.all else len(nodes) - 1)
        victims = rng.sample(nodes, max(count, 0))
        if not victims:
            return ""
        names = ", ".join(str(node.node_id) for node in victims)
        _daemons.kill_sessions([node.pid for node in victims])
        for node in victims:
            stage.cluster.remove_node(node, allow_graceful=False)
        return f"node {names}"

    def heal(self, stage: Stage) -> None:
        stage.replace_dead_nodes()


class GcsCrash(Nemesis):
    """SIGKILL of the control store that leads; without a standby it is started again."""

    name: ClassVar[str] = "gcs_crash"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        pid = stage.gcs_pid()
        if not pid:
            return ""
        _daemons.kill_sessions([pid])
        return f"control store {pid}"

    def heal(self, stage: Stage) -> None:
        stage.ensure_gcs()


class DriverKill(Nemesis):
    """SIGKILL of the driver; the same program is run again."""

    name: ClassVar[str] = "driver_kill"
    kills_driver: ClassVar[bool] = True

    def inject(self, stage: Stage, rng: random.Random) -> str:
        driver = stage.driver
        if driver is None or not stage.driver_runs():
            return ""
        stage.killed_drivers.add(driver.pid)
        stage.end_driver()
        return f"driver {driver.pid}"

    def heal(self, stage: Stage) -> None:
        if stage.driver is not None and stage.driver.pid in stage.killed_drivers:
            stage.restart_driver()


class EverythingCrash(Nemesis):
    """SIGKILL of every process, Postgres and the driver too, as by a power cut."""

    name: ClassVar[str] = "everything_crash"
    kills_driver: ClassVar[bool] = True

    def inject(self, stage: Stage, rng: random.Random) -> str:
        driver = stage.driver
        if driver is None or not stage.driver_runs():
            return ""
        stage.killed_drivers.add(driver.pid)
        server = embedded.status(stage.postgres_directory())
        pids = [*stage.marked_processes(), *([server.pid] if server is not None else [])]
        sessions = {os.getsid(pid) for pid in pids if os.path.exists(f"/proc/{pid}")}
        sessions.discard(os.getsid(0))
        _daemons.kill_sessions(sessions)
        stage.end_driver()
        for node in stage.cluster.list_all_nodes():
            stage.cluster.remove_node(node, allow_graceful=False)
        return f"{len(pids)} processes"

    def heal(self, stage: Stage) -> None:
        if stage.driver is not None and stage.driver.pid in stage.killed_drivers:
            stage.start_everything()
            stage.restart_driver()
