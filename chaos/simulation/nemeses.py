"""What a fault that strikes does to a simulated cluster, and when that heals.

Each method is a kind, is given the source of its choices, and returns whether there was something
to strike.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from regrow.chaos.simulation.drivers import SimDriver
from regrow.messages import RunTask, header_decoder
from regrow.scheduler.events import DrainAsked

if TYPE_CHECKING:
    from regrow.chaos.simulation.cluster import Cluster
    from regrow.chaos.simulation.control import ControlShell
    from regrow.chaos.simulation.node import NodeShell


class Nemeses:
    """See the module."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        #: Workers that each task has lost.
        self._kills: dict[bytes, int] = {}

    def strike(self, kind: str, rng: random.Random) -> bool:
        """One fault. False: there was nothing to strike."""
        act = getattr(self, kind)
        struck: bool = act(rng)
        return struck

    def _some_node(self, rng: random.Random) -> NodeShell:
        return rng.choice(self._cluster.nodes)

    def _some_control(self, rng: random.Random) -> ControlShell:
        """More often the one that leads."""
        control = self._cluster.control
        if len(control.shells) == 1 or rng.random() < 0.7:
            return control.announced
        return rng.choice(control.shells)

    # nodes

    def cut_links(self, rng: random.Random) -> bool:
        count = len(self._cluster.nodes)
        a, b = rng.randrange(count), rng.randrange(count)
        self._cluster.cut(a, b, self._world.now + rng.choice([20.0, 200.0, 2_000.0]))
        return a != b

    def node_crash(self, rng: random.Random) -> bool:
        node = self._some_node(rng)
        struck = node.crash()
        self._world.after(rng.choice([5.0, 50.0, 3_000.0]), node.start)
        return struck

    def node_pause(self, rng: random.Random) -> bool:
        node = self._some_node(rng)
        struck = node.pause()
        self._world.after(rng.choice([50.0, 800.0, 2_500.0]), node.resume)
        return struck

    def drain(self, rng: random.Random) -> bool:
        """A node is asked to go, where others can take its work; it is started again later."""
        node = self._some_node(rng)
        deadline_s = rng.choice([0.02, 0.3, 2.0])
        core = node.core
        if core is None or node.paused or node.leaving or core.draining or not core.has_peers:
            return False
        node.starts_again_ms = rng.choice([5.0, 50.0, 2_000.0])
        node.handle(DrainAsked(deadline_s, "its machine is wanted"))
        return True

    def worker_crash(self, rng: random.Random) -> bool:
        """A worker dies, unless its tasks would be failed for having killed too many."""
        node = self._some_node(rng)
        if node.paused or not node.workers:
            return False
        worker = rng.choice(list(node.workers.values()))
        ids = [worker.frame.task_id] if worker.frame is not None else []
        ids += [_task_id_of(run) for run in worker.queue]
        core = node.core
        view = core.pool.workers.get(worker.worker) if core is not None else None
        if view is not None:
            ids += list(view.in_flight)
        elif core is not None:  # it is being welcomed, and may be given any of these meanwhile
            ids += list(core.tasks.tasks)
        most = self._cluster.config.worker_kills_max - 1
        if any(self._kills.get(task_id, 0) >= most for task_id in ids):
            return False
        for task_id in dict.fromkeys(ids):
            self._kills[task_id] = self._kills.get(task_id, 0) + 1
        self._world.trace(worker.name, "is killed")
        node.worker_dies(worker)
        return True

    # the control store and the database

    def gcs_crash(self, rng: random.Random) -> bool:
        shell = self._some_control(rng)
        struck = shell.crash()
        self._world.after(rng.choice([5.0, 300.0, 2_000.0]), shell.start)
        return struck

    def gcs_pause(self, rng: random.Random) -> bool:
        shell = self._some_control(rng)
        struck = shell.pause()
        self._world.after(rng.choice([50.0, 600.0, 2_500.0]), shell.resume)
        return struck

    def session_break(self, rng: random.Random) -> bool:
        node = self._some_node(rng)
        if node.session_with is None:
            return False
        node.session_with.break_session(node)
        return True

    def log_break(self, rng: random.Random) -> bool:
        return self._some_node(rng).log.break_off()

    def postgres_stop(self, rng: random.Random) -> bool:
        database = self._cluster.database
        struck = database.stop()
        self._world.after(rng.choice([20.0, 500.0, 2_000.0]), database.start)
        return struck

    # drivers

    def driver_kill(self, rng: random.Random) -> bool:
        """SIGKILL of a driver with a named job: the same program is run again, a while later."""
        cluster = self._cluster
        driver = rng.choice(cluster.drivers)
        if not driver.job_name or driver.frame.waits == ("end",):
            return False
        driver.kill()
        for node in cluster.nodes:
            node.driver_died(driver)
        successor = SimDriver(cluster, driver.site, driver.job_name)
        cluster.drivers[cluster.drivers.index(driver)] = successor
        self._world.after(rng.choice([1.0, 50.0, 1_000.0]), successor.connect)
        return True

    def driver_break(self, rng: random.Random) -> bool:
        driver = rng.choice(self._cluster.drivers)
        if driver.node is None or driver.welcome is None or driver.finished:
            return False
        driver.node.break_client(driver)
        return True


def _task_id_of(run: RunTask) -> bytes:
    return header_decoder.decode(run.spec).task_id
