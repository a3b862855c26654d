"""Ray's verbs: ``init``, ``remote``, ``get``, ``put``, ``wait`` and the rest.

Decides what a call means and checks its arguments; the client of the process does the work.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Literal,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    Unpack,
    overload,
)

import msgspec

from regrow import _client
from regrow._actor import ActorClass, ActorHandle
from regrow._client import Client
from regrow._options import RemoteOptions, TaskOptions, check_durability, check_node
from regrow._program_end import UNKNOWN, ProgramEnd, is_failing
from regrow._refs import ObjectRef, set_table
from regrow._remote import RemoteFunction
from regrow._resuming import POLICIES
from regrow.config import RESOURCE_UNIT, Config
from regrow.exceptions import ClusterConnectionError, RaySystemError, UnsupportedOptionError
from regrow.messages import Bye, NodeView, Resources

if TYPE_CHECKING:
    from regrow._bootstrap import Session
    from regrow._driver import Driver

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C")

#: What Ray's ``init`` takes too, or ours will, with the values that mean "as usual".
_INIT_DEFAULTS: Final[dict[str, tuple[Any, ...]]] = {
    "configure_logging": (True, False),
    "dashboard_host": (None, "127.0.0.1"),
    "dashboard_port": (None,),
    "include_dashboard": (None, False),
    "job_config": (None,),
    "labels": (None, {}),
    "local_mode": (False,),
    "logging_config": (None,),
    "logging_format": (None,),
    "runtime_env": (None, {}),
    "_node_ip_address": (None,),
    "_system_config": (None, {}),
    "_temp_dir": (None,),
}

_JOB_NAME_MAX: Final = 200
#: How long who joins for a moment looks for a node.
_DETACHED_PATIENCE_S: Final = 30.0
#: As which ``regrow job submit`` started this process; its children are others.
_SUBMITTED: Final = os.environ.pop("REGROW_JOB", None)

_state_lock = threading.RLock()
_session: Session | None = None


class Context:
    """What ``init`` returns: where the cluster is. Shuts down at the end of a ``with``."""

    def __init__(self, address_info: dict[str, Any]) -> None:
        self.address_info = address_info

    def __getitem__(self, key: str) -> Any:
        return self.address_info[key]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        shutdown()

    def __repr__(self) -> str:
        return f"Context({self.address_info!r})"


def init(
    address: str | None = None,
    *,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    resources: Mapping[str, float] | None = None,
    object_store_memory: int | None = None,
    ignore_reinit_error: bool = False,
    namespace: str | None = None,
    log_to_driver: bool = True,
    logging_level: int | str = logging.INFO,
    postgres: str | None = None,
    storage: str | None = None,
    durability: str = "commit",
    job: str | None = None,
    takeover: bool | None = None,
    on_changed_code: str = "error",
    **others: Any,
) -> Context:
    """Join the cluster that lives in ``$REGROW_HOME``, or start one there.

    ``address`` is the home of a running cluster, "auto" or "local"; ``postgres`` the libpq URL of a
    database instead of the embedded one, ``storage`` a ``pyarrow.fs`` URI for spilled objects.
    ``durability="async"`` relaxes only what this driver sees.  ``logging_level`` is that of the
    logger "regrow"; above INFO nothing is said about the start either.

    ``job`` names a job that is resumed: run the same program again after its driver ended in
    another way than well, and every task that has finished is found, not run again.  ``takeover``
    takes it from a driver that still runs it; a job that ``regrow job submit`` runs has the name
    that was given there.  ``on_changed_code`` says what becomes of results of
    a function whose code has changed: "error", "rerun" (its calls, and what depends on them) or
    "keep".

    Raises ClusterConnectionError, RuntimeError where this process is connected already,
    JobAlreadyRunningError, and CodeChangedError where a job is resumed with another Python or
    regrow (for a function, its first call raises it).
    """
    _check_init(others)
    if job is None:
        job = _SUBMITTED
    logger = logging.getLogger("regrow")
    # Ray's programs write the names in small letters too.
    logger.setLevel(logging_level.upper() if isinstance(logging_level, str) else logging_level)
    check_durability(durability)
    _check_job(job, takeover, on_changed_code)
    check_node(
        {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "resources": resources,
            "object_store_memory": object_store_memory,
        },
        "init()",
    )
    with _state_lock:
        if _client.connected() is not None:
            if ignore_reinit_error:
                return _context()
            raise RuntimeError(
                "Maybe you called regrow.init twice by accident? This error can be suppressed by "
                "passing in 'ignore_reinit_error=True' or by calling 'regrow.shutdown()' prior to "
                "'regrow.init()'."
            )
        from regrow._bootstrap import attach
        from regrow._driver import Driver
        from regrow._joining import join

        reconnect_timeout_s = Config.from_environment().reconnect_timeout_s
        session, driver = join(
            lambda: attach(
                address=address, postgres=postgres, storage=storage, num_cpus=num_cpus,
                num_gpus=num_gpus, resources=resources, object_store_memory=object_store_memory,
            ),
            lambda session: Driver(
                session.node_socket, session.token, session.local_sockets,
                durability=durability, namespace=namespace or "", log_to_driver=log_to_driver,
                reconnect_timeout_s=reconnect_timeout_s,
                job=job or "", takeover=bool(takeover), on_changed_code=on_changed_code,
            ),
            reconnect_timeout_s,
        )  # fmt: skip
        _enter(session, driver)
        what = "Started a regrow cluster" if session.started else "Joined the regrow cluster"
        if logger.level <= logging.INFO:
            print(f"{what} in {session.home} ({_job_words(driver, job)})", file=sys.stderr)
        return _context()


def _enter(session: Session, driver: Driver) -> None:
    """From now on this process is a driver."""
    global _session
    _session = session
    set_table(driver.refs)
    _client.set_current(driver)


def join_detached(name: str, entrypoint: str, *, takeover: bool, detached: bool) -> None:
    """Join the cluster that runs, as the driver of a named job that may outlive it.

    Raises ClusterConnectionError if none runs, or one that ends with its last driver, and
    JobAlreadyRunningError.
    """
    from regrow._bootstrap import attach
    from regrow._driver import Driver
    from regrow._joining import join

    def connect(session: Session) -> Driver:
        if session.ephemeral:
            raise ClusterConnectionError(
                f"the cluster in {session.home} ends with its last driver; start one that "
                "stays with `regrow start --head`"
            )
        return Driver(
            session.node_socket, session.token, session.local_sockets, durability="commit",
            namespace="", log_to_driver=False, reconnect_timeout_s=_DETACHED_PATIENCE_S, job=name,
            takeover=takeover, on_changed_code="keep", detached=detached,
            entrypoint=entrypoint,
        )  # fmt: skip

    with _state_lock:
        _enter(*join(lambda: attach(address="auto"), connect, _DETACHED_PATIENCE_S))


def _check_job(job: str | None, takeover: bool | None, on_changed_code: str) -> None:
    if job is not None and not 0 < len(job) <= _JOB_NAME_MAX:
        raise ValueError(
            f"init(job={job!r}): a job's name is a string of 1 to {_JOB_NAME_MAX} characters"
        )
    if takeover and job is None:
        raise ValueError("init(takeover=True) needs the name of the job: init(job=...)")
    if on_changed_code not in POLICIES:
        raise ValueError(
            f"init(on_changed_code={on_changed_code!r}): choose one of {', '.join(POLICIES)}"
        )


def _job_words(driver: Driver, name: str | None) -> str:
    if name is None:
        return f"job {driver.job}"
    resumed = f", resumed by driver {driver.number}" if driver.number > 1 else ""
    return f"job {driver.job}, {name!r}{resumed}"


def _check_init(others: Mapping[str, Any]) -> None:
    unknown = sorted(set(others) - set(_INIT_DEFAULTS))
    if unknown:
        raise RuntimeError(f"Unknown keyword argument(s): {', '.join(unknown)}")
    for name, value in others.items():
        if not any(value == usual for usual in _INIT_DEFAULTS[name]):
            raise UnsupportedOptionError(
                f"init({name}={value!r}) is not in this version of regrow; leave it out"
            )


def _context() -> Context:
    client = _client.current()
    home = str(_session.home) if _session is not None else client.welcome.home
    return Context(
        {
            "address": home,
            "session_dir": home,
            "node_id": str(client.welcome.node_id),
            "namespace": client.running.current().namespace,
            "webui_url": None,
        }
    )


def _init_by_default() -> Client:
    with _state_lock:
        if _client.connected() is None:
            init()
        return _client.current()


def is_initialized() -> bool:
    """Whether this process is connected."""
    return _client.connected() is not None


def _has_failed(client: Client) -> bool:
    """Whether the program, which ends, did not end well."""
    ended_well = _end.status()
    if ended_well is None and client.job_name:
        print(UNKNOWN.format(client.job_name), file=sys.stderr)
    return ended_well is False or (ended_well is None and bool(client.job_name))


def shutdown(_exiting_interpreter: bool = False) -> None:
    """Leave the cluster; one that ``init`` started ends with its last driver.

    A named job's run is over then; but if an exception is being handled, or on its way, the job
    did not end well, and can be resumed.
    """
    global _session
    with _state_lock:
        client = _client.connected()
        session, _session = _session, None
        if client is None or client.role != "driver":
            return
        _client.set_current(None)
        set_table(None)
        failed = _has_failed(client) if _exiting_interpreter else is_failing()
        try:
            if session is not None:
                session.release()
            client.close(Bye(failed))
        finally:
            if session is not None:
                session.close()


def _forked() -> None:
    """In a forked child: neither the connection nor the cluster is this process's."""
    global _session
    client, _session = _client.connected(), None
    if client is not None:
        client.link.abandon()
        _client.set_current(None)
        set_table(None)


_end = ProgramEnd()
_end.watch()
atexit.register(_end.let_go)  # after the next one
atexit.register(shutdown, True)
os.register_at_fork(after_in_child=_forked)
_client.set_start(_init_by_default)


# --- remote ---------------------------------------------------------------------------------------


class RemoteDecorator(Protocol):
    """What ``remote(num_cpus=2)`` returns."""

    @overload
    def __call__(self, target: type[C], /) -> ActorClass[C]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...


class NoResultDecorator(Protocol):
    """What ``remote(num_returns=0)`` returns."""

    def __call__(self, target: Callable[P, Any], /) -> RemoteFunction[P, None]: ...


class ResultsDecorator(Protocol):
    """What ``remote(num_returns=2)`` returns."""

    def __call__(self, target: Callable[P, Any], /) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...


@overload
def remote(target: type[C], /) -> ActorClass[C]: ...  # type: ignore[overload-overlap]
@overload
def remote(target: Callable[P, R], /) -> RemoteFunction[P, ObjectRef[R]]: ...
@overload
def remote(  # type: ignore[overload-overlap]  # the last one is for other numbers
    *, num_returns: Literal[1] | None = None, **options: Unpack[RemoteOptions]
) -> RemoteDecorator: ...
@overload
def remote(  # type: ignore[overload-overlap]
    *, num_returns: Literal[0], **options: Unpack[TaskOptions]
) -> NoResultDecorator: ...
@overload
def remote(*, num_returns: int, **options: Unpack[TaskOptions]) -> ResultsDecorator: ...
def remote(*args: Any, **options: Any) -> Any:
    """Make a function remote, or a class an actor; ``@remote`` or ``@remote(num_cpus=2, ...)``."""
    if len(args) == 1 and not options:
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError(
            "The @regrow.remote decorator must be applied either with no arguments and no "
            "parentheses, for example '@regrow.remote', or with some keyword arguments, like "
            "'@regrow.remote(num_returns=2, resources={\"CustomResource\": 1})'."
        )
    return lambda target: _make_remote(target, options)


def _make_remote(target: Any, options: dict[str, Any]) -> Any:
    if inspect.isclass(target):
        return ActorClass(target, options)
    if isinstance(target, RemoteFunction | ActorClass) or not callable(target):
        raise TypeError(
            "The @regrow.remote decorator must be applied to either a function or a class."
        )
    if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
        raise ValueError(
            "'async def' should not be used for remote tasks. You can wrap the async function with "
            "'asyncio.run()' if needed."
        )
    if not hasattr(target, "__qualname__"):
        raise TypeError(
            "The @regrow.remote decorator must be applied to either a function or a class."
        )
    return RemoteFunction(target, options)


# --- objects --------------------------------------------------------------------------------------


@overload
def get(refs: ObjectRef[R], *, timeout: float | None = None) -> R: ...
@overload
def get(refs: Sequence[ObjectRef[R]], *, timeout: float | None = None) -> list[R]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """The value of a reference, or those of several; waits for them, ``timeout`` seconds at most.

    Raises what the task raised (as RayTaskError and as its own type), GetTimeoutError, or the
    system's reason why there is no value.
    """
    client = _client.current()
    if timeout is not None and timeout < 0:
        raise ValueError(f"timeout must not be negative, got {timeout}")
    if type(refs) is ObjectRef:
        if refs._data is not None:  # hot path
            return client.value_of(refs, None)
        return client.get((refs,), timeout)[0]
    if not isinstance(refs, list | tuple):
        raise ValueError(
            f"Invalid type of object refs, {type(refs)}, is given. 'refs' must either be an "
            f"ObjectRef or a list of ObjectRefs."
        )
    for ref in refs:
        if type(ref) is not ObjectRef:
            raise ValueError(
                f"Invalid type of object refs. The list passed to get must hold ObjectRefs; one of "
                f"its values is {type(ref)}."
            )
    return client.get(refs, timeout)


def put(value: R, *, durable: bool = False) -> ObjectRef[R]:
    """Store a value and return a reference to it.

    With ``durable`` it returns when the value is in storage (or, if it is small, in the log), so
    that it outlives this node.

    Raises SerializationError (a TypeError) naming what cannot be pickled, and ObjectStoreFullError;
    with ``durable`` StorageError or OutOfDiskError where storage refuses it for
    ``REGROW_STORAGE_RETRY_S``.
    """
    if isinstance(value, ObjectRef):
        raise TypeError(
            "Calling 'put' on an ObjectRef is not allowed. If you really want to do this, you can "
            "wrap the ObjectRef in a list and call 'put' on it."
        )
    return _client.current().put(value, durable)


def wait(
    refs: list[ObjectRef[R]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[ObjectRef[R]], list[ObjectRef[R]]]:
    """Wait until ``num_returns`` are ready or ``timeout`` seconds are over: (ready, others).

    Both keep the order given; ready has ``num_returns`` at most.  With ``fetch_local`` an object is
    ready when its bytes are on this node.
    """
    if isinstance(refs, ObjectRef):
        raise TypeError("wait() expected a list of ObjectRefs, got a single ObjectRef")
    if not isinstance(refs, list):
        raise TypeError(f"wait() expected a list of ObjectRefs, got {type(refs)}")
    if timeout is not None and timeout < 0:
        raise ValueError(f"The 'timeout' argument must be nonnegative. Received {timeout}")
    if not {ObjectRef}.issuperset(map(type, refs)):
        wrong = next(ref for ref in refs if type(ref) is not ObjectRef)
        raise TypeError(f"wait() expected a list of ObjectRefs, got list containing {type(wrong)}")
    client = _client.current()
    if not refs:
        return [], []
    if len(set(map(id, refs))) != len(refs):
        raise ValueError("Wait requires a list of unique object refs.")
    if num_returns <= 0:
        raise ValueError(f"Invalid number of objects to return {num_returns}.")
    if num_returns > len(refs):
        raise ValueError(
            "num_returns cannot be greater than the number of objects provided to wait()."
        )
    return client.wait(refs, num_returns, timeout, fetch_local)


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor at once; its unfinished calls raise ActorDiedError."""
    if not isinstance(actor, ActorHandle):
        raise ValueError(f"regrow.kill() is for actors only. Got: {type(actor)}.")
    body = msgspec.msgpack.encode([actor._ray_actor_id, no_restart])
    _client.current().ask("kill_actor", body)


# --- the cluster ----------------------------------------------------------------------------------


def nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, also dead ones, as Ray's dictionaries."""
    body = _connected().ask("nodes")
    return [
        {
            "NodeID": str(view.node_id),
            "Incarnation": view.incarnation,
            "Alive": view.alive,
            "NodeManagerAddress": view.host,
            "NodeManagerHostname": view.hostname,
            "NodeManagerPort": view.port,
            "RayletSocketName": view.socket_path,
            "Resources": {**_amounts(view.total), _ARENA: float(view.object_store_memory)}
            if view.alive
            else {},
            "Labels": view.labels,
            "IsHead": view.is_head,
        }
        for view in msgspec.msgpack.decode(body, type=list[NodeView])
    ]


#: In bytes; nobody asks for it, and what of it is free changes with every object.
_ARENA: Final = "object_store_memory"


def _all_arenas(client: Client) -> dict[str, float]:
    views = msgspec.msgpack.decode(client.ask("nodes"), type=list[NodeView])
    return {_ARENA: float(sum(view.object_store_memory for view in views if view.alive))}


def cluster_resources() -> dict[str, float]:
    """What all living nodes have, as in Ray: ``object_store_memory`` is in bytes, ``node:ADDRESS``
    1.0 for each node there."""
    client = _connected()
    total = msgspec.msgpack.decode(client.ask("cluster_resources"), type=Resources)
    return {**_amounts(total), **_all_arenas(client)}


def available_resources() -> dict[str, float]:
    """What of it no task or actor holds, as far as this node knows; none holds any of the
    ``object_store_memory``."""
    client = _connected()
    free = msgspec.msgpack.decode(client.ask("available_resources"), type=Resources)
    return {**{k: v for k, v in _amounts(free).items() if v}, **_all_arenas(client)}


def _connected() -> Client:
    client = _client.connected()
    if client is None:
        raise RaySystemError(
            "regrow has not been started yet. You can start it with 'regrow.init()'."
        )
    return client


def _amounts(resources: Resources) -> dict[str, float]:
    return {name: amount / RESOURCE_UNIT for name, amount in resources.items()}
