"""Ways between nodes, and to the control store, that are cut, broken or slow.

Inside the processes, by `regrow.failpoints`: each looks before it sends. A way has a direction; a
partition of one direction only is a fault of its own. What breaks loses what was under way: the
request if it breaks on the way there, the answer on the way back, after which it is sent again.
"""

from __future__ import annotations

import random
from typing import ClassVar, Literal

import msgspec

from regrow.chaos.nemeses.nemesis import Nemesis
from regrow.chaos.stage import Stage
from regrow.failpoints import CUT, GCS, RESET


class _Ways(Nemesis):
    """Writes what is wrong into the file that the processes read."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._lines: list[str] = []

    def _say(self, stage: Stage, lines: list[str]) -> None:
        """Replace the lines of this nemesis; those of others stay."""
        path = stage.failpoints / "links"
        said = path.read_text().splitlines() if path.exists() else []
        for line in self._lines:
            said.remove(line)
        self._lines = lines
        unfinished = path.with_suffix(".new")
        unfinished.write_text("".join(f"{line}\n" for line in [*said, *lines]))
        unfinished.replace(path)

    def heal(self, stage: Stage) -> None:
        if self._lines:
            self._say(stage, [])


class CutLinks(_Ways):
    """A partition: of two nodes, or of a node and the control store, in one direction or both."""

    name: ClassVar[str] = "cut_links"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """What is cut off from a node: "node", "gcs", "all" (everything), or "any" of these."""

        what: Literal["node", "gcs", "all", "any"] = "any"
        #: None: drawn.
        one_way: bool | None = None

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = [str(node.node_id) for node in stage.nodes()]
        if self._lines or len(nodes) < 2:
            return ""
        what = self.options.what
        if what == "any":
            what = rng.choice(["node", "gcs", "all"])
        one = rng.choice(nodes)
        other = {
            "node": rng.choice([node for node in nodes if node != one]), "gcs": GCS, "all": "*"
        }[what]  # fmt: skip
        one_way = self.options.one_way
        if one_way is None:
            one_way = rng.random() < 0.5
        there, back = f"{one} {other} {CUT}", f"{other} {one} {CUT}"
        if one_way:
            self._say(stage, [rng.choice([there, back])])
        else:
            self._say(stage, [there, back])
        return "; ".join(self._lines)


class BreakLinks(_Ways):
    """Connections break wherever something is sent: requests and answers are lost, and sent anew.

    In one direction requests are lost; in the other their acknowledgements, so they come twice.
    """

    name: ClassVar[str] = "break_links"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = [str(node.node_id) for node in stage.nodes()]
        if self._lines or not nodes:
            return ""
        one, other = rng.choice(nodes), rng.choice([GCS, *nodes])
        self._say(stage, [rng.choice([f"{one} {other} {RESET}", f"{other} {one} {RESET}"])])
        return self._lines[0]


class SlowLinks(_Ways):
    """Everything that is sent waits a while; what is sent by different ways changes its order."""

    name: ClassVar[str] = "slow_links"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Seconds, at most."""

        delay_s: float = 0.3

    def inject(self, stage: Stage, rng: random.Random) -> str:
        nodes = [str(node.node_id) for node in stage.nodes()]
        if self._lines:
            return ""
        ends = [GCS, *nodes]
        self._say(
            stage,
            [
                f"{a} {b} {rng.uniform(0, self.options.delay_s):.3f}"
                for a in ends
                for b in ends
                if a != b
            ],
        )
        return f"{len(self._lines)} ways"


class NetworkPartition(Nemesis):
    """As ``cut_links``, in the kernel: packets from one address to another are dropped."""

    name: ClassVar[str] = "network_partition"
    needs_namespaces: ClassVar[bool] = True

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """None: drawn."""

        one_way: bool | None = None

    def inject(self, stage: Stage, rng: random.Random) -> str:
        addresses = {stage.addresses[node.pid]: node.node_id for node in stage.nodes()}
        network = stage.network
        assert network is not None, "the scenario has namespaces"
        if len(addresses) < 2:
            return ""
        one, other = rng.sample(sorted(addresses), 2)
        one_way = rng.random() < 0.5 if self.options.one_way is None else self.options.one_way
        network.cut(one, other)
        if not one_way:
            network.cut(other, one)
        names = [str(addresses[address]) for address in (one, other)]
        if network.bridge in (one, other):
            names[(one, other).index(network.bridge)] += " and the control store"
        return f"node {names[0]} {'->' if one_way else '<->'} node {names[1]}"

    def heal(self, stage: Stage) -> None:
        if stage.network is not None:
            stage.network.mend()


class BlackOut(_Ways):
    """Nothing gets anywhere."""

    name: ClassVar[str] = "black_out"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._lines:
            return ""
        self._say(stage, [f"* * {CUT}"])
        return "every way"
