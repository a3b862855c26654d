"""regrow: Ray's tasks, actors and shared-memory objects on a control store that never forgets.

    import regrow as ray

Names are loaded when they are first used, so that the vocabulary (``regrow.messages`` and its like)
can be imported by daemons without the client.

PYTEST_DONT_REWRITE: a program may import this before it calls pytest, which would warn of that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from regrow import actor as actor
    from regrow import exceptions as exceptions
    from regrow._actor import ActorClass as ActorClass
    from regrow._actor import ActorHandle as ActorHandle
    from regrow._actor import exit_actor as exit_actor
    from regrow._actor import get_actor as get_actor
    from regrow._actor import method as method
    from regrow._api import available_resources as available_resources
    from regrow._api import cluster_resources as cluster_resources
    from regrow._api import get as get
    from regrow._api import init as init
    from regrow._api import is_initialized as is_initialized
    from regrow._api import kill as kill
    from regrow._api import nodes as nodes
    from regrow._api import put as put
    from regrow._api import remote as remote
    from regrow._api import shutdown as shutdown
    from regrow._api import wait as wait
    from regrow._refs import ObjectRef as ObjectRef
    from regrow._remote import RemoteFunction as RemoteFunction
    from regrow._runtime_context import get_runtime_context as get_runtime_context
    from regrow._transaction import idempotency_key as idempotency_key
    from regrow._transaction import transaction as transaction

__version__ = "0.1.0"

_HOME_OF: Final = {
    "ActorClass": "_actor",
    "ActorHandle": "_actor",
    "ObjectRef": "_refs",
    "RemoteFunction": "_remote",
    "available_resources": "_api",
    "cluster_resources": "_api",
    "exit_actor": "_actor",
    "get": "_api",
    "get_actor": "_actor",
    "get_runtime_context": "_runtime_context",
    "idempotency_key": "_transaction",
    "init": "_api",
    "is_initialized": "_api",
    "kill": "_api",
    "method": "_actor",
    "nodes": "_api",
    "put": "_api",
    "remote": "_api",
    "shutdown": "_api",
    "transaction": "_transaction",
    "wait": "_api",
}

__all__ = [*_HOME_OF, "actor", "exceptions"]


def __getattr__(name: str) -> Any:
    if name == "exceptions":
        return importlib.import_module("regrow.exceptions")
    module = _HOME_OF.get(name)
    if module is None and name != "actor":
        raise AttributeError(f"module 'regrow' has no attribute {name!r}")
    # The API module registers how a process connects, whatever name is asked for first.
    importlib.import_module("regrow._api")
    if name == "actor":
        return importlib.import_module("regrow.actor")
    value = getattr(importlib.import_module(f"regrow.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
