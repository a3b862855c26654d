"""The scenarios that come with regrow make sense, and use all there is."""

from __future__ import annotations

import pytest

from regrow.chaos.nemeses import NEMESES
from regrow.chaos.scenario import ScenarioError, decode, load, shipped


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_scenario_can_be_read(name: str) -> None:
    scenario = load(name)
    assert scenario.name == name
    assert scenario.title
    assert scenario.nemesis, "it has a fault"


def test_every_fault_strikes_in_a_shipped_scenario() -> None:
    used = {plan.name for name in shipped() for plan in load(name).nemesis}
    assert used == set(NEMESES)


@pytest.mark.parametrize(
    ("nemesis", "needs"),
    [
        ("log_break", "proxy = true"),
        ("network_partition", 'network = "namespaces"'),
        ("disk_full", "disk_mib"),
    ],
)
def test_what_a_fault_needs_of_its_scenario_is_said(nemesis: str, needs: str) -> None:
    text = f'title = "t"\nworkload = "counter"\n[[nemesis]]\nname = "{nemesis}"\n'
    with pytest.raises(ScenarioError, match=needs):
        decode(text, "mine")


def test_options_that_a_fault_does_not_know_are_refused() -> None:
    text = (
        'title = "t"\nworkload = "counter"\n[[nemesis]]\nname = "node_crash"\n'
        "options = { number = 2 }\n"
    )
    with pytest.raises(ScenarioError, match=r"node_crash.*number"):
        decode(text, "mine")
