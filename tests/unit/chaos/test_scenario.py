"""A scenario that makes no sense is refused with a sentence that says why; those that ship do."""

from __future__ import annotations

from pathlib import Path

import pytest

from regrow.chaos.scenario import ScenarioError, decode, load, shipped

GOOD = """
title = "Nodes die"
workload = "task_tree"
"""
NEMESIS = '\n[[nemesis]]\nname = "node_crash"\n'


def test_what_is_not_given_has_a_default() -> None:
    scenario = decode(GOOD + NEMESIS, "mine")
    assert (scenario.name, scenario.nodes, scenario.clients) == ("mine", 3, 4)
    assert scenario.nemesis[0].every_s == 4.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title = ", "scenario mine: Invalid value"),
        ('title = "t"', "scenario mine: Object missing required field `workload`"),
        (GOOD + "nodez = 3", "scenario mine: Object contains unknown field `nodez`"),
        (GOOD + 'nodes = "3"', "scenario mine: Expected `int`, got `str` - at `$.nodes`"),
        ('title = "t"\nworkload = "dance"', "scenario mine: there is no workload 'dance'; there "),
        (GOOD + '[[nemesis]]\nname = "rain"', "scenario mine: there is no nemesis 'rain'; there "),
        (GOOD + 'checkers = ["taste"]', "scenario mine: there is no checker 'taste'; there are "),
        (GOOD + NEMESIS + "every_s = 0", "scenario mine: node_crash needs every_s > 0 and heal_"),
        (GOOD + NEMESIS + "heal_after_s = -1", "scenario mine: node_crash needs every_s > 0 and"),
        (GOOD + NEMESIS + "options = {count = true}", "nemesis node_crash: options: Expected `int"),
        (GOOD + NEMESIS + "options = {sum = 1}", "nemesis node_crash: options: Object contains"),
        (GOOD + '[[nemesis]]\nname = "log_break"', "set proxy = true"),
        (GOOD + "nodes = 0", "scenario mine: nodes, clients and duration_s have to be positive"),
        (GOOD + "duration_s = 0", "scenario mine: nodes, clients and duration_s have to be posi"),
        (GOOD + "clients = 0", "scenario mine: nodes, clients and duration_s have to be positiv"),
        (GOOD + "parameters = {deep = 1}", "workload task_tree: parameters: Object contains unkn"),
    ],
)  # fmt: skip
def test_a_scenario_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ScenarioError) as refusal:
        decode(text, "mine")
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", shipped())
def test_every_scenario_that_ships_makes_sense(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.title
    assert scenario.nemesis, "it shows something"


def test_a_scenario_is_found_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(GOOD)
    assert load(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nope", "there is no scenario 'nope'; there are "),
        ("./nope.toml", "cannot read nope.toml: No such file or directory"),
    ],
)
def test_a_scenario_that_is_not_there_is_told(name: str, said: str) -> None:
    with pytest.raises(ScenarioError) as refusal:
        load(name)
    assert said in str(refusal.value)
