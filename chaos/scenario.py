"""A scenario is data: which workload runs, which faults meet it and how often, what is checked.

Read from TOML. Decides whether a file makes sense, before anything is started; what the words in
it mean is in `regrow.chaos.workloads`, `regrow.chaos.nemeses` and `regrow.chaos.checkers`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

SUFFIX: Final = ".toml"


class ScenarioError(ValueError):
    """A scenario that cannot be run; the message says what is wrong and what there is instead."""


class NemesisPlan(msgspec.Struct, forbid_unknown_fields=True):
    """A fault and when it strikes: about every ``every_s`` seconds, drawn from the seed."""

    #: Which fault; see below.
    name: str
    #: Between strikes, from half of that to half as much again.
    every_s: float = 4.0
    #: About when it strikes first; none: after half of ``every_s``.
    first_s: float | None = None
    #: So long until it is healed.
    heal_after_s: float = 1.0
    #: So many at most.
    most: int = 1_000_000
    #: What is particular to the fault.
    options: dict[str, Any] = {}


class Scenario(msgspec.Struct, forbid_unknown_fields=True):
    """What a TOML file says."""

    #: One sentence for people.
    title: str
    #: What runs meanwhile; see below.
    workload: str
    #: For reports; by default that of the file.
    name: str = ""
    #: Faults strike, and clients begin operations, for so many seconds.
    duration_s: float = 20.0
    #: Of the cluster; those that are killed are replaced.
    nodes: int = 3
    #: CPUs of each node.
    cpus: float = 2.0
    #: Bytes of each node's arena.
    object_store_memory: int = 150 * 1024 * 1024
    #: Threads of the driver that submit operations at the same time.
    clients: int = 4
    #: A standby of the control store, from the start.
    standby: bool = False
    #: "namespaces" of the kernel, which need root: each node has an address of its own.
    network: Literal["loopback", "namespaces"] = "loopback"
    #: The home of the cluster, with what it spills and stores, is on a disk of its own with so many
    #: MiB; that needs root. 0: it is not.
    disk_mib: int = 0
    #: Postgres is reached through a proxy, for the faults that need one.
    proxy: bool = False
    #: After the faults have stopped everything has to end in so many seconds.
    patience_s: float = 60.0
    #: Work done again, as a multiple of what was lost and needed, at most; 0: not limited.
    amplification_max: float = 0.0
    #: Seconds from a fault until what it hit has ended, at most; 0: not limited.
    recovery_max_s: float = 0.0
    #: Variables for the cluster and the driver.
    environment: dict[str, str] = {}
    #: What is particular to the workload.
    parameters: dict[str, Any] = {}
    #: The faults, each a table of its own.
    nemesis: list[NemesisPlan] = []
    #: Besides those of the workload and those that always look.
    checkers: list[str] = []


def decode(text: str, name: str) -> Scenario:
    """The scenario that a TOML text describes. Raises ScenarioError naming what is wrong."""
    try:
        given = tomllib.loads(text)
        scenario = msgspec.convert(given, Scenario)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ScenarioError(f"scenario {name}: {error}") from None
    scenario.name = scenario.name or name
    _check(scenario)
    return scenario


def _check(scenario: Scenario) -> None:
    from regrow.chaos import checkers, nemeses, workloads

    def known(what: str, name: str, names: Mapping[str, object]) -> None:
        if name not in names:
            raise ScenarioError(
                f"scenario {scenario.name}: there is no {what} {name!r}; "
                f"there are {', '.join(sorted(names))}"
            )

    known("workload", scenario.workload, workloads.WORKLOADS)
    for plan in scenario.nemesis:
        known("nemesis", plan.name, nemeses.NEMESES)
        nemeses.NEMESES[plan.name](plan.options)
        if nemeses.NEMESES[plan.name].needs_proxy and not scenario.proxy:
            raise ScenarioError(
                f"scenario {scenario.name}: {plan.name} reaches Postgres through a proxy; "
                "set proxy = true"
            )
        if nemeses.NEMESES[plan.name].needs_disk and not scenario.disk_mib:
            raise ScenarioError(
                f"scenario {scenario.name}: {plan.name} fills a disk; set disk_mib = 256, or so"
            )
        if nemeses.NEMESES[plan.name].needs_namespaces and scenario.network != "namespaces":
            raise ScenarioError(
                f"scenario {scenario.name}: {plan.name} cuts networks of the kernel; "
                'set network = "namespaces"'
            )
        if plan.every_s <= 0 or plan.heal_after_s < 0:
            raise ScenarioError(
                f"scenario {scenario.name}: {plan.name} needs every_s > 0 and heal_after_s >= 0"
            )
    for name in scenario.checkers:
        known("checker", name, checkers.CHECKERS)
    if scenario.nodes < 1 or scenario.duration_s <= 0 or scenario.clients < 1:
        raise ScenarioError(
            f"scenario {scenario.name}: nodes, clients and duration_s have to be positive"
        )
    workloads.WORKLOADS[scenario.workload].check_parameters(scenario.parameters)


def shipped() -> dict[str, Path]:
    """The scenarios that come with regrow: their names and files."""
    folder = resources.files("regrow.chaos") / "scenarios"
    paths = sorted(Path(str(folder)).glob(f"*{SUFFIX}"))
    return {path.name.removesuffix(SUFFIX): path for path in paths}


def load(name: str) -> Scenario:
    """A scenario by its file, or one that comes with regrow by its name. Raises ScenarioError."""
    if name.endswith(SUFFIX) or "/" in name:
        path = Path(name)
    else:
        known = shipped()
        if name not in known:
            raise ScenarioError(
                f"there is no scenario {name!r}; there are {', '.join(known)}, or give the path of "
                f"a {SUFFIX} file"
            )
        path = known[name]
    try:
        text = path.read_text()
    except OSError as error:
        raise ScenarioError(f"cannot read {path}: {error.strerror}") from None
    return decode(text, path.name.removesuffix(SUFFIX))
