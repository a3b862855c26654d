"""On which node a task should run: a pure function of what this node knows.

Bottom-up, as in the Ray paper (OSDI'18, section 4.2.2): here if here has room, else at the peer
that has the most bytes of the arguments, then the most free resources.  Whoever calls has the last
word: the answer may be old by the time the task arrives, and is only ever a matter of speed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regrow.messages import NodeView
from regrow.scheduler.ledger import Shape

#: Arguments that are elsewhere weigh as much as this many bytes before they draw a task away.
LOCALITY_MIN_BYTES = 1024 * 1024


def fits(shape: Shape, resources: Mapping[str, int]) -> bool:
    """Whether ``resources`` cover ``shape``."""
    return all(resources.get(name, 0) >= amount for name, amount in shape)


def feasible(shape: Shape, nodes: Sequence[NodeView]) -> list[NodeView]:
    """The nodes that could run ``shape`` when idle."""
    return [node for node in nodes if node.alive and fits(shape, node.total)]


def choose(
    shape: Shape,
    strategy: str,
    here: int,
    nodes: Sequence[NodeView],
    local_room: bool,
    bytes_at: Mapping[int, int],
    turn: int = 0,
) -> int | None:
    """The node for a task that needs ``shape``; None if no living node could ever run it.

    ``nodes`` are those alive, this one included; ``local_room`` tells whether it could start here
    now; ``bytes_at`` how many bytes of its large arguments each node has; ``turn`` counts the tasks
    that were spread, which take turns: what is known of loads is older than the last of them.
    """
    candidates = feasible(shape, nodes)
    staying = [node for node in candidates if not node.draining]
    if strategy.startswith("node:"):
        wanted, _, soft = strategy[5:].partition(":")
        for node in candidates:
            if str(node.node_id) == wanted:  # what is no number names no node
                return node.node_id
        if soft != "soft":
            return None
    candidates = staying or candidates
    if not candidates:
        return None
    local_feasible = any(node.node_id == here for node in candidates)
    if strategy == "SPREAD":
        return sorted(node.node_id for node in candidates)[turn % len(candidates)]
    best = max(bytes_at.values(), default=0)
    near = bytes_at.get(here, 0)
    drawn_away = best - near >= LOCALITY_MIN_BYTES
    if local_feasible and local_room and not drawn_away:
        return here
    free = [node for node in candidates if node.node_id != here and fits(shape, node.available)]
    if free:
        return max(
            free, key=lambda n: (bytes_at.get(n.node_id, 0), -_load(n), -n.queued, -n.node_id)
        ).node_id
    if local_feasible:
        return here
    return min(candidates, key=lambda n: (n.queued, _load(n), n.node_id)).node_id


def _load(node: NodeView) -> float:
    """The used part of a node's most used resource, 0 to 1."""
    return max(
        (1 - node.available.get(name, 0) / total for name, total in node.total.items() if total),
        default=0.0,
    )
