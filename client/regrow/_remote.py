"""Remote functions: ``@remote`` on a function, ``.options()`` and ``.remote()``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NoReturn, ParamSpec, TypeVar, Unpack, overload

import msgspec

from regrow._client import Call, current
from regrow._functions import define, identity
from regrow._options import TASK_OPTIONS, Options, TaskOptions, check_generator, checked
from regrow._refs import ObjectRef
from regrow._signatures import signature_of
from regrow.messages import FunctionDef
from regrow.objectstore import pickling

P = ParamSpec("P")
#: What a call gives: a reference, a list of them, or None, by ``num_returns``.
T = TypeVar("T")


class RemoteFunction(Generic[P, T]):
    """A function that runs as a task when it is called with ``.remote``."""

    def __init__(self, function: Callable[P, Any], options: Mapping[str, Any]) -> None:
        self._function: Callable[P, Any] | None = function
        self._options = options
        self._definition: FunctionDef | None = None
        self._identity = b""
        self._call: Call | None = None
        self._checked = checked(options, TASK_OPTIONS, "remote functions", 1)
        self._signature = signature_of(function)
        self._is_generator = inspect.isgeneratorfunction(function)
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> NoReturn:
        name = getattr(self, "__name__", "f")
        raise TypeError(
            f"Remote functions cannot be called directly. Instead of running '{name}()', try "
            f"'{name}.remote()'."
        )

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Submit a task; a reference to its result (a list of them if ``num_returns`` is not 1).

        Raises TypeError for arguments that the function does not take or that cannot be pickled,
        and UnsupportedOptionError for a generator without ``num_returns``.
        """
        call = self._call or self._prepare()
        self._signature.check(call.definition.name, args, kwargs)
        refs = current().call(call, args, kwargs)
        result: Any = refs[0] if call.num_returns == 1 else refs or None  # several, as in Ray
        return result  # type: ignore[no-any-return]

    @overload
    def options(self, **options: Unpack[TaskOptions]) -> RemoteFunction[P, T]: ...
    @overload
    def options(
        self, *, num_returns: Literal[1] | None, **options: Unpack[TaskOptions]
    ) -> RemoteFunction[P, ObjectRef[Any]]: ...
    @overload
    def options(  # type: ignore[overload-overlap]  # the last one is for other numbers
        self, *, num_returns: Literal[0], **options: Unpack[TaskOptions]
    ) -> RemoteFunction[P, None]: ...
    @overload
    def options(
        self, *, num_returns: int, **options: Unpack[TaskOptions]
    ) -> RemoteFunction[P, list[ObjectRef[Any]]]: ...
    def options(self, **options: Any) -> Any:
        """The same function with other options for the calls made through what this returns."""
        changed: RemoteFunction[P, Any] = RemoteFunction.__new__(RemoteFunction)
        changed.__dict__.update(self.__dict__)
        changed._options = {**self._options, **options}
        changed._checked = checked(changed._options, TASK_OPTIONS, "remote functions", 1)
        if self._definition is None and self._function is not None:
            self._define()
            changed._definition, changed._identity = self._definition, self._identity
        changed._call = None
        return changed

    def _define(self) -> FunctionDef:
        if self._definition is None:
            assert self._function is not None
            self._definition = define(self._function)
            self._identity = identity(self._function, self._definition)
        return self._definition

    def __regrow_identity__(self, _with_refs: bool) -> bytes:
        fingerprint = self._define().fingerprint
        return self._identity + fingerprint

    def _prepare(self) -> Call:
        definition = self._define()
        options = self._checked
        if self._is_generator:
            check_generator(definition.name, options.num_returns)
        self._call = Call(
            definition=definition,
            name=options.name or definition.name,
            identity=self._identity,
            resources=options.resources,
            num_returns=options.num_returns,
            max_retries=options.max_retries,
            flags=options.flags,
            durability=options.durability,
            strategy=options.strategy,
            key=options.key,
            options=_packed(options),
        )
        return self._call

    def __getstate__(self) -> dict[str, Any]:
        # With the definition at hand the function need not travel (nor, in a worker, be loaded).
        # While it is being pickled itself, because it refers to itself, there is none.
        state = self.__dict__.copy()
        state["_call"] = None
        if self._definition is not None:
            state["_function"] = None
            state.pop("__wrapped__", None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _packed(options: Options) -> bytes:
    """What only the worker needs."""
    if isinstance(options.retry_exceptions, tuple):
        return msgspec.msgpack.encode({"retry": pickling.dumps(options.retry_exceptions)})
    return b""
