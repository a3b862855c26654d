"""Options of tasks and actors: what they become, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow._options import ACTOR_OPTIONS, TASK_OPTIONS, check_node, checked
from regrow.exceptions import UnsupportedOptionError
from regrow.messages import KEYED, RETRY_EXCEPTIONS


def task(**options: Any) -> Any:
    return checked(options, TASK_OPTIONS, "remote functions", 1)


def actor(**options: Any) -> Any:
    return checked(options, ACTOR_OPTIONS, "actors", 0)


@pytest.mark.parametrize(
    ("options", "resources"),
    [
        ({}, None),
        ({"num_cpus": 1}, None),
        ({"num_cpus": 0}, {}),
        ({"num_cpus": 0.5, "num_gpus": 2}, {"CPU": 5000, "GPU": 20000}),
        ({"memory": 100, "resources": {"x": 0.25}}, {"CPU": 10000, "memory": 1000000, "x": 2500}),
    ],
)
def test_resources_of_tasks(options: dict[str, Any], resources: dict[str, int] | None) -> None:
    assert task(**options).resources == resources


@pytest.mark.parametrize(
    ("options", "resources"),
    [({}, None), ({"num_cpus": 1}, {"CPU": 10000}), ({"resources": {"x": 1}}, {"x": 10000})],
)
def test_an_actor_that_names_nothing_holds_nothing(
    options: dict[str, Any], resources: dict[str, int] | None
) -> None:
    assert actor(**options).resources == resources


@given(st.floats(min_value=0.0001, max_value=1e6, allow_nan=False))
def test_fractions_are_exact_to_a_ten_thousandth(amount: float) -> None:
    resources = task(num_cpus=amount).resources or {"CPU": 10000}
    assert abs(resources["CPU"] - amount * 10000) <= 0.5


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_cpu": 1}, ValueError, "num_cpus"),
        ({"num_cpus": -1}, ValueError, "non-negative"),
        ({"num_cpus": 1e-6}, ValueError, "0.0001 at least"),
        ({"num_cpus": "two"}, TypeError, "number"),
        ({"num_gpus": 1.5}, ValueError, "whole"),
        ({"resources": {"CPU": 1}}, ValueError, "num_cpus"),
        ({"resources": {"object_store_memory": 1}}, ValueError, "object_store_memory instead"),
        ({"resources": {"x": True}}, TypeError, r"resources\['x'\] of remote functions must be a"),
        ({"resources": {3: 1}}, TypeError, "names in resources of remote functions"),
        ({"num_cpus": float("inf")}, ValueError, "num_cpus of remote functions must be"),
        ({"resources": [1]}, TypeError, "dict"),
        ({"num_returns": -1}, ValueError, "num_returns"),
        ({"num_returns": "streaming"}, UnsupportedOptionError, "generators"),
        ({"max_retries": -2}, ValueError, "max_retries"),
        ({"retry_exceptions": [1]}, TypeError, "list of exceptions"),
        ({"durability": "none"}, ValueError, "commit"),
        ({"key": ""}, TypeError, "key"),
        ({"name": 3}, TypeError, "name"),
        ({"scheduling_strategy": object()}, UnsupportedOptionError, "SPREAD"),
        ({"runtime_env": {"pip": []}}, UnsupportedOptionError, "runtime_env"),
        ({"job": "j"}, UnsupportedOptionError, "job"),
        ({"max_calls": 3}, UnsupportedOptionError, "max_calls"),
    ],
)
def test_wrong_options_of_tasks(options: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        task(**options)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"num_cpus": -1}, ValueError, "num_cpus of init() must be a non-negative number, got -1"),
        ({"num_cpus": "two"}, TypeError, "num_cpus of init() must be a number, got 'two'"),
        ({"num_gpus": 1.5}, ValueError, "num_gpus of init() must be whole"),
        ({"resources": {"CPU": 1}}, ValueError, "cannot have 'CPU': use num_cpus instead"),
        ({"resources": {"memory": 1}}, ValueError, "cannot have 'memory': use memory instead"),
        ({"resources": {"a": float("nan")}}, ValueError, "resources['a'] of init() must be"),
        ({"resources": {"node:a": 1}}, ValueError, "cannot have 'node:a'"),
        ({"object_store_memory": 10}, ValueError, "object_store_memory of init() must be 16777216"),
        ({"object_store_memory": 0}, ValueError, "object_store_memory of init() must be 16777216"),
    ],
)
def test_what_no_node_can_offer(given: dict[str, Any], error: type, text: str) -> None:
    with pytest.raises(error, match=re.escape(text)):
        check_node(given, "init()")


def test_what_a_node_can_offer() -> None:
    check_node({}, "init()")
    check_node({"num_cpus": 0, "num_gpus": 0.5, "memory": 0, "resources": None}, "init()")
    check_node({"resources": {"a": 0.5}, "object_store_memory": 16 << 20}, "init()")


@pytest.mark.parametrize("options", [{"max_pending_calls": 5}])
def test_what_actors_cannot_do_yet_is_said(options: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        actor(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"lifetime": "for ever"}, "must be one of"), ({"lifetime": "detached"}, "needs a name")],
)
def test_lifetimes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        actor(**options)
    assert actor(lifetime="detached", name="a").detached
    assert not actor(lifetime="non_detached").detached


def test_values_that_mean_nothing_are_accepted() -> None:
    assert actor(max_restarts=0, max_task_retries=0, lifetime=None, runtime_env=None) == actor()
    assert task(runtime_env={}, max_calls=0, placement_group="default") == task()


def test_flags() -> None:
    assert task(key="k").flags == KEYED
    assert task(retry_exceptions=True).flags == RETRY_EXCEPTIONS
    assert task(retry_exceptions=[KeyError]).retry_exceptions == (KeyError,)
    assert task(retry_exceptions=[]).flags == 0
    assert task(durability="async").durability == "async"


class Affinity:
    """As Ray's NodeAffinitySchedulingStrategy."""

    def __init__(self, node_id: str, soft: bool) -> None:
        self.node_id = node_id
        self.soft = soft


def test_strategies() -> None:
    assert task(scheduling_strategy="DEFAULT").strategy == ""
    assert task(scheduling_strategy="SPREAD").strategy == "SPREAD"
    assert task(scheduling_strategy=Affinity("3", True)).strategy == "node:3:soft"
    assert task(scheduling_strategy=Affinity("3", False)).strategy == "node:3"


def test_restarts_are_counted_or_without_limit() -> None:
    assert actor(max_restarts=3).max_restarts == 3
    assert actor(max_restarts=-1, max_task_retries=-1).max_restarts == -1
    for wrong in ({"max_restarts": -2}, {"max_restarts": True}, {"max_task_retries": 2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            actor(**wrong)
