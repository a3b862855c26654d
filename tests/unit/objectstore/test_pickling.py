"""A function that was pickled by value still says in which file it stands."""

from __future__ import annotations

import copyreg
import pickle
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from regrow.objectstore import pickling

SOURCE = """
def fails():
    def inner():
        return {}["missing"]
    return inner()

class Model:
    def method(self):
        return {}["missing"]
"""


@pytest.fixture
def program(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "program.py"
    path.write_text(SOURCE)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SOURCE, str(path), "exec"), names)
    return names


@pytest.mark.parametrize("entry", ["fails", "method"])
def test_a_traceback_shows_the_users_file_and_line(
    program: dict[str, Any], entry: str, tmp_path: Path
) -> None:
    function = program["fails"] if entry == "fails" else partial(program["Model"].method, None)
    loaded = pickle.loads(pickling.dumps(function))
    with pytest.raises(KeyError) as caught:
        loaded()
    text = "".join(traceback.format_exception(caught.value))
    assert str(tmp_path / "program.py") in text
    assert 'return {}["missing"]' in text


def test_everything_else_of_the_code_is_kept(program: dict[str, Any]) -> None:
    code = program["fails"].__code__
    assert pickle.loads(pickling.dumps(code)) == code


def test_reducers_that_are_registered_later_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handle:
        pass

    monkeypatch.setitem(copyreg.dispatch_table, Handle, lambda _: (int, (7,)))
    assert pickle.loads(pickling.dumps([Handle()])) == [7]
