"""Functions and classes as the log keeps them: pickled once, addressed by content.

Decides what identifies a function's code (its fingerprint) and what of its captured values enters
the identity of its calls.  The bytes of a pickle do neither: they differ between equal functions.
"""

from __future__ import annotations

import importlib
import os
import sys
from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any

import cloudpickle
import msgspec

from regrow.ids import function_id
from regrow.messages import FunctionDef
from regrow.objectstore import pickling
from regrow.objectstore.unpicklable import explain

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def qualified_name(target: Any) -> str:
    """The name of a function or class as people know it, with its module."""
    return f"{target.__module__}.{target.__qualname__}"


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


def fingerprint(target: Any) -> bytes:
    """What changes when the code of a function or of a class's methods changes; 16 bytes."""
    digest = blake2b(digest_size=16, person=b"fingerprint")
    for function in _functions(target):
        _feed(digest, function.__code__)
    return digest.digest()


def identity(target: Any, definition: FunctionDef) -> bytes:
    """What calls of ``target`` are told apart by: its name and what it captured.

    Where a captured value is not a plain one the pickle stands for it: if that is unstable, a
    replay runs again what it could have found, and is never given another function's result.
    """
    name = qualified_name(target).encode()
    captured = _captured(target)
    if all(type(value) in _PLAIN for value in captured):
        return name + b"\0" + repr(captured).encode() if captured else name
    return name + b"\0" + definition.function_id


def _captured(target: Any) -> list[Any]:
    values: list[Any] = []
    for function in _functions(target):
        for cell in function.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if content is not target:
                values.append(content)
        values.extend(function.__defaults__ or ())
        for key, value in sorted((function.__kwdefaults__ or {}).items()):
            values.extend((key, value))
    return values


def _functions(target: Any) -> list[FunctionType]:
    """The function itself, or the methods of a class, by name."""
    if not isinstance(target, type):
        return [target] if isinstance(target, FunctionType) else []
    members = [getattr(member, "__func__", member) for _, member in sorted(vars(target).items())]
    return [member for member in members if isinstance(member, FunctionType)]


def _feed(digest: blake2b, code: CodeType) -> None:
    """Everything of a code object but where it stands in its file."""
    digest.update(code.co_code)
    digest.update(repr((code.co_name, code.co_names, code.co_varnames, code.co_flags)).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _feed(digest, constant)
        elif isinstance(constant, frozenset):
            digest.update(repr(sorted(map(repr, constant))).encode())
        else:
            digest.update(repr(constant).encode())
