"""Settings, all in one place: defaults, and ``REGROW_*`` variables that override them.

Read once per process with ``Config.from_environment()``; passed on, never looked up globally.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

#: Results and puts up to this size (bytes, serialized) are kept in the log itself.
INLINE_MAX: Final = 8 * 1024
#: Arguments over this size (bytes, serialized) become objects of their own.
ARGUMENT_MAX: Final = 64 * 1024
#: Resources are counted in ten-thousandths, so that fractions add up exactly.
RESOURCE_UNIT: Final = 10_000
#: A node's arena has so many bytes at least.
OBJECT_STORE_MIN: Final = 16 << 20


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds (``_s``) or milliseconds (``_ms``), sizes in bytes."""

    #: A node that has not renewed its lease for so long is fenced.
    lease_ttl_s: float = 3.0
    #: An idle node appends an empty batch this often, which renews its lease.
    renew_interval_s: float = 1.0
    #: Records nobody waits for are flushed when the oldest is this old.
    flush_interval_ms: float = 5.0
    #: Appends in flight at once on a node's log.
    append_pipeline: int = 2
    #: Records in one append at most.
    batch_max_records: int = 2000
    #: Short tasks queued behind the running one on a worker at most.
    pipeline_depth: int = 16
    #: A function whose runs take longer (mean, milliseconds) is never pipelined.
    pipeline_task_max_ms: float = 5.0
    #: Submissions of one client that may wait for their commit.
    submit_window: int = 20_000
    #: Arena size; 0 means 30 % of the memory of the machine, as in Ray.
    object_store_memory: int = 0
    #: Spilled bytes of one node at most; 0 means what the disk has.
    spill_capacity: int = 0
    #: How long a driver looks for another node after its own died.
    reconnect_timeout_s: float = 30.0
    #: How long a job waits for its driver to come back.
    driver_grace_s: float = 10.0
    #: A task with unlimited retries that kills its worker so often is failed.
    worker_kills_max: int = 3
    #: How long a task waits for a node that could run it before it fails.
    infeasible_timeout_s: float = 30.0
    #: "warn" or "error": what a re-execution with another result is.
    on_replay_difference: str = "warn"
    #: Queued work that is done here sooner (milliseconds) is not handed to peers.
    offload_min_ms: float = 50.0
    #: An object that was made again is kept so long for those who are about to ask for it.
    rebuilt_kept_s: float = 20.0
    #: A put of a driver is written behind to storage when it is this old.
    write_behind_delay_s: float = 1.0
    #: A large result that would take longer to be made again, with what it was made of, is written
    #: behind to storage; 0: none is.
    max_replay_s: float = 60.0
    #: How long a node that is told to end (SIGTERM) may take to give its work away.
    drain_deadline_s: float = 25.0
    #: How long storage may refuse a result that must be in it before anyone sees it.
    storage_retry_s: float = 10.0

    #: A node that uses more than this part of its memory ends a worker before the kernel does.
    memory_usage_threshold: float = 0.95
    #: How often a node measures its memory; 0: never.
    memory_monitor_refresh_ms: float = 250.0
    #: What a node's workers may use together; 0: what the cgroup or the machine has, for all.
    memory_limit: int = 0
    #: How often a task that was ended for memory runs again; these are no ``max_retries``.
    task_oom_retries: int = 5

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> Config:
        """The defaults with ``REGROW_<FIELD>`` applied. Raises ValueError naming a bad variable."""
        env = os.environ if environ is None else environ
        values: dict[str, str] = {}
        for field in cls.__struct_fields__:
            name = f"REGROW_{field.upper()}"
            if name in env:
                values[field] = env[name]
        try:
            return msgspec.convert(values, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ValueError(f"a REGROW_* variable has a bad value: {error}") from None


def home(environ: Mapping[str, str] | None = None) -> Path:
    """Where a cluster keeps its data: ``$REGROW_HOME``, by default ``~/.regrow``."""
    env = os.environ if environ is None else environ
    return Path(env.get("REGROW_HOME") or Path.home() / ".regrow").expanduser().absolute()
