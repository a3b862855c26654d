"""Actors: ``@remote`` on a class, handles, and calls of their methods.

An actor's id is the id of the task that creates it.  Its handles hold the object that this task
returns: when the last of them is gone anywhere, the actor ends.  Decides what a handle knows and
how it travels; where an actor lives and in which order its calls run is its node's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, Unpack

import msgspec

from regrow._client import Call, Client, current
from regrow._context import ActorExit
from regrow._detached import NameTakenError, create_detached, runs_again
from regrow._functions import define, identity
from regrow._options import (
    ACTOR_OPTIONS,
    METHOD_OPTIONS,
    ActorOptions,
    MethodOptions,
    Options,
    check_generator,
    checked,
)
from regrow._refs import ObjectRef, ref_from_id
from regrow._signatures import Method, methods_of, packed_methods, signature_of, unpacked_methods
from regrow.ids import object_id
from regrow.messages import (
    ACTOR_CALL,
    ACTOR_CREATION,
    DETACHED,
    RECOVERABLE,
    FunctionDef,
    NamedActor,
)

if TYPE_CHECKING:
    import typing_extensions

    # With a default, so that annotations may say `ActorHandle` alone.
    C = typing_extensions.TypeVar("C", default=Any)
else:
    C = TypeVar("C")

#: Among the methods that a handle knows, in place of a name: the actor restarts with its state.
_RECOVERABLE = ""
#: Likewise, before the id of the task that made a detached actor.
_MADE_BY = "made by "
_BUILT_IN = ("__ray_terminate__", "__ray_ready__", "__ray_call__", "__regrow_checkpoint__")
#: A definition that names a class without carrying it, for calls.
_NO_CODE = b""
#: So long somebody who makes a detached actor may take to name it; then it is the one who fails.
NAMING_S: Final = 30.0
NAMING_POLL_S: Final = 0.02
#: A method of which its class says nothing.
_UNKNOWN = Method()


class ActorClass(Generic[C]):
    """A class whose instances are actors, made with ``.remote(...)``."""

    def __init__(self, cls: type[C], options: dict[str, Any]) -> None:
        self._class = cls
        self._options = options
        self._checked = checked(options, ACTOR_OPTIONS, "actors", 0)
        self._definition: FunctionDef | None = None
        self._signature = signature_of(cls)
        self._methods = packed_methods(methods_of(cls))
        self.__name__ = cls.__name__
        self.__qualname__ = cls.__qualname__
        self.__module__ = cls.__module__
        self.__doc__ = cls.__doc__

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        name = self.__name__
        raise TypeError(
            f"Actors cannot be instantiated directly. Instead of '{name}()', use '{name}.remote()'."
        )

    def __regrow_identity__(self, _with_refs: bool) -> bytes:
        self._definition = definition = self._definition or define(self._class)
        return identity(self._class, definition) + definition.fingerprint

    def options(self, **options: Unpack[ActorOptions]) -> ActorClass[C]:
        """The same class with other options for the actors made through what this returns."""
        changed: ActorClass[C] = ActorClass.__new__(ActorClass)
        changed.__dict__.update(self.__dict__)
        changed._options = {**self._options, **options}
        changed._checked = checked(changed._options, ACTOR_OPTIONS, "actors", 0)
        return changed

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[C]:
        """Make an actor; a handle, at once. Raises TypeError for arguments its class does not take
        or that cannot be pickled."""
        self._signature.check(self.__qualname__, args, kwargs)
        options = self._checked
        client = current()
        namespace = options.namespace or client.running.current().namespace
        if options.get_if_exists:
            if not options.name:
                raise ValueError("get_if_exists needs a name")
            try:
                return get_actor(options.name, namespace)
            except ValueError:
                pass  # nobody has the name
        if self._definition is None:
            self._definition = define(self._class)
        definition = self._definition
        call = Call(
            definition=definition,
            name=f"{self.__qualname__}.__init__",
            identity=identity(self._class, definition) + b".__init__",
            kind=ACTOR_CREATION,
            resources=options.resources,
            max_retries=options.max_restarts,
            flags=(RECOVERABLE if options.max_restarts else 0)
            | (DETACHED if options.detached else 0),
            durability=options.durability,
            strategy=options.strategy,
            options=_packed(options),
        )
        methods = self._methods
        if options.max_restarts:
            methods = packed_methods({**unpacked_methods(methods), _RECOVERABLE: Method()})
        if options.detached:
            methods = packed_methods({**unpacked_methods(methods), _maker(client): Method()})

        def create(maker: Client) -> ObjectRef[Any]:
            def reserve(actor_id: bytes) -> None:
                body = [actor_id, options.name, namespace, definition.function_id, methods]
                maker.ask("name_actor", msgspec.msgpack.encode(body))

            [created] = maker.call(call, args, kwargs, reserve if options.name else None)
            return created

        deadline = time.monotonic() + NAMING_S
        while True:
            try:
                if options.detached:
                    created = create_detached(client, f"{namespace}/{options.name}", create)
                else:
                    created = create(client)
                break
            except ValueError as error:
                # Somebody was faster, or this code runs again.
                found = _named(options.name, namespace)
                if found is not None and _may_be_found(options, client, found):
                    return found
                ended = found is not None or time.monotonic() > deadline
                if ended or not isinstance(error, NameTakenError):
                    raise
                time.sleep(NAMING_POLL_S)  # its maker has yet to name it, or dies before
        return ActorHandle(created, definition.function_id, self.__qualname__, methods)


class ActorHandle(Generic[C]):
    """An actor. Its methods are called with ``handle.method.remote(...)``; may be sent anywhere."""

    def __init__(
        self, created: ObjectRef[Any], function_id: bytes, name: str, methods: bytes
    ) -> None:
        self._created = created
        self._actor_id = created.task_id()
        self._definition = FunctionDef(function_id, name, _NO_CODE)
        #: As they travel, and as they are (``regrow._signatures.packed_methods``).
        self._packed_methods = methods
        self._methods = unpacked_methods(methods)
        # Without the handle in them: a cycle would keep the actor alive.
        self._calls: dict[str, Call] = {}

    def __getattr__(self, name: str) -> ActorMethod:
        calls = self.__dict__.get("_calls")
        call = None if calls is None else calls.get(name)
        if call is None:
            if calls is None or not self._has(name):
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
            known = self._methods.get(name, _UNKNOWN)
            call = calls[name] = _method_call(self, name, {"num_returns": known.num_returns})
        return ActorMethod(self, call)

    def _has(self, name: str) -> bool:
        return name in _BUILT_IN or name in self._methods

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *filter(str.isidentifier, self._methods)]

    @property
    def _ray_actor_id(self) -> bytes:
        return self._actor_id

    def __repr__(self) -> str:
        return f"Actor({self._definition.name}, {self._actor_id.hex()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and other._actor_id == self._actor_id

    def __hash__(self) -> int:
        return hash(self._actor_id)

    def __regrow_identity__(self, with_refs: bool) -> bytes:
        return self._actor_id if with_refs else b""

    def __reduce__(self) -> tuple[Any, ...]:
        definition = self._definition
        known = self._packed_methods
        return _handle, (self._created, definition.function_id, definition.name, known)


class ActorMethod:
    """One method of one actor."""

    __slots__ = ("_call", "_handle")

    def __init__(self, handle: ActorHandle[Any], call: Call) -> None:
        self._handle = handle
        self._call = call

    def __call__(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        name = self._call.method
        raise TypeError(
            f"Actor methods cannot be called directly. Instead of running 'object.{name}()', try "
            f"'object.{name}.remote()'."
        )

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method; a reference to its result (a list of them if there are several).

        Raises TypeError for arguments that the method does not take or that cannot be pickled,
        and UnsupportedOptionError for a generator without ``num_returns``.
        """
        call = self._call
        known = self._handle._methods.get(call.method, _UNKNOWN)
        known.signature.check(call.name, args, kwargs)
        if known.is_generator:
            check_generator(call.name, call.num_returns)
        refs = current().call(call, args, kwargs)
        if call.num_returns == 1:
            return refs[0]
        return refs or None

    def options(self, **options: Unpack[MethodOptions]) -> ActorMethod:
        """The same method with other options."""
        changed = {"num_returns": self._call.num_returns, **options}
        return ActorMethod(self._handle, _method_call(self._handle, self._call.method, changed))

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._handle, self._call.method)


def _method_call(handle: ActorHandle[Any], method: str, options: Mapping[str, Any]) -> Call:
    checked_options = checked(options, METHOD_OPTIONS, "actor methods", 0)
    definition = handle._definition
    recoverable = _RECOVERABLE in handle._methods
    return Call(
        definition=definition,
        name=checked_options.name or f"{definition.name}.{method}",
        identity=handle._actor_id + method.encode(),
        kind=ACTOR_CALL,
        num_returns=checked_options.num_returns,
        # It is never lost with its actor, and takes effect once.
        max_retries=-1 if recoverable else 0,
        flags=RECOVERABLE if recoverable else 0,
        durability=checked_options.durability,
        actor_id=handle._actor_id,
        method=method,
    )


def method(*, num_returns: int = 1) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Say how many values a method of an actor returns."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__regrow_num_returns__ = num_returns  # type: ignore[attr-defined]
        return function

    return mark


def _may_be_found(options: Options, client: Client, found: ActorHandle[Any]) -> bool:
    """Whether the actor that has the name is as good as a new one: because it may be any, or
    because it is the one that this code made when it ran before."""
    made_here = options.detached and runs_again(client) and _maker(client) in found._methods
    return options.get_if_exists or made_here


def _maker(client: Client) -> str:
    return _MADE_BY + client.running.current().task_id.hex()


def _named(name: str | None, namespace: str) -> ActorHandle[Any] | None:
    try:
        return get_actor(name, namespace) if name else None
    except ValueError:
        return None


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """The actor of this name. Raises ValueError if there is none."""
    if not name:
        raise ValueError("Please supply a non-empty value to get_actor")
    client = current()
    where = namespace or client.running.current().namespace
    body = client.ask("get_actor", msgspec.msgpack.encode([name, where]))
    found = msgspec.msgpack.decode(body, type=NamedActor)
    created = ref_from_id(object_id(found.actor_id, 0))
    return ActorHandle(created, found.function_id, name, found.methods)


def exit_actor() -> NoReturn:
    """End the actor that runs this. Raises TypeError elsewhere."""
    if not current().running.current().actor_id:
        raise TypeError("exit_actor API is called on a non-actor worker.")
    raise ActorExit


def _handle(
    created: ObjectRef[Any], function_id: bytes, name: str, methods: bytes
) -> ActorHandle[Any]:
    return ActorHandle(created, function_id, name, methods)


def _packed(options: Options) -> bytes:
    """What only the worker needs."""
    names = ("max_concurrency", "name", "checkpoint_every", "checkpoint_interval_s")
    given = {name: value for name in names if (value := getattr(options, name))}
    return msgspec.msgpack.encode(given) if given else b""
