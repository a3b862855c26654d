"""All of a simulation: nodes, control store, database, drivers; and what faults do to them."""

from __future__ import annotations

import random
from collections.abc import Callable

from msgspec import Struct

from regrow.chaos.simulation.checks import Checks
from regrow.chaos.simulation.clients import FUNCTIONS
from regrow.chaos.simulation.control import ControlShells, Database
from regrow.chaos.simulation.drivers import SimDriver
from regrow.chaos.simulation.faults import FAULTS_MS, Faults, Plan, draw
from regrow.chaos.simulation.mutants import Mutation
from regrow.chaos.simulation.node import NodeShell
from regrow.chaos.simulation.programs import Evaluation, Profile, Program, ProgramMaker
from regrow.chaos.simulation.world import LivenessViolation, World
from regrow.config import Config
from regrow.gcs.core_events import ANSWERED, REFUSED, SILENT
from regrow.ids import ContentIds, function_id
from regrow.messages import FunctionDef, PeerMessage, Resources
from regrow.scheduler import events

#: After so much virtual time, milliseconds, everything has to be done.
LIVENESS_MS = 60_000.0
#: More steps than that are a livelock.
STEPS_MAX = 150_000
#: One more that has nothing to do is good for so many.
STEPS_OF_A_NODE = 1_000


class Scale(Struct):
    """Overrides for what a seed draws; None: drawn. What ``shrink`` leaves of a seed is one."""

    nodes: int | None = None
    drivers: int | None = None
    operations: int = 200
    #: These kinds of faults, and no others.
    faults: list[str] | None = None
    #: Kinds that are left out of those that were drawn.
    without: list[str] = []
    #: Which of the faults that strike do, by their place in the plan.
    strikes: list[int] | None = None
    #: Which steps of each driver's program are left, by their place.
    steps: list[list[int]] | None = None
    #: Another course of the same: when messages arrive, and what programs find first.
    course: int = 0
    #: Invariants of the cores are checked after so many steps of one.
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
        self.world = World(seed, scale.course, show, coarse=scale.check_every > 1)
        self.mutation = mutation or Mutation()
        self.check_every = scale.check_every
        self.faults = Faults(self, _plan(seed, scale))
        # Each part of a seed is drawn apart, so that one can be changed and the others stay.
        rng = random.Random(f"cluster {seed}")
        count, drivers = rng.choice([1, 2, 2, 3, 3, 3, 4, 4, 5, 5]), rng.choice([1, 1, 2])
        count, drivers = scale.nodes or count, scale.drivers or drivers
        self.config = self._draw_config(rng)
        self.driver_grace_s = 10_000.0
        self._draw_latencies(rng)
        self.programs: list[Program] = []
        self.driver_sites: list[int] = []
        self._make_programs(drivers, scale)
        # What a task that runs again has let go may be gone for good: large results of actors.
        self.may_fail = self.faults.may_fail or any(p.flaky for p in self.programs)
        self.functions = [_function(number) for number in range(FUNCTIONS)]
        self.checks = Checks(self)
        self.storage: dict[str, bytes] = {}
        self.job_roots: dict[int, bytes] = {}
        self.database = Database(self)
        self.control = ControlShells(self, 2 if self.faults.plan.standby else 1)
        self.operations = 0
        self._cuts: dict[tuple[int, int], float] = {}
        self.nodes = [self._node(slot, count) for slot in range(count)]
        named = self.faults.plan.named_jobs
        self.drivers = [
            SimDriver(self, site, f"job{site}" if named else "") for site in self.driver_sites
        ]
        self._done = 0
        self._steps_max = STEPS_MAX + count * STEPS_OF_A_NODE

    def _draw_config(self, rng: random.Random) -> Config:
        return Config(
            lease_ttl_s=1.0,
            renew_interval_s=0.3,
            append_pipeline=rng.choice([1, 2, 3]),
            batch_max_records=rng.choice([10, 50, 2000]),
            submit_window=rng.choice([5, 50, 20_000]),
            infeasible_timeout_s=1e6,
            write_behind_delay_s=0.2,
            offload_min_ms=rng.choice([1.0, 50.0]),
            pipeline_depth=rng.choice([1, 4, 16]),
            max_replay_s=self.faults.plan.max_replay_s,
        )

    def _draw_latencies(self, rng: random.Random) -> None:
        slow, commits = rng.choice([5.0, 40.0]), rng.choice([20.0, 150.0])
        self._latency_ms = slow if "slow_links" in self.faults.plan.enabled else 0.5
        self._database_ms = commits if "slow_commits" in self.faults.plan.enabled else 1.0

    def _make_programs(self, drivers: int, scale: Scale) -> None:
        """Longer and longer ones, until there are enough operations."""
        length = scale.operations // 2
        while True:
            self.programs, self.driver_sites = [], []
            self._draw_programs(random.Random(f"programs {self.world.seed}"), drivers, length)
            self.golden = self._evaluate()
            if self.golden.operations >= scale.operations:
                break
            length += length // 4 + 1
        if scale.steps is not None:
            for site, kept in zip(self.driver_sites, scale.steps, strict=True):
                program = self.programs[site]
                program.steps = [program.steps[place] for place in kept]
            self.golden = self._evaluate()

    def _draw_programs(self, rng: random.Random, drivers: int, length: int) -> None:
        profile = Profile(
            large=rng.choice([0.0, 0.2, 0.6]),
            actors=rng.choice([0, 1, 2]),
            depth=rng.choice([1, 2, 3]),
            refs=rng.choice([0.0, 0.3, 0.6]),
            compute_ms=rng.choice([0.5, 5.0, 20.0]),
        )
        if self.faults.plan.harmless:
            profile.recoverable = 1.0  # another actor has nowhere to go when its node drains
        maker = ProgramMaker(rng, profile, self.programs)
        for _ in range(drivers):
            self.driver_sites.append(maker.driver(length // drivers).site)

    def _evaluate(self) -> Evaluation:
        golden = Evaluation(self.programs)
        for site in self.driver_sites:
            golden.run(site, [], [])
        return golden

    def _node(self, slot: int, count: int) -> NodeShell:
        rng = random.Random(f"node {slot} {self.world.seed}")
        total: Resources = {"CPU": rng.choice([1, 2, 2, 4]) * 10_000}
        if rng.random() < 0.3 or slot == count - 1:
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
            if world.now > limit_ms or world.steps > self._steps_max:
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

    def cut(self, slot: int, other: int, until_ms: float) -> None:
        """Until then nothing gets from one of these nodes to the other."""
        self._cuts[slot, other] = self._cuts[other, slot] = until_ms

    def cut_until(self, slot: int, node_id: int) -> float:
        """Until when nothing gets from this node to that one; 0: it does."""
        for other in self.nodes:
            if other.node_id == node_id:
                until = self._cuts.get((slot, other.slot), 0.0)
                return until if until > self.world.now else 0.0
        return 0.0


def _plan(seed: int, scale: Scale) -> Plan:
    plan = draw(seed, scale.faults)
    if scale.strikes is not None:
        plan.faults = [plan.faults[place] for place in scale.strikes]
    plan.enabled = [kind for kind in plan.enabled if kind not in scale.without]
    plan.faults = [fault for fault in plan.faults if fault.kind in plan.enabled]
    return plan


def _function(number: int) -> FunctionDef:
    pickled = f"function {number}".encode()
    return FunctionDef(function_id(pickled), f"f{number}", pickled)
