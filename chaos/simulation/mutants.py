"""Seeded bugs: what the checks have to find. Reachable only from here, by subclassing."""

from __future__ import annotations

from collections.abc import Callable

from regrow.chaos.sim_store import SimStore
from regrow.config import Config
from regrow.gcs.core import Core as ControlCore
from regrow.gcs.core_events import Settings
from regrow.ids import ContentIds
from regrow.objectstore.core import StoreCore
from regrow.objectstore.effects import ObjectKey
from regrow.scheduler.core import Core, NodeSettings


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


MUTANTS: dict[str, type[Mutation]] = {}
