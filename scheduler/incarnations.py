"""Which incarnation of each peer a node speaks to, from what it was told and who called.

Decides whether a message to a node can go, has to wait, or is for nobody, and whether a link to an
incarnation is still of use. The control store tells of members and deaths; a peer that came back
may call before the control store tells of it. Does no I/O: who has the links asks, and ends those
that are not current any more.
"""

from __future__ import annotations

from regrow.messages import NodeView, PeerMessage


class Incarnations:
    """See the module. A node's incarnations are numbered; a higher one is newer."""

    def __init__(self) -> None:
        self._views: dict[int, NodeView] = {}
        #: For nodes that the control store has not told of yet.
        self._waiting: dict[int, list[PeerMessage]] = {}
        #: The newest incarnations that are known to be dead.
        self._dead: dict[int, int] = {}
        #: The newest incarnations that called.
        self._heard: dict[int, int] = {}

    def view(self, node_id: int) -> NodeView | None:
        """The incarnation that can be called; None: there is none, or none that is known."""
        return self._views.get(node_id)

    def is_current(self, node_id: int, incarnation: int) -> bool:
        """Whether a link to this incarnation is still of use."""
        view = self._views.get(node_id)
        return view is not None and view.incarnation == incarnation

    def is_gone(self, node_id: int) -> bool:
        """Whether the node is dead and has not come back."""
        return self._dead.get(node_id, 0) >= max(1, self._heard.get(node_id, 0))

    def told(self, views: list[NodeView]) -> None:
        """All members, as the control store knows them: older news than a call may be."""
        heard = self._heard
        self._views = {
            view.node_id: view
            for view in views
            if view.alive and view.incarnation >= heard.get(view.node_id, 0)
        }
        for view in views:
            if not view.alive:
                self._dead[view.node_id] = view.incarnation
                if self.is_gone(view.node_id):
                    self._waiting.pop(view.node_id, None)

    def died(self, node_id: int, incarnation: int) -> None:
        """The control store tells that this one is dead."""
        if self.is_current(node_id, incarnation):
            del self._views[node_id]
            self._dead[node_id] = incarnation

    def called(self, node_id: int, incarnation: int) -> bool:
        """A peer calls; whether it is newer than all that is known of the node.

        What goes to the node waits then until the control store tells of it, and does not go to
        the incarnation before.
        """
        if incarnation <= self._heard.get(node_id, 0):
            return False
        self._heard[node_id] = incarnation
        view = self._views.get(node_id)
        if view is None or view.incarnation >= incarnation:
            return False
        del self._views[node_id]
        return True

    def keep(self, node_id: int, message: PeerMessage) -> None:
        """For a node without a view: until it has one. For one that is dead, nothing is kept:
        whoever waits is told of the death."""
        if not self.is_gone(node_id):
            self._waiting.setdefault(node_id, []).append(message)

    def take_kept(self) -> list[tuple[int, PeerMessage]]:
        """What can go now, in the order in which it was kept."""
        ready = [node_id for node_id in self._waiting if node_id in self._views]
        return [(node_id, message) for node_id in ready for message in self._waiting.pop(node_id)]
