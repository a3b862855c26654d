"""Functions and classes as the log keeps them: pickled once, addressed by content.

Decides what of a function enters the identity of its calls; what its code is recognized by, says
``regrow._fingerprints``.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

import cloudpickle
import msgspec

from regrow._canonical import canonical_digest
from regrow._fingerprints import captured, fingerprint, qualified_name
from regrow.ids import function_id
from regrow.messages import FunctionDef
from regrow.objectstore import pickling
from regrow.objectstore.unpicklable import explain

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def define(target: Any) -> FunctionDef:
    """Pickle ``target``. Raises TypeError that says what in it cannot be pickled, and why.

    What is stored names the program's own folders too, so that a worker finds the modules to which
    the pickle refers.
    """
    try:
        pickled = pickling.dumps(target)
    except Exception as error:  # anything that a captured value's __reduce__ may raise
        raise TypeError(
            f"{target.__qualname__} cannot be sent to a worker: {explain(target, error)}"
        ) from error
    stored = msgspec.msgpack.encode((_program_folders(), pickled))
    return FunctionDef(function_id(stored), target.__qualname__, stored, fingerprint(target))


def as_other_code(definition: FunctionDef, known: bytes) -> FunctionDef:
    """The same function, logged as if its code were that with the fingerprint ``known``: its calls
    stand beside those of that code."""
    number = function_id(definition.function_id + known)
    return msgspec.structs.replace(definition, function_id=number, fingerprint=known)


def load(definition: FunctionDef) -> Any:
    """The function or class again, in a worker. Raises what unpickling raises."""
    folders, pickled = msgspec.msgpack.decode(definition.pickled, type=tuple[list[str], bytes])
    for folder in folders:
        if folder not in sys.path:
            sys.path.append(folder)
            importlib.invalidate_caches()
    return cloudpickle.loads(pickled)


def _program_folders() -> list[str]:
    """Folders on this program's path that are none of Python's own."""
    installed = tuple({sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix})
    folders = [os.path.abspath(folder) for folder in sys.path]
    return [f for f in folders if not f.startswith(installed) and os.path.isdir(f)]


def identity(target: Any, definition: FunctionDef) -> bytes:
    """What calls of ``target`` are told apart by beside its code: its name and what it captured.

    Where a captured value cannot be digested the pickle stands for it: if that is unstable, a
    replay runs again what it could have found, and is never given another function's result.
    """
    name = qualified_name(target).encode()
    values = captured(target)
    if all(type(value) in _PLAIN for value in values):
        return name + b"\0" + repr(values).encode() if values else name
    return name + b"\0" + (canonical_digest(values) or definition.function_id)
