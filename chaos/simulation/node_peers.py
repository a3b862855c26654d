"""A simulated node's links to its peers, on which nothing is lost between two that live."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow.chaos.simulation.world import Pipe
from regrow.messages import NodeView, PeerMessage
from regrow.scheduler import events
from regrow.scheduler.incarnations import Incarnations

if TYPE_CHECKING:
    from regrow.chaos.simulation.node import NodeShell


class NodePeers:
    """Of one life; what ``regrow.scheduler.peers`` does."""

    def __init__(self, node: NodeShell) -> None:
        self._node = node
        self._incarnations = Incarnations()
        self._links: dict[int, tuple[NodeView, Pipe]] = {}

    def view(self, node_id: int) -> NodeView | None:
        return self._incarnations.view(node_id)

    def told(self, views: list[NodeView]) -> None:
        """Of all members, by the control store."""
        self._incarnations.told(views)
        self._end_stale()
        for node_id, message in self._incarnations.take_kept():
            self.send(node_id, message)

    def died(self, node_id: int, incarnation: int) -> None:
        self._incarnations.died(node_id, incarnation)
        self._end_stale()

    def called(self, node_id: int, incarnation: int) -> None:
        """A peer says something."""
        if self._incarnations.called(node_id, incarnation):
            self._end_stale()

    def _end_stale(self) -> None:
        for node_id, (view, pipe) in list(self._links.items()):
            if not self._incarnations.is_current(node_id, view.incarnation):
                del self._links[node_id]
                self._perhaps_cut(pipe)

    def end(self) -> None:
        """The process is gone; what it had sent may arrive all the same."""
        for _, pipe in self._links.values():
            self._perhaps_cut(pipe)

    def _perhaps_cut(self, pipe: Pipe) -> None:
        if self._node.world.rng.random() < 0.5:
            pipe.cut()

    def send(self, node_id: int, message: PeerMessage) -> None:
        node = self._node
        link = self._links.get(node_id)
        if link is None:
            view = self._incarnations.view(node_id)
            if view is None:
                self._incarnations.keep(node_id, message)
                return
            link = self._links[node_id] = view, Pipe(node.world, node.cluster.latency)
            self._dial(node.life, view)
        view, pipe = link
        until = node.cluster.cut_until(node.slot, node_id)
        if until:
            pipe.hold_until(until)
        pipe.send(
            node.cluster.to_peer, node.node_id, node.incarnation, view.node_id, view.incarnation,
            message,
        )  # fmt: skip

    def _dial(self, life: int, view: NodeView) -> None:
        """As long as there is a link to a peer that is gone, dialling it is refused."""
        node = self._node
        link = self._links.get(view.node_id)
        if life != node.life or link is None or link[0] is not view:
            return
        if not node.cluster.lives(view.node_id, view.incarnation):
            node.handle(events.PeerLost(view.node_id, view.incarnation, refused=True))
            link[1].hold_until(node.world.now + 200.0)  # it is kept until somebody takes it
            node.schedule(life, 200.0, self._dial, life, view)

    def reset(self, node_id: int, incarnation: int) -> None:
        """A connection was reset."""
        link = self._links.get(node_id)
        if link is not None and link[0].incarnation == incarnation:
            self._dial(self._node.life, link[0])
