"""docs/states.md names the states that the code and the schema have, and no others."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from types import ModuleType

import pytest

from regrow import _cli_list
from regrow.gcs import schema
from regrow.objectstore import core as store_core
from regrow.objectstore.copies import CopyState
from regrow.scheduler import actors, tasks
from tests.unit.state_diagrams import OUTSIDE, PAGE, Diagram, diagrams


def constants(module: ModuleType) -> set[str]:
    """The module's own ``NAME: Final = number``, counted from 0: other numbers are no states."""
    found: list[str] = []
    for node in ast.parse(inspect.getsource(module)).body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(node.value, ast.Constant)
            and type(node.value.value) is int
            and node.value.value == len(found)
        ):
            found.append(node.target.id)
    return set(found)


def checked(table: str, column: str) -> set[str]:
    """The words that the schema allows in a column."""
    made = schema.offline_sql()
    statements = re.findall(rf"(?:CREATE|ALTER) TABLE regrow\.{table}\b.*?;\n", made, re.S)
    found = re.findall(rf"CHECK \({column} IN \((.*?)\)\)", "".join(statements))
    return set(re.findall(r"'(\w+)'", found[-1]))  # a later migration counts


def cased(expression: str) -> set[str]:
    """The words that a CASE expression of SQL makes."""
    return set(re.findall(r"(?:THEN|ELSE) '(\w+)'", expression))


def task_states_in_sql() -> set[str]:
    view = schema.offline_sql()
    view = view[view.index("CREATE VIEW regrow.tasks AS") :]
    found = re.search(r"CASE status (WHEN.*?END)\s+AS state", view, re.S)
    assert found is not None
    return cased(found[1])


def node_states() -> set[str]:
    (column,) = [c for c in _cli_list.LISTINGS["nodes"].columns if c.name == "state"]
    return cased(column.expression)


STATES: dict[str, Callable[[], set[str]]] = {
    "Task, in the log": task_states_in_sql,
    "Task, on a node": lambda: constants(tasks),
    "Object, a copy on a node": lambda: {state.name for state in CopyState},
    "Actor, in the log": lambda: checked("actors", "state"),
    "Actor, on a node": lambda: constants(actors),
    "Node": node_states,
    "Job": lambda: checked("jobs", "status"),
}


def test_every_diagram_of_the_page_is_compared() -> None:
    assert list(diagrams()) == list(STATES)
    assert PAGE.read_text().count("```mermaid") == len(STATES)


@pytest.mark.parametrize("title", STATES)
def test_the_states_are_those_of_the_code(title: str) -> None:
    assert diagrams()[title].states == STATES[title]()


@pytest.mark.parametrize("title", STATES)
def test_every_state_can_be_reached_from_the_beginning(title: str) -> None:
    diagram = diagrams()[title]
    assert reachable(diagram) == diagram.states


def reachable(diagram: Diagram) -> set[str]:
    reached: set[str] = {OUTSIDE}
    while more := {to for start, to in diagram.arrows if start in reached} - reached:
        reached |= more
    return reached - {OUTSIDE}


@pytest.mark.parametrize(
    ("title", "module"), [("Task, on a node", tasks), ("Object, a copy on a node", store_core)]
)
def test_the_transitions_are_those_that_the_module_lists(title: str, module: ModuleType) -> None:
    """The table at the head of the module: ``STATE  what it is  -> STATE, STATE (why); done``."""
    listed: set[tuple[str, str]] = set()
    states = diagrams()[title].states
    for line in (module.__doc__ or "").splitlines():
        start, arrow, targets = line.strip().partition("->")
        if arrow and start.split()[0] in states:
            named = {word for word in re.findall(r"[A-Z]+", targets) if word in states}
            listed |= {(start.split()[0], target) for target in named}
    assert diagrams()[title].transitions == listed
