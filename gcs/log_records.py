"""The parameters of ``regrow.append`` for a batch: one binary array per column.

A hot path, once per task: columns are picked by list comprehensions and joined in C, because
psycopg's own dumpers would cost several times as much.  Decides only how values are laid out:

* a column that is null in every row is a null array;
* one that is never null and the same in every row is an array of that one value;
* duplicates that one statement must not meet (two new holders of a task, two states of an actor)
  are reduced to the last.

The order of ``PARAMETERS`` is that of the SQL function.

``python benchmarks/append.py``, 2 cores, CPU a row at 50 / 200 / 1,000 rows a batch: a spec with
its outcome 2.4 / 1.5 / 1.3 us here and 8.8 / 5.7 / 5.0 us in Postgres; an outcome alone, of a spec
that was logged before, 1.0 us and 8.5 us at 200. One record alone takes 0.39 ms with its commit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final, TypeVar

import msgspec

from regrow.gcs.operations import Append, Batch, Outcome, Submitted
from regrow.ids import object_id
from regrow.messages import DRIVER_SHIFT, encode

Parameter = bytes | None
T = TypeVar("T")

_BYTEA: Final = 17
_TEXT: Final = 25
_INT2: Final = 21
_INT4: Final = 23
_INT8: Final = 20
_BOOL: Final = 16

_int4: Final = struct.Struct(">i").pack
_int8: Final = struct.Struct(">q").pack
_header: Final = struct.Struct(">iiIii").pack
_json: Final = msgspec.json.Encoder(order="sorted").encode

_FOUR: Final = _int4(4)
_TWO: Final = _int4(2)
_EIGHT: Final = _int4(8)
_NULL: Final = _int4(-1)
#: Of values so short their length is looked up; the others' is packed.
_LENGTHS: Final = [_int4(n) for n in range(1024)]
_SMALL: Final = [_int4(n) for n in range(1024)]

#: Name and type of each parameter of ``regrow.append``.
PARAMETERS: Final = (
    ("p_node", "int"), ("p_incarnation", "int"), ("p_number", "bigint"), ("p_jobs", "int[]"),
    ("f_id", "bytea[]"), ("f_name", "text[]"), ("f_pickled", "bytea[]"),
    ("f_fingerprint", "bytea[]"),
    ("s_task", "bytea[]"), ("s_job", "int[]"), ("s_parent", "bytea[]"), ("s_function", "bytea[]"),
    ("s_name", "text[]"), ("s_kind", "smallint[]"), ("s_actor", "bytea[]"), ("s_deps", "bytea[]"),
    ("s_nested", "bytea[]"), ("s_spec", "bytea[]"), ("s_resources", "text[]"),
    ("s_submitter", "int[]"), ("s_holder", "int[]"), ("s_holder_incarnation", "int[]"),
    ("s_max_retries", "int[]"), ("s_num_returns", "int[]"), ("s_attempt", "int[]"),
    ("s_status", "smallint[]"), ("s_actor_seq", "int[]"), ("s_error", "text[]"),
    ("s_result", "bytea[]"), ("s_size", "bigint[]"), ("s_digest", "bytea[]"),
    ("s_refs", "bytea[]"), ("s_duration", "bigint[]"),
    ("h_task", "bytea[]"), ("h_attempt", "int[]"), ("h_node", "int[]"),
    ("h_incarnation", "int[]"),
    ("o_task", "bytea[]"), ("o_attempt", "int[]"), ("o_status", "smallint[]"),
    ("o_actor_seq", "int[]"), ("o_error", "text[]"), ("o_result", "bytea[]"),
    ("o_size", "bigint[]"), ("o_digest", "bytea[]"), ("o_refs", "bytea[]"),
    ("o_duration", "bigint[]"),
    ("x_object", "bytea[]"), ("x_size", "bigint[]"), ("x_digest", "bytea[]"),
    ("x_data", "bytea[]"), ("x_refs", "bytea[]"),
    ("p_object", "bytea[]"), ("p_job", "int[]"), ("p_parent", "bytea[]"), ("p_size", "bigint[]"),
    ("p_digest", "bytea[]"), ("p_data", "bytea[]"), ("p_refs", "bytea[]"),
    ("t_object", "bytea[]"), ("t_path", "text[]"),
    ("a_actor", "bytea[]"), ("a_job", "int[]"), ("a_alive", "boolean[]"), ("a_error", "bytea[]"),
    ("e_kind", "text[]"), ("e_subject", "bytea[]"), ("e_message", "text[]"),
    ("r_task", "bytea[]"), ("r_differs", "boolean[]"),
    ("c_actor", "bytea[]"), ("c_seq", "int[]"), ("c_object", "bytea[]"), ("c_custom", "boolean[]"),
    ("p_drivers", "int[]"),
)  # fmt: skip

#: What a statement's part for a kind of record looks like when there is none.
_NO_FUNCTIONS: Final[list[Parameter]] = [None] * 4
_NO_SUBMITTED: Final[list[Parameter]] = [None] * 25
_NO_HOLDERS: Final[list[Parameter]] = [None] * 4
_NO_OUTCOMES: Final[list[Parameter]] = [None] * 10
_NO_RETURNS: Final[list[Parameter]] = [None] * 5
_NO_PUTS: Final[list[Parameter]] = [None] * 7
_NO_REST: Final[list[Parameter]] = [None] * 15


def encode_append(append: Append) -> list[Parameter]:
    """The parameters of ``regrow.append``, all in binary format."""
    batch = append.batch
    submitted = batch.submitted
    # The specs of several drivers of one job are as those of several jobs.
    drivers = dict.fromkeys([(s.header.job, s.header.flags >> DRIVER_SHIFT) for s in submitted])
    if batch.puts:
        there = {job for job, _ in drivers}
        drivers.update(dict.fromkeys((put.job, 0) for put in batch.puts if put.job not in there))
    numbers = {key: place for place, key in enumerate(drivers, 1)}
    finished = [s.outcome for s in submitted if s.outcome is not None]
    further = _further_returns(chain(finished, batch.outcomes))
    return [
        _int4(append.node),
        _int4(append.incarnation),
        _int8(append.number),
        _ints([job for job, _ in drivers]) if drivers else None,
        *(_functions(batch) if batch.functions else _NO_FUNCTIONS),
        *(_submitted(submitted, numbers) if submitted else _NO_SUBMITTED),
        *(_holders(batch) if batch.holders else _NO_HOLDERS),
        *(_outcomes(batch.outcomes) if batch.outcomes else _NO_OUTCOMES),
        *(further or _NO_RETURNS),
        *(_puts(batch, numbers) if batch.puts else _NO_PUTS),
        *_rest(batch),
        _ints([driver for _, driver in drivers]) if drivers else None,
    ]


# --- kinds of records -----------------------------------------------------------------------------


def _functions(batch: Batch) -> list[Parameter]:
    functions = batch.functions
    return [
        _blobs([f.function_id for f in functions]),
        _texts([f.name for f in functions]),
        _blobs([f.pickled for f in functions]),
        _optional_blobs([f.fingerprint or None for f in functions]),
    ]


def _submitted(
    submitted: Sequence[Submitted], numbers: dict[tuple[int, int], int]
) -> list[Parameter]:
    headers = [s.header for s in submitted]
    outcomes = [s.outcome for s in submitted]
    holders = [s.holder for s in submitted]
    one_job = len(numbers) == 1
    # A spec without outcome has the attempt it begins with, and is pending.
    ended = [
        o if o is not None else Outcome(s.header.task_id, s.attempt, 0, [])
        for o, s in zip(outcomes, submitted, strict=True)
    ]
    return [
        _blobs([h.task_id for h in headers]),
        None if one_job else _ints([numbers[h.job, h.driver] for h in headers]),
        _uniform_blobs([h.parent_id for h in headers]),
        _uniform_blobs([h.function_id for h in headers]),
        _uniform(_texts, [h.name for h in headers]),
        _uniform(_shorts, [h.kind for h in headers]),
        _optional_blobs([h.actor_id or None for h in headers]),
        _optional_blobs([b"".join(h.deps) if h.deps else None for h in headers]),
        _optional_blobs([b"".join(h.nested) if h.nested else None for h in headers]),
        _blobs([s.spec for s in submitted]),
        _optional_blobs(
            [None if h.resources is None else _json(h.resources) for h in headers], _TEXT
        ),
        _uniform(_ints, [s.submitter for s in submitted]),
        _uniform(_ints, [holder[0] for holder in holders]),
        _uniform(_ints, [holder[1] for holder in holders]),
        _uniform(_ints, [h.max_retries for h in headers]),
        _uniform(_ints, [h.num_returns for h in headers]),
        *_ends(ended),
    ]


def _outcomes(outcomes: Sequence[Outcome]) -> list[Parameter]:
    return [_blobs([o.task_id for o in outcomes]), *_ends(outcomes)]


def _ends(outcomes: Sequence[Outcome]) -> list[Parameter]:
    """The nine columns that say how tasks ended."""
    firsts = [o.returns[0] if o.returns else None for o in outcomes]
    data = [None if r is None else r.data for r in firsts]
    sizes = [
        None if r is None or (r.data is not None and r.size == len(r.data)) else r.size
        for r in firsts
    ]
    return [
        _uniform(_ints, [o.attempt for o in outcomes]),
        _uniform(_shorts, [o.status for o in outcomes]),
        _optional_ints([o.actor_seq or None for o in outcomes]),
        _optional_texts([o.error or None for o in outcomes]),
        _optional_blobs(data),
        _optional_longs(sizes),
        _optional_blobs([None if r is None else r.digest or None for r in firsts]),
        _optional_blobs([b"".join(r.refs) if r is not None and r.refs else None for r in firsts]),
        _optional_longs([o.duration_us if o.status else None for o in outcomes]),
    ]


def _further_returns(outcomes: Iterable[Outcome]) -> list[Parameter]:
    """Columns of second and further returns; empty if there are none."""
    further = [
        (object_id(o.task_id, index), o.returns[index])
        for o in outcomes
        if len(o.returns) > 1
        for index in range(1, len(o.returns))
    ]
    if not further:
        return []
    return [
        _blobs([object_id for object_id, _ in further]),
        _longs([r.size for _, r in further]),
        _optional_blobs([r.digest or None for _, r in further]),
        _optional_blobs([r.data for _, r in further]),
        _optional_blobs([b"".join(r.refs) or None for _, r in further]),
    ]


def _holders(batch: Batch) -> list[Parameter]:
    holders = list({h.task_id: h for h in batch.holders}.values())
    return [
        _blobs([h.task_id for h in holders]),
        _ints([h.attempt for h in holders]),
        _ints([h.holder[0] for h in holders]),
        _ints([h.holder[1] for h in holders]),
    ]


def _puts(batch: Batch, numbers: dict[tuple[int, int], int]) -> list[Parameter]:
    puts = batch.puts
    places = {job: place for (job, _), place in numbers.items()}
    return [
        _blobs([p.object_id for p in puts]),
        None if len(numbers) == 1 else _ints([places[p.job] for p in puts]),
        _uniform_blobs([p.parent_id for p in puts]),
        _longs([p.size for p in puts]),
        _optional_blobs([p.digest or None for p in puts]),
        _optional_blobs([p.data for p in puts]),
        _optional_blobs([b"".join(p.refs) or None for p in puts]),
    ]


def _rest(batch: Batch) -> list[Parameter]:
    """Records of which there are few."""
    if not (batch.stored or batch.actors or batch.events or batch.rebuilt or batch.checkpoints):
        return _NO_REST
    stored = dict(batch.stored)
    actors = list({actor[0]: actor for actor in batch.actors}.values())
    errors = [None if error is None else encode(error) for _, _, _, error in actors]
    rebuilt = dict(batch.rebuilt)
    return [
        *([_blobs(list(stored)), _texts(list(stored.values()))] if stored else [None] * 2),
        *(
            [
                _blobs([actor_id for actor_id, _, _, _ in actors]),
                _ints([job for _, job, _, _ in actors]),
                _bools([alive for _, _, alive, _ in actors]),
                _optional_blobs(errors),
            ]
            if actors
            else [None] * 4
        ),
        *(
            [
                _texts([event.kind for event in batch.events]),
                _optional_blobs([event.subject or None for event in batch.events]),
                _texts([event.message for event in batch.events]),
            ]
            if batch.events
            else [None] * 3
        ),
        *([_blobs(list(rebuilt)), _bools(list(rebuilt.values()))] if rebuilt else [None] * 2),
        *(_checkpoints(batch) if batch.checkpoints else [None] * 4),
    ]


def _checkpoints(batch: Batch) -> list[Parameter]:
    found = {(actor_id, seq): (oid, custom) for actor_id, seq, oid, custom in batch.checkpoints}
    return [
        _blobs([actor_id for actor_id, _ in found]),
        _ints([seq for _, seq in found]),
        _optional_blobs([oid or None for oid, _ in found.values()]),
        _bools([custom for _, custom in found.values()]),
    ]


# --- arrays, in Postgres's binary format ----------------------------------------------------------


def _array(kind: int, count: int, body: bytes) -> bytes:
    """One dimension, from 1. Whether there are nulls Postgres sees by itself."""
    return _header(1, 0, kind, count, 1) + body


def _length(size: int) -> bytes:
    return _LENGTHS[size] if size < 1024 else _int4(size)


def _blobs(values: Sequence[bytes], kind: int = _BYTEA) -> bytes:
    parts = [part for value in values for part in (_length(len(value)), value)]
    return _array(kind, len(values), b"".join(parts))


def _optional_blobs(values: Sequence[bytes | None], kind: int = _BYTEA) -> Parameter:
    if values.count(None) == len(values):
        return None
    parts: list[bytes] = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(value)), value)
    return _array(kind, len(values), b"".join(parts))


def _text(value: str) -> bytes:
    # Postgres has no NUL in text.
    return value.replace("\0", "\ufffd").encode(errors="replace")


def _texts(values: Sequence[str]) -> bytes:
    return _blobs([_text(value) for value in values], _TEXT)


def _optional_texts(values: Sequence[str | None]) -> Parameter:
    if values.count(None) == len(values):
        return None
    return _optional_blobs([None if value is None else _text(value) for value in values], _TEXT)


def _shorts(values: Sequence[int]) -> bytes:
    parts = [_TWO + value.to_bytes(2, "big", signed=True) for value in values]
    return _array(_INT2, len(values), b"".join(parts))


def _ints(values: Sequence[int]) -> bytes:
    return _array(_INT4, len(values), _FOUR + _FOUR.join(map(_int4, values)))


def _longs(values: Sequence[int]) -> bytes:
    return _array(_INT8, len(values), _EIGHT + _EIGHT.join(map(_int8, values)))


def _bools(values: Sequence[bool]) -> bytes:
    parts = [b"\0\0\0\1\1" if value else b"\0\0\0\1\0" for value in values]
    return _array(_BOOL, len(values), b"".join(parts))


def _optional_ints(values: Sequence[int | None]) -> Parameter:
    if values.count(None) == len(values):
        return None
    parts = [_NULL if value is None else _FOUR + _int4(value) for value in values]
    return _array(_INT4, len(values), b"".join(parts))


def _optional_longs(values: Sequence[int | None]) -> Parameter:
    if values.count(None) == len(values):
        return None
    parts = [_NULL if value is None else _EIGHT + _int8(value) for value in values]
    return _array(_INT8, len(values), b"".join(parts))


def _uniform(layout: Callable[[Sequence[T]], bytes], values: Sequence[T]) -> bytes:
    return layout(values[:1] if values.count(values[0]) == len(values) else values)


def _uniform_blobs(values: Sequence[bytes]) -> bytes:
    return _uniform(_blobs, values)
