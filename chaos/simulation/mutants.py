"""Seeded bugs: what the checks have to find. Reachable only from here, by subclassing."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from msgspec.structs import replace

from regrow.chaos.sim_store import SimStore
from regrow.chaos.sim_tables import NodeKey, NodeRow, TaskRow
from regrow.config import Config
from regrow.gcs.core import Core as ControlCore
from regrow.gcs.core_events import Settings
from regrow.gcs.operations import ActorRestored, Append, AppendResult, Batch, Operation
from regrow.ids import TASK_ID_SIZE, ContentIds
from regrow.messages import Value
from regrow.objectstore.core import StoreCore
from regrow.objectstore.effects import ObjectKey
from regrow.scheduler.core import Core, NodeSettings
from regrow.scheduler.events import Effect
from regrow.scheduler.journal import Journal
from regrow.scheduler.ledger import Ledger, Shape


class Mutation:
    """The real thing: nothing is changed."""

    def core(
        self, settings: NodeSettings, config: Config, store: StoreCore,
        file_path: Callable[[ObjectKey], str],
    ) -> Core:  # fmt: skip
        return Core(settings, config, store, file_path)

    def control(self, settings: Settings) -> ControlCore:
        return ControlCore(settings)

    def store(self, now: Callable[[], float]) -> SimStore:
        return SimStore(now)

    def content_ids(self, job_root: bytes, parent_id: bytes) -> ContentIds:
        return ContentIds(job_root, parent_id)


class _UnfencedStore(SimStore):
    def judge(self, row: NodeRow | None, append: Append) -> str | None:
        if row is not None and not row.view.alive and row.last_batch == append.number - 1:
            return None
        return super().judge(row, append)


class FencingOff(Mutation):
    """Batches of an incarnation that was declared dead are applied all the same."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _UnfencedStore(now)


class _HastyJournal(Journal):
    def hold(self, effect: Effect) -> bool:
        return False

    def hold_value(self, client: int, value: Value) -> bool:
        return False


class OutputReleasedEarly(Mutation):
    """Results leave the node before their batch is committed."""

    def core(
        self, settings: NodeSettings, config: Config, store: StoreCore,
        file_path: Callable[[ObjectKey], str],
    ) -> Core:  # fmt: skip
        core = super().core(settings, config, store, file_path)
        core.journal = _HastyJournal(core.self_id)
        return core


class _ForgetfulStore(SimStore):
    def _reap(self, heirs: list[NodeKey], attempts: int) -> None:
        return


class HolderForgotten(Mutation):
    """A fence declares a node dead, but gives its unfinished tasks to nobody."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _ForgetfulStore(now)


class _RepeatingStore(SimStore):
    def judge(self, row: NodeRow | None, append: Append) -> str | None:
        if row is not None and row.view.alive and row.last_batch >= append.number:
            return None
        return super().judge(row, append)


class BatchAppliedTwice(Mutation):
    """A batch that is sent again, because its answer was lost, is applied again."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _RepeatingStore(now)


class _CountingIds(ContentIds):
    def __init__(self, job_root: bytes, parent_id: bytes) -> None:
        super().__init__(job_root, parent_id)
        self._key = job_root + parent_id
        self._count = 0

    def next_id(self, content: bytes) -> bytes:
        self._count += 1
        text = self._key + self._count.to_bytes(8, "big")
        return blake2b(text, digest_size=TASK_ID_SIZE).digest()


class IdReused(Mutation):
    """Ids count submissions instead of hashing what is called: a replay whose ``wait`` answers in
    another order gives one call the id of another."""

    def content_ids(self, job_root: bytes, parent_id: bytes) -> ContentIds:
        return _CountingIds(job_root, parent_id)


class _AmnesicStore(SimStore):
    def execute(self, op: Operation | Append) -> Any:
        result = super().execute(op)
        return replace(result, calls=[]) if isinstance(result, ActorRestored) else result


class CallsNotReplayed(Mutation):
    """An actor that is restored goes on from its checkpoint, or its constructor, alone."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _AmnesicStore(now)


class _DisorderlyStore(SimStore):
    def execute(self, op: Operation | Append) -> Any:
        result = super().execute(op)
        if not isinstance(result, ActorRestored):
            return result
        return replace(result, calls=result.calls[::-1])


class CallsReplayedInAnotherOrder(Mutation):
    """The calls of an actor run again in another order than the one in which they ran."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _DisorderlyStore(now)


class _HeadlongCheckpoints(SimStore):
    def _checkpoint(self, actor_id: bytes, seq: int, oid: bytes, custom: bool) -> None:
        super()._checkpoint(actor_id, seq + 1, oid, custom)


class CheckpointAhead(Mutation):
    """A saved state is taken for the state after the next call, which is then left out."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _HeadlongCheckpoints(now)


class _HeadlongTrimming(SimStore):
    def trimmable(self, actor_id: bytes) -> int:
        return max(self.checkpoints.get(actor_id, {}), default=-1) + 1


class TrimmedTooEarly(Mutation):
    """The first call after the newest state is trimmed too, with whatever states there are."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _HeadlongTrimming(now)


class _ForgetfulCheckpoints(SimStore):
    def execute(self, op: Operation | Append) -> Any:
        result = super().execute(op)
        return replace(result, checkpoint=b"") if isinstance(result, ActorRestored) else result


class CheckpointForgotten(Mutation):
    """A saved state is in the log, and its bytes are not: the actor begins anew, and only the calls
    after that state run again."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _ForgetfulCheckpoints(now)


class _StutteringStore(SimStore):
    def execute(self, op: Operation | Append) -> Any:
        result = super().execute(op)
        if not isinstance(result, ActorRestored) or not result.calls:
            return result
        return replace(result, calls=[result.calls[0], *result.calls])


class CallAppliedTwice(Mutation):
    """An actor that is restored executes one of its calls twice."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _StutteringStore(now)


class _SkippingStore(SimStore):
    def append(self, append: Append) -> AppendResult:
        if append.number % 7 == 0:
            append = replace(append, batch=Batch())
        return super().append(append)


class CommitSkipped(Mutation):
    """Now and then a batch is acknowledged, and nothing of it is in the log."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _SkippingStore(now)


class _LossyStore(SimStore):
    def put_task(self, task_id: bytes, row: TaskRow) -> None:
        if task_id in self.tasks or task_id[-1] % 16:
            super().put_task(task_id, row)


class LineageDropped(Mutation):
    """The log lacks the rows of some tasks."""

    def store(self, now: Callable[[], float]) -> SimStore:
        return _LossyStore(now)


class _LeakyLedger(Ledger):
    _released = 0

    def release(self, shape: Shape, gpus: list[int]) -> None:
        self._released += 1
        if self._released % 10:
            super().release(shape, gpus)


class ResourceLeaked(Mutation):
    """One task in ten keeps its CPU for ever."""

    def core(
        self, settings: NodeSettings, config: Config, store: StoreCore,
        file_path: Callable[[ObjectKey], str],
    ) -> Core:  # fmt: skip
        core = super().core(settings, config, store, file_path)
        core.ledger = _LeakyLedger(settings.total)
        return core


MUTANTS: dict[str, type[Mutation]] = {
    "fencing-off": FencingOff,
    "output-released-early": OutputReleasedEarly,
    "holder-forgotten": HolderForgotten,
    "batch-applied-twice": BatchAppliedTwice,
    "id-reused": IdReused,
    "calls-not-replayed": CallsNotReplayed,
    "calls-replayed-in-another-order": CallsReplayedInAnotherOrder,
    "checkpoint-ahead": CheckpointAhead,
    "trimmed-too-early": TrimmedTooEarly,
    "checkpoint-forgotten": CheckpointForgotten,
    "call-applied-twice": CallAppliedTwice,
    "commit-skipped": CommitSkipped,
    "lineage-dropped": LineageDropped,
    "resource-leaked": ResourceLeaked,
}
