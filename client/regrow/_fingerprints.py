"""What a function's or class's code is recognized by: its name, its fingerprint, what it captured.

The bytes of a pickle are none of that: they differ between equal functions.
"""

from __future__ import annotations

from hashlib import blake2b
from types import CodeType, FunctionType
from typing import Any, Final

#: The first bytes of a fingerprint are those of the module's name.
MODULE_SIZE: Final = 4
_CODE_SIZE: Final = 12


def qualified_name(target: Any) -> str:
    """The name of a function or class as people know it, with its module."""
    return f"{target.__module__}.{target.__qualname__}"


def fingerprint(target: Any) -> bytes:
    """What changes when the code of a function or of a class's methods changes, or when it goes to
    another module; 16 bytes."""
    module = str(getattr(target, "__module__", None)).encode()
    digest = blake2b(digest_size=_CODE_SIZE, person=b"fingerprint")
    for function in functions_of(target):
        _feed(digest, function.__code__)
    return blake2b(module, digest_size=MODULE_SIZE).digest() + digest.digest()


def captured(target: Any) -> list[Any]:
    """The values in its closure and its defaults, in order."""
    values: list[Any] = []
    for function in functions_of(target):
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


def functions_of(target: Any) -> list[FunctionType]:
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
        else:
            digest.update(_in_order(constant).encode())


def _in_order(constant: object) -> str:
    """Its repr, whatever the order of its sets is."""
    if isinstance(constant, frozenset):
        return f"frozenset{sorted(map(_in_order, constant))}"
    if isinstance(constant, tuple):
        return f"tuple{[_in_order(item) for item in constant]}"
    return repr(constant)
