"""A driver of this process, connected to a node that does what the test says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrow import _client
from regrow._driver import Driver
from regrow._refs import set_table
from regrow.messages import Bye
from tests.unit.client.fake_node import FakeNode


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    with FakeNode(tmp_path) as fake:
        yield fake


@pytest.fixture
def driver(node: FakeNode) -> Iterator[Driver]:
    """It is the client of the process, so that ``regrow.get`` and the like use it."""
    driver = connect(node, [node.path])
    yield driver
    disconnect(driver)
    left = [t.name for t in threading.enumerate() if t.name.startswith("regrow-")]
    assert not left, f"threads are left: {left}"


def connect(node: FakeNode, others: list[str]) -> Driver:
    driver = Driver(
        node.path, "token", lambda: others,
        durability="commit", namespace="", log_to_driver=True, reconnect_timeout_s=5.0,
    )  # fmt: skip
    _client.set_current(driver)
    set_table(driver.refs)
    return driver


def disconnect(driver: Driver) -> None:
    _client.set_current(None)
    set_table(None)
    driver.close(Bye())
