"""cloudpickle, with each code object's file kept.

From 3.1.3 on cloudpickle names every pickled function's file ``<dynamic-code>``, for payloads that
are the same wherever a function was defined. What regrow recognizes code by leaves the file out
already (``client/regrow/_functions.py``), and a worker's traceback must name the user's file and
show its lines.
"""

from __future__ import annotations

import io
import pickle
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

_PROTOCOL = 5
# Where CodeType's constructor takes the file, in every Python from 3.8 on.
_FILE = 10
_reduce_code: Callable[[CodeType], tuple[Any, tuple[Any, ...]]] = (
    cloudpickle.Pickler.dispatch_table[CodeType]
)


def _reduce_code_with_file(code: CodeType) -> tuple[Any, tuple[Any, ...]]:
    build, arguments = _reduce_code(code)
    return build, (*arguments[:_FILE], code.co_filename, *arguments[_FILE + 1 :])


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    dispatch_table: ClassVar = ChainMap(
        {CodeType: _reduce_code_with_file}, *cloudpickle.Pickler.dispatch_table.maps
    )


def dumps(
    value: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None
) -> bytes:
    """Like ``cloudpickle.dumps`` with protocol 5. Raises what a ``__reduce__`` in value raises."""
    with io.BytesIO() as file:
        _Pickler(file, protocol=_PROTOCOL, buffer_callback=buffer_callback).dump(value)
        return file.getvalue()
