"""All of a simulation: nodes, control store, database, drivers; and what faults do to them."""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec import Struct

from regrow.chaos.simulation.checks import Checks
from regrow.chaos.simulation.clients import FUNCTIONS
from regrow.chaos.simulation.control import ControlShells, Database
from regrow.chaos.simulation.drivers import SimDriver
from regrow.chaos.simulation.faults import Faults, Plan, draw, draw_more
from regrow.chaos.simulation.mutants import Mutation
from regrow.chaos.simulation.node import NodeShell
from regrow.chaos.simulation.programs import Evaluation, Profile, Program, ProgramMaker
from regrow.chaos.simulation.world import LivenessViolation, World
from regrow.config import Config
from regrow.gcs.core_events import ANSWERED, REFUSED, SILENT
from regrow.ids import ContentIds, function_id
from regrow.messages import FunctionDef, PeerMessage, Resources, RunTask, header_decoder
from regrow.scheduler import events

#: Faults end after so much virtual time, milliseconds; and so much later everything has to be done.
FAULTS_MS = 4_000.0
LIVENESS_MS = 60_000.0
#: More steps than that are a livelock.
STEPS_MAX = 150_000


class Scale(Struct):
    """Overrides for what a seed draws; None: drawn."""

    nodes: int | None = None
    drivers: int | None = None
    operations: int = 200
    faults: list[str] | None = None
    check_every: int = 1


class Cluster:
    """One simulation."""

    def __init__(
        self,
        seed: int,
        scale: Scale | None = None,
        mutation: Mutation | None = None,
        show: Callable[[str], None] | None = None,
    ) -> None:
        scale = scale or Scale()
        self.world = World(seed, show)
        rng = self.world.rng
        self.mutation = mutation or Mutation()
        self.check_every = scale.check_every
        plan = draw(rng)
        if scale.faults is not None:
            plan = Plan(list(scale.faults), named_jobs="driver_kill" in scale.faults)
        else:
            draw_more(plan, random.Random(f"more of {seed}"))
        self.faults = Faults(self, plan)
        count = rng.randint(2, 5)
        if rng.random() < 0.1:
            count = 1
        if scale.nodes is not None:
            count = scale.nodes
        self.config = Config(
            lease_ttl_s=1.0,
            renew_interval_s=0.3,
            append_pipeline=rng.choice([1, 2, 3]),
            batch_max_records=rng.choice([10, 50, 2000]),
            submit_window=rng.choice([5, 50, 20_000]),
            infeasible_timeout_s=1e6,
            write_behind_delay_s=0.2,
            offload_min_ms=rng.choice([1.0, 50.0]),
            pipeline_depth=rng.choice([1, 4, 16]),
            max_replay_s=plan.max_replay_s,
        )
        self.driver_grace_s = 10_000.0
        self._draw_latencies()
        drivers = scale.drivers or rng.choice([1, 1, 2])
        self.programs: list[Program] = []
        self._make_programs(drivers, scale.operations)
        # What a task that runs again has let go may be gone for good: large results of actors.
        self.may_fail = self.faults.may_fail or any(p.flaky for p in self.programs)
        self.functions = [_function(number) for number in range(FUNCTIONS)]
        self.checks = Checks(self)
        self.storage: dict[str, bytes] = {}
        self.job_roots: dict[int, bytes] = {}
        self.database = Database(self)
        self.control = ControlShells(self, 2 if plan.standby else 1)
        self.operations = 0
        self._kills: dict[bytes, int] = {}
        self._cuts: dict[tuple[int, int], float] = {}
        self.nodes = [self._node(slot, count) for slot in range(count)]
        self.drivers = [
            SimDriver(self, site, f"job{site}" if plan.named_jobs else "")
            for site in self._driver_sites
        ]
        self._done = 0

    def _draw_latencies(self) -> None:
        rng = self.world.rng
        slow = "slow_links" in self.faults.plan.enabled
        self._latency_ms = rng.choice([5.0, 40.0]) if slow else 0.5
        commits = "slow_commits" in self.faults.plan.enabled
        self._database_ms = rng.choice([20.0, 150.0]) if commits else 1.0

    def _make_programs(self, drivers: int, operations: int) -> None:
        rng = self.world.rng
        profile = Profile(
            large=rng.choice([0.0, 0.2, 0.6]),
            actors=rng.choice([0, 1, 2]),
            depth=rng.choice([1, 2, 3]),
            refs=rng.choice([0.0, 0.3, 0.6]),
            compute_ms=rng.choice([0.5, 5.0, 20.0]),
        )
        self._driver_sites = []
        maker = ProgramMaker(rng, profile, self.programs)
        for _ in range(drivers):
            self._driver_sites.append(maker.driver(operations // 2 // drivers).site)
        self.golden = Evaluation(self.programs)
        for site in self._driver_sites:
            self.golden.run(site, [], [])

    def _node(self, slot: int, count: int) -> NodeShell:
        rng = self.world.rng
        total: Resources = {"CPU": rng.choice([1, 2, 2, 4]) * 10_000}
        if slot == count - 1 or rng.random() < 0.3:
            total["special"] = 10_000
        arena = rng.choice([400_000, 1_500_000, 50_000_000])
        return NodeShell(self, slot, total, arena)

    # --- running ----------------------------------------------------------------------------------

    def run(self) -> None:
        """To the end. Raises SafetyViolation, LivenessViolation or what a core raised."""
        world = self.world
        self.control.start()
        for node in self.nodes:
            world.after(world.rng.uniform(0, 20), node.start)
        for driver in self.drivers:
            world.after(world.rng.uniform(20, 100), driver.connect)
        self.faults.start()
        world.after(FAULTS_MS, self._stop_faults)
        self._until(lambda: self._done == len(self.drivers), LIVENESS_MS, self._unfinished)
        self._stop_faults()
        self._until(self._settled, world.now + LIVENESS_MS, self._not_settled)
        for driver in self.drivers:
            driver.leave()
        self._until(lambda: not self.checks.at_rest(), world.now + 30_000.0, self.checks.at_rest)

    def _until(self, done: Callable[[], bool], limit_ms: float, why: Callable[[], str]) -> None:
        """Runs on; what ``done`` tests changes slowly, so it is asked now and then."""
        world = self.world
        while not done():
            for _ in range(50):
                if not world.step():
                    raise LivenessViolation("nothing happens any more")
            if world.now > limit_ms or world.steps > STEPS_MAX:
                raise LivenessViolation(f"{why()} ({world.now / 1000:.1f} s)")

    def driver_done(self, driver: SimDriver) -> None:
        """Its program is over."""
        self._done += 1

    def _unfinished(self) -> str:
        waiting = [d.status() for d in self.drivers if d.frame.waits != ("end",)]
        return "; ".join(waiting)

    def _settled(self) -> bool:
        """Every submitted task has ended, in the log, but for those that wait for what no driver
        submits any more; nothing is held by the programs."""
        left = self.database.store.unfinished
        if left and not all(self.checks.waits_in_vain(task_id) for task_id in left):
            return False
        return all(
            node.core is not None and all(task_id in left for task_id in node.core.tasks.tasks)
            for node in self.nodes
        )

    def _not_settled(self) -> str:
        return self.checks.at_rest()

    def _stop_faults(self) -> None:
        """Everything heals."""
        if not self.faults.active:
            return
        self.world.trace("world", "faults stop")
        self.faults.stop()
        self.database.start()
        self.control.start()
        for node in self.nodes:
            node.resume()
            node.start()
        self._cuts.clear()

    # --- time -------------------------------------------------------------------------------------

    def latency(self) -> float:
        """Of a message between processes, milliseconds."""
        return self.world.rng.random() * (self._latency_ms if self.faults.active else 0.5) + 0.05

    def local_ms(self) -> float:
        return self.world.rng.random() * 0.2 + 0.02

    def database_ms(self) -> float:
        return self.world.rng.random() * (self._database_ms if self.faults.active else 1.0) + 0.2

    def disk_ms(self) -> float:
        return self.world.rng.random() * 5.0 + 0.1

    def start_ms(self) -> float:
        return self.world.rng.random() * 10.0 + 1.0

    # --- what shells ask each other ---------------------------------------------------------------

    def content_ids(self, job: int, parent_id: bytes) -> ContentIds:
        return self.mutation.content_ids(self.job_roots[job], parent_id)

    def find(self, node_id: int, incarnation: int) -> NodeShell | None:
        """The node whose process is this incarnation."""
        for node in self.nodes:
            if node.up and (node.node_id, node.incarnation) == (node_id, incarnation):
                return node
        return None

    def lives(self, node_id: int, incarnation: int) -> bool:
        return self.find(node_id, incarnation) is not None

    def probe(self, node_id: int, incarnation: int) -> str:
        node = self.find(node_id, incarnation)
        if node is None:
            return REFUSED
        return SILENT if node.paused else ANSWERED

    def to_peer(
        self, sender: int, sender_incarnation: int, node_id: int, incarnation: int,
        message: PeerMessage,
    ) -> None:  # fmt: skip
        """A message arrives at a peer, if that still is the same incarnation."""
        node = self.find(node_id, incarnation)
        if node is not None:
            node.run(node.life, node.peer_said, sender, sender_incarnation, message)

    def fetch(
        self, asker: NodeShell, life: int, node_id: int, incarnation: int, effect: events.FetchBytes
    ) -> None:
        """A request for bytes arrives."""
        node = self.find(node_id, incarnation)

        def answer(data: bytes | None) -> None:
            self.world.after(self.latency(), asker.bytes.fetch_ended, life, effect, data)

        if node is None or node.paused:
            answer(None)
            return
        node.bytes.asked(asker.node_id, effect.key[0], answer)

    def node_is_down(self, node: NodeShell) -> None:
        """Its connections are reset."""
        for other in self.nodes:
            if other is not node and other.up:
                other.schedule(
                    other.life, self.latency(), other.peers.reset, node.node_id, node.incarnation
                )

    def cut_until(self, slot: int, node_id: int) -> float:
        """Until when nothing gets from this node to that one; 0: it does."""
        for other in self.nodes:
            if other.node_id == node_id:
                until = self._cuts.get((slot, other.slot), 0.0)
                return until if until > self.world.now else 0.0
        return 0.0

    # --- faults -----------------------------------------------------------------------------------

    # Each returns whether there was something to strike.

    def _some_node(self) -> NodeShell:
        return self.world.rng.choice(self.nodes)

    def fault_cut_links(self) -> bool:
        rng = self.world.rng
        a, b = rng.randrange(len(self.nodes)), rng.randrange(len(self.nodes))
        until = self.world.now + rng.choice([20.0, 200.0, 2_000.0])
        self._cuts[a, b] = self._cuts[b, a] = until
        return a != b

    def fault_node_crash(self) -> bool:
        rng = self.world.rng
        node = self._some_node()
        struck = node.crash()
        self.world.after(rng.choice([5.0, 50.0, 3_000.0]), node.start)
        return struck

    def fault_node_pause(self) -> bool:
        rng = self.world.rng
        node = self._some_node()
        struck = node.pause()
        self.world.after(rng.choice([50.0, 800.0, 2_500.0]), node.resume)
        return struck

    def fault_worker_crash(self) -> bool:
        """A worker dies, unless its tasks would be failed for having killed too many."""
        node = self._some_node()
        if node.paused or not node.workers:
            return False
        worker = self.world.rng.choice(list(node.workers.values()))
        ids = [worker.frame.task_id] if worker.frame is not None else []
        ids += [self.task_id_of(run) for run in worker.queue]
        core = node.core
        view = core.pool.workers.get(worker.worker) if core is not None else None
        if view is not None:
            ids += list(view.in_flight)
        elif core is not None:  # it is being welcomed, and may be given any of these meanwhile
            ids += list(core.tasks.tasks)
        most = self.config.worker_kills_max - 1
        if any(self._kills.get(task_id, 0) >= most for task_id in ids):
            return False
        for task_id in dict.fromkeys(ids):
            self._kills[task_id] = self._kills.get(task_id, 0) + 1
        self.world.trace(worker.name, "is killed")
        node.worker_dies(worker)
        return True

    @staticmethod
    def task_id_of(run: RunTask) -> bytes:
        return header_decoder.decode(run.spec).task_id

    def fault_gcs_crash(self) -> bool:
        shell = self.control.some()
        struck = shell.crash()
        self.world.after(self.world.rng.choice([5.0, 300.0, 2_000.0]), shell.start)
        return struck

    def fault_gcs_pause(self) -> bool:
        shell = self.control.some()
        struck = shell.pause()
        self.world.after(self.world.rng.choice([50.0, 600.0, 2_500.0]), shell.resume)
        return struck

    def fault_session_break(self) -> bool:
        node = self._some_node()
        if node.session_with is None:
            return False
        node.session_with.break_session(node)
        return True

    def fault_log_break(self) -> bool:
        return self._some_node().log.break_off()

    def fault_postgres_stop(self) -> bool:
        struck = self.database.stop()
        self.world.after(self.world.rng.choice([20.0, 500.0, 2_000.0]), self.database.start)
        return struck

    def fault_driver_kill(self) -> bool:
        """SIGKILL of a driver with a named job: the same program is run again, a while later."""
        rng = self.world.rng
        driver = rng.choice(self.drivers)
        if not driver.job_name or driver.frame.waits == ("end",):
            return False
        driver.kill()
        for node in self.nodes:
            node.driver_died(driver)
        successor = SimDriver(self, driver.site, driver.job_name)
        self.drivers[self.drivers.index(driver)] = successor
        self.world.after(rng.choice([1.0, 50.0, 1_000.0]), successor.connect)
        return True

    def fault_driver_break(self) -> bool:
        driver = self.world.rng.choice(self.drivers)
        if driver.node is None or driver.welcome is None or driver.finished:
            return False
        driver.node.break_client(driver)
        return True


def _function(number: int) -> FunctionDef:
    pickled = f"function {number}".encode()
    return FunctionDef(function_id(pickled), f"f{number}", pickled)
