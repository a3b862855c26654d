"""Running one task: its function, its arguments, its result or its error as bytes.

Decides what a task's outcome is.  It knows no queue and no socket: large results are written
through the client it is given.
"""

from __future__ import annotations

import inspect
import itertools
import os
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import cloudpickle
import msgspec

from regrow import failpoints
from regrow._answers import Answers
from regrow._arguments import REF_TYPES, unpack_arguments
from regrow._client import Client
from regrow._context import ActorExit, Task
from regrow._fingerprints import fingerprint, qualified_name
from regrow._functions import load
from regrow._saving import StateSaver, saves_itself
from regrow._signatures import methods_of, packed_methods
from regrow.config import INLINE_MAX
from regrow.exceptions import RayError, RaySystemError, RayTaskError
from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    OK,
    RECOVERABLE,
    RETRY_EXCEPTIONS,
    SYSTEM_ERROR,
    TASK,
    TASK_ERROR,
    FunctionDef,
    Return,
    RunTask,
    SystemFailure,
    TaskDone,
    TaskSpec,
    encode,
    failure_decoder,
    spec_decoder,
)
from regrow.objectstore.layout import digest
from regrow.objectstore.serialization import deserialize, serialize

#: An error over this size (bytes) travels without its cause.
_ERROR_MAX: Final = 1 << 20
_TEXT_MAX: Final = 64 * 1024
#: Frames of these files are no business of the user's.
_OURS: Final = os.path.dirname(__file__) + os.sep


#: Calls of an asynchronous actor that run at once, as in Ray.
ASYNC_CONCURRENCY: Final = 1000

#: Status, return values (one for an error), and whether the task may be tried again. None: the
#: actor ends with this call, and its node tells the caller.
Outcome = tuple[int, list[Return], bool] | None


class ArgumentFailed(Exception):
    """An argument is an error: so is the result."""

    def __init__(self, status: int, data: bytes) -> None:
        super().__init__(status, data)
        self.status = status
        self.data = data


class Executor:
    """Runs tasks, one after the other or from several threads, and holds the actor of its
    process."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._definitions: dict[bytes, FunctionDef] = {}
        self._functions: dict[bytes, Any] = {}
        #: The fingerprints of those whose code is not what was logged.
        self._changed: dict[bytes, bytes] = {}
        self._retry_types: dict[bytes, tuple[type[BaseException], ...]] = {}
        self._gpus: list[int] | None = None
        #: The actor of this process, once it is made.
        self.actor: Any = None
        #: Why the actor ends itself; empty: it does not.
        self.exiting = ""
        #: Whether its methods run on a loop, and how many of them at once.
        self.is_async = False
        self.concurrency = 1
        #: Of an actor that restarts.
        self.saver: StateSaver | None = None

    def define(self, definitions: list[FunctionDef]) -> None:
        """Functions that tasks name from now on."""
        for definition in definitions:
            self._definitions[definition.function_id] = definition

    def function(self, function_id: bytes) -> Any:
        """The function or class, loaded at its first use."""
        function = self._functions.get(function_id)
        if function is None:
            definition = self._definitions.get(function_id)
            if definition is None:
                raise RaySystemError(f"the node never sent function {function_id.hex()}")
            try:
                function = load(definition)
            except Exception as error:  # whatever importing the user's modules raises
                raise RuntimeError(
                    f"{definition.name} cannot be loaded in a worker: "
                    f"{type(error).__name__}: {error}"
                ) from error
            self._functions[function_id] = function
            now = fingerprint(function)
            if definition.fingerprint not in (b"", now):
                self._changed[function_id] = now
        return function

    def _check_code(self, task: Task) -> None:
        """Raises CodeChangedError where a named job's function is not what it was when it was
        submitted: it is imported from a module that was changed since."""
        now = self._changed.get(task.function_id)
        if now is not None and task.driver:
            changes = self._client.changes(task)
            changes.check_loaded(self._definitions[task.function_id], now)

    # --- a task -----------------------------------------------------------------------------------

    def task_of(self, spec: TaskSpec, run: RunTask) -> Task:
        """What the code of this task is told of itself."""
        options = _options(spec)
        return Task(
            spec.task_id, spec.job, self._client.welcome.job_root, spec.name,
            actor_id=spec.actor_id, attempt=run.attempt, resources=spec.resources,
            namespace=options.get("namespace", ""), function_id=spec.function_id,
            driver=run.driver,
        )  # fmt: skip

    def run(self, run: RunTask) -> TaskDone | None:
        """Run a task on the calling thread. None: the actor has ended itself. Never raises."""
        spec = spec_decoder.decode(run.spec)
        task = self._begin(spec, run)
        start = time.perf_counter_ns()
        try:
            target = self.target(spec)  # first: it brings the folders of the program's modules
            if self._changed and spec.kind == TASK:
                self._check_code(task)
            if run.restore:
                self._created(spec, self._restored(spec, run, target))
                result = None
            else:
                args, kwargs = self.arguments(spec, run)
                if failpoints.MUTANT == "call-applied-twice" and spec.kind == ACTOR_CALL:
                    target(*args, **kwargs)
                result = target(*args, **kwargs)
                del args, kwargs
                if spec.kind == ACTOR_CREATION:
                    self._created(spec, result)
                    result = None
            outcome = self._outcome(spec, run.attempt, result)
            del result
        except BaseException as error:  # SystemExit and KeyboardInterrupt are the task's, too
            outcome = self.outcome_of(spec, error)
        finally:
            self._client.running.leave(task)
        self._client.put_answers(task)
        return _done(spec, run.attempt, outcome, start)

    async def run_async(self, run: RunTask) -> TaskDone | None:
        """As ``run``, a call of an asynchronous actor, on its loop."""
        spec = spec_decoder.decode(run.spec)
        task = self._begin(spec, run)
        start = time.perf_counter_ns()
        try:
            target = self.target(spec)
            args, kwargs = self.arguments(spec, run)
            result = target(*args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
            outcome = self._outcome(spec, run.attempt, result)
            del args, kwargs, result
        except BaseException as error:
            outcome = self.outcome_of(spec, error)
        finally:
            self._client.running.leave(task)
        self._client.put_answers(task)
        return _done(spec, run.attempt, outcome, start)

    def not_begun(self, run: RunTask, error: BaseException) -> TaskDone | None:
        """A call that ``error`` kept from running."""
        spec = spec_decoder.decode(run.spec)
        return _done(spec, run.attempt, self.outcome_of(spec, error), time.perf_counter_ns())

    def _begin(self, spec: TaskSpec, run: RunTask) -> Task:
        if run.gpus != self._gpus:
            self._gpus = run.gpus
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, run.gpus))
        task = self.task_of(spec, run)
        if failpoints.ON:
            failpoints.crash_point("worker.running")
        task.is_replay = run.answers is not None
        if self.saver is not None:
            task.answers = Answers(run.answers)
        self._client.running.enter(task)
        return task

    def _restored(self, spec: TaskSpec, run: RunTask, cls: Any) -> Any:
        """The actor as it was saved."""
        state: Any = None
        for value in run.inline:
            if value.object_id == run.restore:
                assert value.data is not None
                if value.status != OK:
                    raise ArgumentFailed(value.status, value.data)
                if value.digest and digest(value.data) != value.digest:
                    raise RaySystemError("the saved state is not what was saved (its checksum)")
                state = deserialize(value.data, copy=True)
        for location in run.located:
            if location.object_id == run.restore:
                state = deserialize(self._client.memory.view(location), copy=True)
        if not saves_itself(cls):
            return state
        args, kwargs = self.arguments(spec, run)
        actor = cls(*args, **kwargs)
        actor.load_checkpoint(state)
        return actor

    def _created(self, spec: TaskSpec, actor: Any) -> None:
        options = _options(spec)
        self.actor = actor
        if spec.flags & RECOVERABLE:
            self.saver = StateSaver(
                self._client, spec.job, options.get("checkpoint_every", 0),
                options.get("checkpoint_interval_s", 0.0),
            )  # fmt: skip
        self.is_async = has_coroutines(type(actor))
        self.concurrency = options.get("max_concurrency", 0) or (
            ASYNC_CONCURRENCY if self.is_async else 1
        )

    def _outcome(self, spec: TaskSpec, attempt: int, result: Any) -> Outcome:
        values = self.split(spec, result)
        return OK, [self._return(spec, attempt, i, value) for i, value in enumerate(values)], False

    def target(self, spec: TaskSpec) -> Callable[..., Any]:
        """What the task calls."""
        if spec.kind != ACTOR_CALL:
            function: Callable[..., Any] = self.function(spec.function_id)
            if spec.kind == ACTOR_CREATION:
                assert isinstance(function, type)
                running = self._client.running
                running.actor_methods = packed_methods(methods_of(function))
                running.actor_name = _options(spec).get("name", "")
            return function
        if spec.method == "__ray_terminate__":
            return self.terminate
        if spec.method == "__regrow_checkpoint__":
            return self._ask_to_save
        if spec.method == "__ray_ready__":
            return lambda: True
        if spec.method == "__ray_call__":
            return lambda function, *args, **kwargs: function(self.actor, *args, **kwargs)
        return getattr(self.actor, spec.method)  # type: ignore[no-any-return]

    def _ask_to_save(self) -> None:
        if self.saver is None:
            raise TypeError("only an actor with max_restarts has checkpoints")
        self.saver.asked = True

    def terminate(self) -> None:
        """End the actor after what it does now."""
        self.exiting = "__ray_terminate__() was called"

    def arguments(self, spec: TaskSpec, run: RunTask) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with their dependencies' values. Raises ArgumentFailed for an error."""
        if not spec.deps:
            return unpack_arguments(spec.args, ())
        values: dict[bytes, Any] = {}
        for value in run.inline:
            assert value.data is not None
            if value.status != OK:
                raise ArgumentFailed(value.status, value.data)
            values[value.object_id] = deserialize(value.data)
        for location in run.located:
            values[location.object_id] = deserialize(self._client.memory.view(location))
        return unpack_arguments(spec.args, [values[oid] for oid in spec.deps])

    def split(self, spec: TaskSpec, result: Any) -> list[Any]:
        """The return values. Raises ValueError if there are not as many as ``num_returns``, and
        what a generator raises on its way there."""
        count = spec.num_returns
        if count != 1 and inspect.isgenerator(result):
            values = list(itertools.islice(result, count + 1))
            result.close()  # it may go on for ever
            if len(values) > count:
                raise ValueError(
                    f"{spec.name} has num_returns={count} but yielded more than {count} values"
                )
            result = values
        if count == 1:
            return [result]
        if count == 0:
            return []
        try:
            values = list(result)
        except TypeError:
            raise ValueError(
                f"{spec.name} has num_returns={count} and must return that many values, but "
                f"returned a {type(result).__name__}, which has no parts"
            ) from None
        if len(values) != count:
            raise ValueError(
                f"{spec.name} has num_returns={count} but returned {len(values)} values"
            )
        return values

    def _return(self, spec: TaskSpec, attempt: int, index: int, value: Any) -> Return:
        serialized = serialize(value, ref_types=REF_TYPES)
        layout, refs = serialized.layout, serialized.contained_refs
        if layout.size <= INLINE_MAX:
            data = layout.to_bytes()
            return Return(layout.size, digest(data), data, refs)
        written = self._client.write_object(object_id(spec.task_id, index), attempt, layout)
        return Return(layout.size, written, None, refs)

    # --- errors -----------------------------------------------------------------------------------

    def outcome_of(self, spec: TaskSpec, error: BaseException) -> Outcome:
        """What became of a task that raised."""
        if spec.kind == ACTOR_CREATION:
            failure = SystemFailure("actor_died", _why_not_created(spec, error))
            return SYSTEM_ERROR, [_error_return(encode(failure))], False
        if isinstance(error, ArgumentFailed):
            return error.status, [_error_return(error.data)], False
        if isinstance(error, ActorExit | SystemExit) and spec.kind == ACTOR_CALL:
            self.exiting = f"{spec.name} called {_how(error)}"
            return None
        data = serialize_error(spec.name, error)
        retry = bool(spec.flags & RETRY_EXCEPTIONS) and isinstance(error, self._retried(spec))
        return TASK_ERROR, [_error_return(data)], retry

    def _retried(self, spec: TaskSpec) -> tuple[type[BaseException], ...]:
        kinds = self._retry_types.get(spec.options)
        if kinds is None:
            options = _options(spec)
            kinds = cloudpickle.loads(options["retry"]) if "retry" in options else (Exception,)
            self._retry_types[spec.options] = kinds
        return kinds


def _options(spec: TaskSpec) -> dict[str, Any]:
    """What only the worker needs of the options."""
    return msgspec.msgpack.decode(spec.options) if spec.options else {}


def has_coroutines(cls: type) -> bool:
    """Whether actors of this class are asynchronous."""
    return any(
        inspect.iscoroutinefunction(member) for _, member in inspect.getmembers(cls, callable)
    )


def _done(spec: TaskSpec, attempt: int, outcome: Outcome, start_ns: int) -> TaskDone | None:
    if failpoints.ON:
        failpoints.crash_point("worker.sealed")
    if outcome is None:
        return None
    status, returns, retry = outcome
    duration_us = (time.perf_counter_ns() - start_ns) // 1000
    return TaskDone(spec.task_id, attempt, status, returns, duration_us, retry)


def _error_return(data: bytes) -> Return:
    return Return(len(data), digest(data), data)


def serialize_error(name: str, error: BaseException) -> bytes:
    """A serialized RayTaskError with the frames of the program only.

    A cause that cannot be pickled and unpickled is left out; the text has what it said, and why.
    """
    text = _traceback(error)
    # A failure that passes through tasks keeps the type of the first one's exception.
    cause = error.cause if isinstance(error, RayTaskError) else error
    missing = ""
    if cause is not None:
        data, missing = _with_cause(name, text, cause)
        if data is not None:
            return data
    return serialize(RayTaskError(name, _shortened(text) + missing)).layout.to_bytes()


def _with_cause(name: str, text: str, cause: BaseException) -> tuple[bytes | None, str]:
    """The serialized error, or why its cause is not in it."""
    what = f"(the exception itself, a {qualified_name(type(cause))}, is not here: "
    step = "pickling"
    try:
        layout = serialize(RayTaskError(name, text, cause), ref_types=REF_TYPES).layout
        if layout.size > _ERROR_MAX:
            return None, f"{what}it has {layout.size} bytes, more than {_ERROR_MAX})\n"
        data = layout.to_bytes()
        step = "unpickling"
        copied = deserialize(data).cause
    except Exception as error:  # whatever the code of the user's type raises
        return None, f"{what}{step} it raised {type(error).__name__}: {error})\n"
    if not isinstance(copied, BaseException):
        return None, f"{what}unpickled it is a {qualified_name(type(copied))})\n"
    return data, ""


def _why_not_created(spec: TaskSpec, error: BaseException) -> str:
    """As text: whoever calls the actor is told, also where its classes cannot be imported, and
    long after its creation was forgotten."""
    name = spec.name.removesuffix(".__init__")
    if isinstance(error, ArgumentFailed):
        if error.status == SYSTEM_ERROR:
            text = failure_decoder.decode(error.data).message
        else:
            try:
                text = str(deserialize(error.data))
            except Exception as other:  # whatever unpickling the user's types raises
                text = f"(it cannot be shown: {type(other).__name__}: {other})"
        return f"the actor {name} was not created: an argument of its constructor is an error: " + (
            _shortened(text)
        )
    if isinstance(error, ActorExit | SystemExit):
        return f"the actor {name} ended: its constructor called {_how(error)}"
    return f"the actor {name} died because its constructor raised an exception:\n" + (
        _shortened(_traceback(error))
    )


def _how(error: ActorExit | SystemExit) -> str:
    return f"sys.exit({error.code!r})" if isinstance(error, SystemExit) else "exit_actor()"


def _shortened(text: str) -> str:
    if len(text) <= _TEXT_MAX:
        return text
    return text[: _TEXT_MAX // 2] + "\n...\n" + text[-_TEXT_MAX // 2 :]


def _traceback(error: BaseException) -> str:
    if isinstance(error, RayError) and not isinstance(error, RayTaskError):
        return f"{type(error).__name__}: {error}\n"
    told: traceback.TracebackException | None = traceback.TracebackException.from_exception(error)
    assert told is not None
    _keep_users_frames(told)
    return "".join(told.format())


def _keep_users_frames(told: traceback.TracebackException) -> None:
    """Leave out our own frames, of the exception and of those that led to it."""
    for part in (told, told.__cause__, told.__context__):
        if part is not None:
            part.stack = traceback.StackSummary.from_list(
                [frame for frame in part.stack if not frame.filename.startswith(_OURS)]
            )
            if part is not told:
                _keep_users_frames(part)
