"""The errors users meet, under Ray's names.

Every message says what happened, what was tried and what to do.  ``code`` is a short stable word
for programs (and for the ``error`` column of ``regrow.tasks``).
"""

from __future__ import annotations

from typing import ClassVar

from regrow._causes import as_type, carried


class RayError(Exception):
    """Base of all errors that regrow raises."""

    code: ClassVar[str] = "error"


RegrowError = RayError


class RayTaskError(RayError):
    """A task or actor method raised. The instance that ``get`` raises is *also* of the user's type.

    ``cause`` is the user's exception where it could travel; ``traceback_str`` the remote
    traceback as text; ``function_name`` what ran.
    """

    code = "task_error"

    def __init__(
        self, function_name: str, traceback_str: str, cause: BaseException | None = None
    ) -> None:
        super().__init__(function_name, traceback_str, cause)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.function_name} failed:\n{self.traceback_str}"

    def as_instanceof_cause(self) -> RayTaskError:
        """This error as an instance of the user's exception type too (as in Ray)."""
        cause_type = type(self.cause)
        if self.cause is None or isinstance(self.cause, RayTaskError):
            return self
        if not issubclass(cause_type, Exception):
            return self
        name = f"RayTaskError({cause_type.__name__})"
        try:
            dual = type(name, (RayTaskError, cause_type), {"__module__": "regrow.exceptions"})
            error: RayTaskError = as_type(self.cause, dual)
        except Exception:  # whatever forbids subclassing or mixing: the plain error still tells all
            return self
        error.__dict__.update(vars(self))
        object.__setattr__(error, "__cause__", self.cause)  # a frozen type forbids the statement
        return error

    def __reduce__(self) -> tuple[object, ...]:
        return (RayTaskError, (self.function_name, self.traceback_str, carried(self.cause)))


class WorkerCrashedError(RayError):
    """The worker process died while it ran the task, and no retry was left."""

    code = "worker_crashed"


class NodeDiedError(RayError):
    """The node that ran the task died, and the task may not be tried again."""

    code = "node_died"


class TaskCancelledError(RayError):
    """The task was cancelled, by the user or because its job ended."""

    code = "cancelled"


class TaskUnschedulableError(RayError):
    """No node of the cluster can ever offer the resources that the task asks for."""

    code = "unschedulable"


class ActorError(RayError):
    """Base of the errors of actors."""

    code = "actor_error"


class RayActorError(ActorError):
    """The actor is dead or could not be created."""

    code = "actor_died"


class ActorDiedError(RayActorError):
    """The actor died: killed, crashed, or lost with its node."""

    code = "actor_died"


class ActorStateLostError(ActorDiedError):
    """No saved state of an actor that restarts can be read, and the calls before it are trimmed."""

    code = "actor_state_lost"


class ActorUnschedulableError(ActorError):
    """No node of the cluster can ever offer the resources that the actor asks for."""

    code = "actor_unschedulable"


class ObjectLostError(RayError):
    """Every copy of the object is gone and it cannot be made again; the message says why."""

    code = "object_lost"


class ObjectReconstructionFailedError(ObjectLostError):
    """The object's task was run again and could not make it."""

    code = "object_reconstruction_failed"


class ObjectFreedError(ObjectLostError):
    """The object was freed."""

    code = "object_freed"


class OwnerDiedError(ObjectLostError):
    """Kept for programs that catch it; regrow's objects survive their owners and never raise it."""

    code = "owner_died"


class ReplayDifferenceError(ObjectLostError):
    """A re-executed task made another result than the one committed before."""

    code = "replay_difference"


class ReplayMismatchError(RayError):
    """The same ``key=`` was submitted with another function or other arguments."""

    code = "replay_mismatch"


class CodeChangedError(RayError):
    """A job is resumed with other code, another Python or another regrow than it began with."""

    code = "code_changed"


class JobAlreadyRunningError(RayError):
    """Another driver runs this job, or has taken it over (``init(takeover=True)``)."""

    code = "job_already_running"


class GetTimeoutError(RayError, TimeoutError):
    """``get`` did not have its values in time."""

    code = "get_timeout"


class ObjectStoreFullError(RayError):
    """The object does not fit into the arena and its spill space; the message has the sizes."""

    code = "object_store_full"


class OutOfDiskError(RayError):
    """The storage is full, and what must be in it could not be written."""

    code = "out_of_disk"


class OutOfMemoryError(RayError):
    """The task was ended because its node ran out of memory."""

    code = "out_of_memory"


class RaySystemError(RayError):
    """regrow itself failed in a way that is not the program's fault."""

    code = "system"


class RuntimeEnvSetupError(RayError):
    """The environment asked for could not be set up."""

    code = "runtime_env"


class UnsupportedOptionError(RayError, NotImplementedError):
    """An option that this version does not have; it is never accepted and ignored."""

    code = "unsupported_option"


class ClusterConnectionError(RayError, ConnectionError):
    """The cluster cannot be reached."""

    code = "connection"


class ControlStoreError(RaySystemError):
    """Postgres or the control store refuses to go on; the message says why."""

    code = "control_store"


class StorageError(RaySystemError):
    """The storage of objects (``init(storage=...)``) cannot be used; the message says why."""

    code = "storage"


class DatabaseRestoredError(ControlStoreError):
    """The database is older than what this cluster has committed: it was restored from a backup."""

    code = "database_restored"


# --- of ported programs ---------------------------------------------------------------------------
# Names of Ray's at their places in its hierarchy, so that programs which catch them can be run.


class ActorUnavailableError(RayActorError):
    """Kept for programs that catch it; regrow never raises it.

    A call waits while its actor cannot be reached, and raises ActorDiedError once it is dead."""

    code = "actor_unavailable"


class AsyncioActorExit(RayError):
    """Kept for programs that catch it; regrow never raises it: ``exit_actor()`` ends an
    asynchronous actor as it does any other."""

    code = "asyncio_actor_exit"


class PendingCallsLimitExceeded(RayError):
    """Kept for programs that catch it; regrow never raises it: it has no ``max_pending_calls``."""

    code = "pending_calls_limit"


class TaskPlacementGroupRemoved(RayError):
    """Kept for programs that catch it; regrow never raises it: it has no placement groups."""

    code = "task_placement_group_removed"


class ActorPlacementGroupRemoved(RayError):
    """Kept for programs that catch it; regrow never raises it: it has no placement groups."""

    code = "actor_placement_group_removed"


class UserCodeException(RayError):
    """Kept for programs that raise it themselves, around an error of their own code; regrow never
    raises it: what a task raises is a RayTaskError."""

    code = "user_code"


class CrossLanguageError(RayError):
    """Kept for programs that catch it; regrow never raises it: all tasks are in Python."""

    code = "cross_language"


class LocalRayletDiedError(RayError):
    """Kept for programs that catch it; regrow never raises it.

    A task whose node died raises NodeDiedError, if it may not be tried again."""

    code = "local_raylet_died"


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """Kept for programs that catch it; regrow never raises it: an object that was freed too early
    is made again."""

    code = "reference_counting"


class ObjectFetchTimedOutError(ObjectLostError):
    """Kept for programs that catch it; regrow never raises it.

    An object that cannot be fetched is looked for elsewhere or made again; ``get`` with a timeout
    raises GetTimeoutError."""

    code = "object_fetch_timed_out"


#: The errors that the system itself makes, by their code: this is how they travel.
BY_CODE: dict[str, type[RayError]] = {
    cls.code: cls
    for cls in (
        WorkerCrashedError, NodeDiedError, TaskCancelledError, TaskUnschedulableError,
        ActorDiedError, ActorStateLostError,
        ActorUnschedulableError, ObjectLostError, ObjectReconstructionFailedError, ObjectFreedError,
        ReplayDifferenceError, ReplayMismatchError, ObjectStoreFullError, OutOfDiskError,
        OutOfMemoryError, RaySystemError, ControlStoreError, DatabaseRestoredError,
        StorageError, CodeChangedError, JobAlreadyRunningError,
    )
}  # fmt: skip
