"""Values are known again in another run of the program, however they are pickled there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np

from regrow._canonical import canonical_digest, is_unsteady
from regrow._refs import ObjectRef, RefTable
from regrow.objectstore.serialization import serialize

PROGRAM = """
import enum
from dataclasses import dataclass
import numpy as np
from regrow._canonical import canonical_digest
@dataclass
class Point:
    tags: set
    at: tuple
class Colour(enum.Enum):
    RED = "red"
names = {f"name {i}" for i in range(20)}
values = [names, frozenset({("x", 1), ("y", 2)}), Point(names, ("a", frozenset(names))),
          {"k": names}, np.arange(4), Point, len, Colour.RED, {Colour.RED, "x"},
          lambda x: x in {"a", "b"}]
print([canonical_digest(value).hex() for value in values])
"""


def test_a_digest_is_the_same_in_every_process() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }  # fmt: skip
    assert len(printed) == 1


@dataclass
class Other:
    x: int


def test_different_values_have_different_digests() -> None:
    table = RefTable(lambda: None)
    refs: list[ObjectRef[Any]] = [table.fresh(bytes([i]) * 20) for i in (1, 2)]
    values: list[object] = [
        {1, 2}, {1, 3}, frozenset({1, 2}), [1, 2], (1, 2), "12", b"12", Other(1), Other(2), Other,
        lambda: 1, lambda: 2, np.zeros(3), np.ones(3), {"a": {1}}, {"a": [1]}, *refs,
        {"x": refs[0], "y": refs[1]}, {"x": refs[1], "y": refs[0]}, {refs[0]}, {refs[1]},
    ]  # fmt: skip
    digests = [canonical_digest(value) for value in values]
    assert None not in digests
    assert len(set(digests)) == len(values)


def test_what_references_stand_for_may_be_left_out() -> None:
    table = RefTable(lambda: None)
    one, two = ([table.fresh(bytes([i]) * 20)] for i in (1, 2))
    assert canonical_digest(one) != canonical_digest(two)
    assert canonical_digest(one, with_refs=False) == canonical_digest(two, with_refs=False)


def test_whether_equal_strings_are_one_object_is_not_told_apart() -> None:
    name = "a name"
    assert canonical_digest([name, name]) == canonical_digest([name, f"a {name[2:]}"])


def test_a_value_that_contains_itself_has_a_digest_or_none() -> None:
    items: list[Any] = [1]
    items.append(items)
    assert canonical_digest(items) is not None

    class Loop:
        def __reduce__(self) -> Any:
            raise ValueError("never")

    assert canonical_digest({Loop()}) is None


def test_only_what_may_vary_is_looked_at() -> None:
    def unsteady(value: object) -> bool:
        return is_unsteady(serialize(value).layout.to_bytes())

    assert not any(map(unsteady, [1, "a", [1, 2.5], {"a": (None, True)}, np.zeros(3)]))
    assert all(map(unsteady, [{"a"}, frozenset("a"), [{"a": {1}}], lambda: 1]))
