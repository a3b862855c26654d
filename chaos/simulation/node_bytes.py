"""A simulated node's memory and disks, and the bytes that go between nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from regrow.messages import Location
from regrow.objectstore.effects import DeleteFile, ObjectKey, Restore
from regrow.objectstore.layout import digest as digest_of
from regrow.scheduler import events

if TYPE_CHECKING:
    from regrow.chaos.simulation.node import NodeShell


class NodeBytes:
    """Of one life; what ``regrow.scheduler.bytes`` does."""

    def __init__(self, node: NodeShell) -> None:
        self._node = node
        self.memory: dict[int, tuple[ObjectKey, bytes]] = {}
        self.files: dict[ObjectKey, bytes] = {}
        self.spilled: dict[ObjectKey, bytes] = {}
        self._fetches = 0
        self._serving: dict[int, Callable[[events.ServeBytes], None]] = {}
        self._askers: dict[int, Callable[[bytes | None], None]] = {}

    def end(self) -> None:
        """The process is gone: who asked for bytes gets none."""
        for answer in self._askers.values():
            answer(None)

    # --- effects ----------------------------------------------------------------------------------

    def make_file(self, key: ObjectKey) -> None:
        self.files[key] = b""

    def delete(self, effect: events.DeleteBytes) -> None:
        what = effect.what
        (self.files if isinstance(what, DeleteFile) else self.spilled).pop(what.key, None)

    def serve(self, effect: events.ServeBytes) -> None:
        self._serving.pop(effect.number)(effect)

    # --- clients ----------------------------------------------------------------------------------

    def write(self, location: Location, data: bytes) -> None:
        """A client writes an object into its room."""
        key = (location.object_id, location.attempt)
        self._write(key, -1 if location.path else location.offset, data)

    def _write(self, key: ObjectKey, offset: int, data: bytes) -> None:
        if offset < 0:
            self.files[key] = data
        else:
            self.memory[offset] = key, data

    def read(self, location: Location) -> bytes:
        """What a client finds where it was told to look."""
        key = (location.object_id, location.attempt)
        return self._read(key, -1 if location.path else location.offset)

    def _read(self, key: ObjectKey, offset: int) -> bytes:
        require = self._node.cluster.checks.require
        if offset < 0:
            require(key in self.files, "a file that is not there was read")
            return self.files[key]
        found = self.memory.get(offset)
        require(
            found is not None and found[0] == key,
            f"{self._node.name}: {key[0].hex()} is not where it was said to be",
        )
        assert found is not None
        return found[1]

    # --- between nodes ----------------------------------------------------------------------------

    def fetch(self, effect: events.FetchBytes) -> None:
        node = self._node
        self._fetches += 1
        view = node.peers.view(effect.node_id)
        delay = node.cluster.latency()
        if view is None:
            node.schedule(node.life, delay, self._fetched, effect, None)
            return
        until = node.cluster.cut_until(node.slot, view.node_id)
        node.world.at(
            max(node.world.now + delay, until),
            node.cluster.fetch, node, node.life, view.node_id, view.incarnation, effect,
        )  # fmt: skip

    def asked(self, asker: int, object_id: bytes, answer: Callable[[bytes | None], None]) -> None:
        """A peer wants bytes."""
        node = self._node
        self._fetches += 1
        number, life = self._fetches, node.life
        self._askers[number] = answer

        def served(effect: events.ServeBytes) -> None:
            del self._askers[number]
            if effect.offset == -2:
                answer(None)
                return
            data = self._read(effect.key, effect.offset)
            node.cluster.checks.left_bytes(node, object_id, data)
            answer(data)
            node.schedule(life, node.cluster.latency(), node.handle, events.BytesServed(number))

        self._serving[number] = served
        node.handle(events.FetchAsked(number, asker, object_id))

    def fetch_ended(self, life: int, effect: events.FetchBytes, data: bytes | None) -> None:
        """The peer answered, or died."""
        self._node.run(life, self._fetched, effect, data)

    def _fetched(self, effect: events.FetchBytes, data: bytes | None) -> None:
        ok = data is not None and (not effect.digest or digest_of(data) == effect.digest)
        if data is not None:
            self._write(effect.key, effect.offset, data)
        digest = digest_of(data) if ok and data is not None else b""
        self._node.handle(events.Fetched(effect.key, ok, "", digest))

    # --- disks ------------------------------------------------------------------------------------

    def on_disk(
        self,
        effect: events.LoadBytes | events.StoreBytes | events.SpillBytes | events.RestoreBytes,
    ) -> None:
        """Carried out after some time."""
        node = self._node
        match effect:
            case events.LoadBytes():
                act: Callable[..., None] = self._load
            case events.StoreBytes():
                act = self._store
            case events.SpillBytes():
                act = self._spill
            case events.RestoreBytes():
                act = self._restore
        node.schedule(node.life, node.cluster.disk_ms(), act, effect)

    def _load(self, effect: events.LoadBytes) -> None:
        data = self._node.cluster.storage.get(effect.path)
        ok = data is not None and digest_of(data) == effect.digest
        if ok and data is not None:
            self._write(effect.key, effect.offset, data)
        self._node.handle(events.Fetched(effect.key, ok))

    def _store(self, effect: events.StoreBytes) -> None:
        if self._node.cluster.faults.happens("storage_fails"):
            refused = events.Stored(effect.key[0], "", "storage", "it is not there")
            self._node.handle(refused)
            return
        path = f"storage/{effect.key[0].hex()}"
        self._node.cluster.storage[path] = self._read(effect.key, effect.offset)
        self._node.handle(events.Stored(effect.key[0], path))

    def _spill(self, effect: events.SpillBytes) -> None:
        spill = effect.spill
        ok = not self._node.cluster.faults.happens("spill_fails")
        if ok:
            self.spilled[spill.key] = self._read(spill.key, spill.offset)
        self._node.handle(events.Spilled(spill.key, ok))

    def _restore(self, effect: events.RestoreBytes) -> None:
        restore = effect.restore
        data = self.spilled.get(restore.key)
        ok = data is not None and not self._node.cluster.faults.happens("spill_fails")
        if ok and data is not None:
            offset = restore.offset if isinstance(restore, Restore) else -1
            self._write(restore.key, offset, data)
        self._node.handle(events.Restored(restore.key, ok))
