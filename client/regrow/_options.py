"""The options of tasks, actors and nodes: Ray's names, checked when they are given.

An option that this version does not have is an error, never accepted and ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypedDict

from msgspec import Struct

from regrow.config import OBJECT_STORE_MIN, RESOURCE_UNIT
from regrow.exceptions import UnsupportedOptionError
from regrow.messages import CHECKPOINT, KEYED, RETRY_EXCEPTIONS

DEFAULT_MAX_RETRIES: Final = 3
#: In units it is a number of 64 bits.
_AMOUNT_MAX: Final = 1e14
#: Resources that have an option of their own.
_OPTION_OF: Final = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
}


class _Shared(TypedDict, total=False):
    num_cpus: float | None
    num_gpus: float | None
    memory: float | None
    resources: Mapping[str, float] | None
    name: str | None
    durability: Literal["commit", "async"] | None
    scheduling_strategy: Any


class TaskOptions(_Shared, total=False):
    """Options of remote functions. ``num_returns`` comes beside them: it decides what a call
    returns."""

    max_retries: int | None
    retry_exceptions: bool | list[type[BaseException]] | tuple[type[BaseException], ...] | None
    key: str | bytes | None
    checkpoint: bool | None


class ActorOptions(_Shared, total=False):
    """Options of actors."""

    namespace: str | None
    get_if_exists: bool
    max_concurrency: int | None
    lifetime: Literal["detached", "non_detached"] | None
    max_restarts: int | None
    max_task_retries: int | None
    checkpoint_every: int | None
    checkpoint_interval_s: float | None


class RemoteOptions(TaskOptions, ActorOptions, total=False):
    """What ``remote`` takes, before it knows what it decorates."""


class MethodOptions(TypedDict, total=False):
    """Options of calls of actors."""

    num_returns: int | None
    name: str | None
    durability: Literal["commit", "async"] | None


TASK_OPTIONS: Final = frozenset(TaskOptions.__annotations__) | {"num_returns"}
ACTOR_OPTIONS: Final = frozenset(ActorOptions.__annotations__)
METHOD_OPTIONS: Final = frozenset(MethodOptions.__annotations__)

#: Ray's options that this version does not have; those values mean "not used".
_LATER: Final[dict[str, tuple[Any, ...]]] = {
    "accelerator_type": (None,),
    "allow_out_of_order_execution": (None, False),
    "concurrency_group": (None,),
    "concurrency_groups": (None, {}),
    "enable_task_events": (True,),
    "fallback_strategy": (None,),
    "job": (None,),
    "label_selector": (None, {}),
    "max_calls": (None, 0),
    "max_pending_calls": (None, -1),
    "object_store_memory": (None, 0),
    "placement_group": (None, "default"),
    "placement_group_bundle_index": (None, -1),
    "placement_group_capture_child_tasks": (None, False),
    "runtime_env": (None, {}),
    "_labels": (None, {}),
    "_metadata": (None,),
}

_HINTS: Final = {
    "runtime_env": "Workers run in the environment of their node.",
    "job": "A job is named in init(job=...).",
}


class Options(Struct, frozen=True):
    """Options, checked. ``resources`` as in ``TaskSpec``."""

    resources: dict[str, int] | None = None
    num_returns: int = 1
    max_retries: int = DEFAULT_MAX_RETRIES
    #: False, True (every exception) or a tuple of exception types.
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    name: str = ""
    flags: int = 0
    #: Of the submitter's replies; "" is what ``init`` said.
    durability: str = ""
    key: bytes | None = None
    strategy: str = ""
    namespace: str | None = None
    get_if_exists: bool = False
    #: It outlives its creator and its handles.
    detached: bool = False
    #: 0: not given.
    max_concurrency: int = 0
    max_restarts: int = 0
    #: Of an actor that restarts: its state is saved after so many calls, and so often; 0: not so.
    checkpoint_every: int = 0
    checkpoint_interval_s: float = 0.0


def checked(raw: Mapping[str, Any], valid: frozenset[str], what: str, default_cpus: int) -> Options:
    """Check options by name and value.

    ``what`` ("remote functions", "actors", "actor methods") is for messages; ``default_cpus`` is
    what a task or actor takes that does not say.  Raises ValueError or TypeError for wrong ones
    and UnsupportedOptionError for those that this version does not have.
    """
    for name, value in raw.items():
        if name not in valid:
            _refuse(name, value, valid, what)
    flags = 0
    retry = _retry_exceptions(raw.get("retry_exceptions", False))
    if retry is not False:
        flags |= RETRY_EXCEPTIONS
    key = _key(raw.get("key"))
    if key is not None:
        flags |= KEYED
    if raw.get("checkpoint"):
        flags |= CHECKPOINT
    return Options(
        resources=_resources(raw, default_cpus, what),
        num_returns=num_returns(raw.get("num_returns", 1)),
        max_retries=_max_retries(raw.get("max_retries")),
        retry_exceptions=retry,
        name=_text(raw, "name") or "",
        flags=flags,
        durability=check_durability(raw.get("durability")),
        key=key,
        strategy=_strategy(raw.get("scheduling_strategy")),
        namespace=_text(raw, "namespace"),
        get_if_exists=bool(raw.get("get_if_exists", False)),
        detached=_detached(raw),
        max_concurrency=_positive(raw, "max_concurrency"),
        max_restarts=_max_restarts(raw),
        checkpoint_every=_positive(raw, "checkpoint_every"),
        checkpoint_interval_s=_checkpoint_interval(raw),
    )


def _refuse(name: str, value: Any, valid: frozenset[str], what: str) -> None:
    if name not in _LATER:
        raise ValueError(
            f"Invalid option keyword {name} for {what}. Valid ones are {sorted(valid)}."
        )
    if not any(value == unused for unused in _LATER[name]):
        hint = _HINTS.get(name, "Leave it out.")
        raise UnsupportedOptionError(
            f"{name}={value!r} for {what} is not in this version of regrow. {hint}"
        )


def check_generator(name: str, count: int) -> None:
    """Refuse a call of a generator whose results are not counted."""
    if count == 1:
        raise UnsupportedOptionError(
            f"{name} is a generator: with num_returns=N its N values become the results of a call, "
            f"but a call that gives them one by one is not in this version of regrow. Say how many "
            f"there are, or return a list of regrow.put(...) references instead."
        )


def num_returns(value: Any) -> int:
    """Check ``num_returns``; None is 1."""
    if value is None:
        return 1
    if value in ("dynamic", "streaming"):
        raise UnsupportedOptionError(
            f"num_returns={value!r} (generators) is not in this version of regrow. Say how many "
            f"values there are (num_returns=N), or return a list of regrow.put(...) references "
            f"instead."
        )
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(
            f"The keyword 'num_returns' only accepts None, a non-negative integer, 'streaming' or "
            f"'dynamic' (for generators); got {value!r}"
        )
    return value


def check_node(given: Mapping[str, Any], where: str) -> None:
    """Check what a node is to offer; ``where`` ("init()") is for messages.

    Raises ValueError or TypeError.
    """
    for name in ("num_cpus", "num_gpus", "memory", "object_store_memory"):
        if given.get(name) is not None:
            _units(name, given[name], where)
    arena = given.get("object_store_memory")
    if arena is not None and arena < OBJECT_STORE_MIN:
        raise ValueError(
            f"object_store_memory of {where} must be {OBJECT_STORE_MIN} bytes at least, got "
            f"{arena!r}"
        )
    for name in _custom(given, where):
        if name.startswith("node:"):
            raise ValueError(
                f"resources of {where} cannot have {name!r}: each node has one such by itself"
            )


def _resources(raw: Mapping[str, Any], default_cpus: int, where: str) -> dict[str, int] | None:
    units = _custom(raw, where)
    cpus = raw.get("num_cpus")
    given = {"num_cpus": default_cpus if cpus is None else cpus}
    given |= {name: raw[name] for name in ("num_gpus", "memory") if raw.get(name) is not None}
    for resource, option in _OPTION_OF.items():
        if option in given:
            units[resource] = _units(option, given[option], where)
    units = {name: amount for name, amount in units.items() if amount}
    if default_cpus:
        return None if units == {"CPU": RESOURCE_UNIT} else units
    # An actor that names nothing needs a CPU to be created, and none to live, as in Ray.
    return None if cpus is None and not units else units


def _custom(raw: Mapping[str, Any], where: str) -> dict[str, int]:
    """The resources that the user has named."""
    custom = raw.get("resources") or {}
    if not isinstance(custom, Mapping):
        raise TypeError(f"resources of {where} must be a dict, got {custom!r}")
    for name in custom:
        if not isinstance(name, str) or not name:
            raise TypeError(f"the names in resources of {where} must be strings, got {name!r}")
        if name in _OPTION_OF:
            raise ValueError(
                f"resources of {where} cannot have {name!r}: use {_OPTION_OF[name]} instead"
            )
    return {name: _units(f"resources[{name!r}]", custom[name], where) for name in custom}


def _units(name: str, amount: Any, where: str) -> int:
    """The one check of an amount; ``name`` is the option's, ``where`` it was given."""
    what = f"{name} of {where}"
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise TypeError(f"{what} must be a number, got {amount!r}")
    if not amount >= 0:
        raise ValueError(f"{what} must be a non-negative number, got {amount!r}")
    if amount > _AMOUNT_MAX:
        raise ValueError(f"{what} must be {_AMOUNT_MAX:g} at most, got {amount!r}")
    if name == "num_gpus" and amount > 1 and amount != int(amount):
        raise ValueError(f"{what} must be whole if it is over one, got {amount!r}")
    units = round(amount * RESOURCE_UNIT)
    if amount and not units:
        raise ValueError(f"{what} must be 0 or {1 / RESOURCE_UNIT} at least, got {amount!r}")
    return units


def _max_retries(value: Any) -> int:
    if value is None:
        return DEFAULT_MAX_RETRIES
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError(
            f"The keyword 'max_retries' only accepts None, 0, -1 or a positive integer, where -1 "
            f"is without limit; got {value!r}"
        )
    return value


def _max_restarts(raw: Mapping[str, Any]) -> int:
    restarts = _limit(raw, "max_restarts")
    retries = _limit(raw, "max_task_retries")
    if retries and not restarts:
        raise ValueError(
            "max_task_retries needs max_restarts: an actor that does not restart retries no call"
        )
    # Calls of an actor that restarts are never lost and never take effect twice, whatever
    # max_task_retries says.
    return restarts


def _detached(raw: Mapping[str, Any]) -> bool:
    lifetime = raw.get("lifetime")
    if lifetime not in (None, "detached", "non_detached"):
        raise ValueError(
            f"actor `lifetime` argument must be one of 'detached', 'non_detached' and None, got "
            f"{lifetime!r}"
        )
    if lifetime == "detached" and not raw.get("name"):
        raise ValueError("lifetime='detached' needs a name, by which others find the actor")
    return lifetime == "detached"


def _checkpoint_interval(raw: Mapping[str, Any]) -> float:
    interval = raw.get("checkpoint_interval_s")
    for name in ("checkpoint_every", "checkpoint_interval_s"):
        if raw.get(name) is None:
            continue
        if not raw.get("max_restarts"):
            raise ValueError(f"{name} needs max_restarts: only an actor that restarts is saved")
        if (raw.get("max_concurrency") or 1) > 1:
            raise ValueError(
                f"{name} needs calls one at a time (max_concurrency=1): between calls that overlap "
                "there is no state to save"
            )
    if interval is None:
        return 0.0
    if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
        raise ValueError(f"checkpoint_interval_s must be a positive number, got {interval!r}")
    return float(interval)


def _limit(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < -1:
        raise ValueError(
            f"The keyword {name!r} only accepts None, 0, -1 or a positive integer, where -1 is "
            f"without limit; got {value!r}"
        )
    return value


def _retry_exceptions(value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool) or value is None:
        return bool(value)
    if isinstance(value, list | tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in value
    ):
        return tuple(value) if value else False
    raise TypeError(
        f"retry_exceptions must be either a boolean or a list of exceptions, got {value!r}"
    )


def check_durability(value: Any) -> str:
    """Check a durability level; "" where none is given."""
    if value not in (None, "commit", "async"):
        raise ValueError(f"durability is 'commit' or 'async', got {value!r}")
    return value or ""


def _key(value: Any) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str | bytes) or not value:
        raise TypeError(f"key must be a string or bytes that are not empty, got {value!r}")
    return value.encode() if isinstance(value, str) else value


def _text(raw: Mapping[str, Any], name: str) -> str | None:
    value = raw.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be None or a string that is not empty, got {value!r}")
    return value


def _positive(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
    return value


def _strategy(value: Any) -> str:
    if value is None or value == "DEFAULT":
        return ""
    if value == "SPREAD":
        return "SPREAD"
    if hasattr(value, "node_id") and hasattr(value, "soft"):  # NodeAffinitySchedulingStrategy
        if not str(value.node_id).isdecimal():
            raise ValueError(
                f"node_id={value.node_id!r} is no node's; regrow.nodes() tells them (NodeID)"
            )
        return f"node:{value.node_id}" + (":soft" if value.soft else "")
    raise UnsupportedOptionError(
        f"scheduling_strategy={value!r} is not in this version of regrow; it knows 'DEFAULT', "
        f"'SPREAD' and node affinity"
    )
