"""A driver against a scripted node: what it sends, and what it makes of the answers."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import regrow
from regrow._driver import Driver
from regrow.exceptions import (
    GetTimeoutError,
    JobAlreadyRunningError,
    ObjectLostError,
    ObjectStoreFullError,
    RayTaskError,
    ReplayMismatchError,
)
from regrow.ids import is_put, object_id
from regrow.messages import (
    SYSTEM_ERROR,
    TASK_ERROR,
    Borrow,
    Committed,
    DefineFunctions,
    Drop,
    Hello,
    Put,
    Refused,
    Release,
    Seal,
    Submit,
    Subscribe,
    SystemFailure,
    Value,
    Values,
    encode,
    spec_decoder,
)
from regrow.objectstore.serialization import serialize
from tests.unit.client.conftest import connect, disconnect
from tests.unit.client.fake_node import FakeNode, arguments


@regrow.remote
def add(a: int, b: int = 0) -> int:
    return a + b


def test_a_function_is_defined_once_and_before_its_first_call(
    node: FakeNode, driver: Driver
) -> None:
    refs = [add.remote(i) for i in range(3)]
    specs = node.specs(3)
    kinds = [type(message) for message in node.received]
    assert kinds.index(DefineFunctions) < kinds.index(Submit)
    [definition] = [f for m in node.all(DefineFunctions) for f in m.functions]
    assert {spec.function_id for spec in specs} == {definition.function_id}
    assert [object_id(spec.task_id, 0) for spec in specs] == [ref.binary() for ref in refs]


def test_a_submission_nobody_waits_for_leaves_by_itself(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    assert node.specs(1)[0].name == "add"
    del ref


def test_get_gives_values_in_the_order_asked_for(node: FakeNode, driver: Driver) -> None:
    refs = [add.remote(i) for i in range(5)]
    for spec in reversed(node.specs(5)):
        node.settle(object_id(spec.task_id, 0), arguments(spec)[0] * 10)
    assert regrow.get(refs) == [0, 10, 20, 30, 40]
    assert regrow.get(refs[3]) == 30


def test_an_equal_reference_twice_in_one_get(node: FakeNode, driver: Driver) -> None:
    node.runs = lambda spec: arguments(spec)[0]
    ref = add.remote(4)
    assert regrow.get([ref, ref]) == [4, 4]


def test_get_times_out_and_can_be_repeated(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    with pytest.raises(GetTimeoutError):
        regrow.get(ref, timeout=0.01)
    with pytest.raises(TimeoutError):
        regrow.get([ref], timeout=0)
    node.settle(ref.binary(), 5)
    assert regrow.get(ref) == 5


def test_arguments_name_their_keywords_and_dependencies(node: FakeNode, driver: Driver) -> None:
    first, inner = add.remote(1), add.remote(2)
    last = add.remote(first, b=[inner])  # type: ignore[arg-type]
    spec = node.specs(3)[2]
    assert spec.deps == [first.binary()]
    assert spec.nested == [inner.binary()]
    value, nested, keywords, places = arguments(spec)
    assert (value, keywords, len(places)) == (None, "b", 8)
    assert nested[0] is inner
    del last


def test_large_arguments_become_objects_of_their_own(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(np.zeros(100_000), np.ones(100_000))  # type: ignore[arg-type]
    [spec] = node.specs(1)
    assert len(spec.deps) == 2
    assert all(map(is_put, spec.deps))
    assert len(spec.args) < 1000
    del ref


def test_an_argument_that_cannot_be_pickled_is_named(node: FakeNode, driver: Driver) -> None:
    with pytest.raises(TypeError, match=r"argument 'b' of add .*lock"):
        add.remote(1, b=threading.Lock())  # type: ignore[arg-type]


def test_a_small_put_needs_no_answer(node: FakeNode, driver: Driver) -> None:
    node.commits = False
    value = {"a": [1, 2]}
    ref = regrow.put(value)
    assert regrow.get(ref) == value
    assert regrow.get(ref) is not value
    assert node.until(Put).values[0].object_id == ref.binary()


def test_a_large_put_is_read_where_it_was_written(node: FakeNode, driver: Driver) -> None:
    array = np.arange(50_000)
    read = regrow.get(regrow.put(array))
    assert np.array_equal(read, array)
    assert not read.flags.writeable


def test_a_put_that_does_not_fit_raises(node: FakeNode, driver: Driver) -> None:
    with pytest.raises(ObjectStoreFullError, match="no room for"):
        regrow.put(np.zeros(17 << 20, dtype=np.uint8))


def test_a_large_value_stays_pinned_while_a_view_lives(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    node.specs(1)
    node.settle_large(ref.binary(), np.arange(50_000))
    first: Any = regrow.get(ref)
    part = first[10:20]
    del first
    gc.collect()
    other = add.remote(2)  # something that is sent
    node.specs(2)
    assert not node.all(Release)
    del part
    gc.collect()
    assert node.until(Release).pins == [(ref.binary(), 0)]
    del other


def test_a_dropped_reference_is_told_after_the_task_that_needs_it(
    node: FakeNode, driver: Driver
) -> None:
    ref = add.remote(1)
    dropped = ref.binary()
    other = add.remote(ref)
    del ref
    node.until(Drop, lambda m: dropped in m.object_ids)
    kinds = [type(message) for message in node.received]
    assert len(node.specs(2)) == 2
    assert kinds.index(Drop) > kinds.index(Submit)
    del other


def test_a_reference_in_a_value_is_borrowed_then_subscribed_to(
    node: FakeNode, driver: Driver
) -> None:
    inner_id = bytes([9]) * 16 + bytes(4)
    ref = add.remote(1)
    node.specs(1)
    node.settle(ref.binary(), [driver.refs.borrowed(inner_id)])
    values: Any = regrow.get(ref)
    [inner] = values
    assert set(node.until(Borrow).object_ids) == {inner_id}
    node.handlers[Subscribe] = lambda message: node.settle(message.object_ids[0], "inner")
    assert regrow.get(inner) == "inner"
    again = driver.refs.borrowed(inner_id)
    assert again is inner


def test_a_reference_that_died_and_came_back_is_held(node: FakeNode, driver: Driver) -> None:
    oid = bytes([9]) * 16 + bytes(4)
    ref = driver.refs.borrowed(oid)
    node.until(Borrow)
    with driver.refs.lock:  # so that nothing is sent in between
        del ref
        ref = driver.refs.borrowed(oid)
    driver.link.flush()
    other = add.remote(1)
    node.specs(1)
    told = [m for m in node.received if isinstance(m, Borrow | Drop) and oid in m.object_ids]
    assert isinstance(told[-1], Borrow)
    del ref, other


def test_errors_keep_the_users_type(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    node.specs(1)
    data = serialize(RayTaskError("add", "Traceback: bad", KeyError("x"))).layout.to_bytes()
    node.send(Values([Value(ref.binary(), TASK_ERROR, len(data), data)]))
    with pytest.raises(KeyError) as caught:
        regrow.get(ref)
    assert isinstance(caught.value, RayTaskError)
    assert "Traceback: bad" in str(caught.value)


def test_a_stop_iteration_is_raised_also_by_await_and_by_futures(
    node: FakeNode, driver: Driver
) -> None:
    """It would end a coroutine as its result does."""
    ref = add.remote(1)
    node.specs(1)
    data = serialize(RayTaskError("add", "StopIteration: 5", StopIteration(5))).layout.to_bytes()
    node.send(Values([Value(ref.binary(), TASK_ERROR, len(data), data)]))
    with pytest.raises(StopIteration):
        regrow.get(ref)

    async def await_ref() -> Any:
        return await ref

    async def await_future() -> Any:
        return await asyncio.wrap_future(ref.future())

    async def get_result() -> Any:
        return ref.future().result(10)

    for wait in (await_ref, await_future, get_result):
        with pytest.raises(RayTaskError, match="StopIteration: 5") as caught:
            asyncio.run(asyncio.wait_for(wait(), 10))
        assert isinstance(caught.value.cause, StopIteration)
        assert caught.value.cause.value == 5


def test_failures_of_the_system_are_typed(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    node.specs(1)
    data = encode(SystemFailure("object_lost", "all copies are gone"))
    node.send(Values([Value(ref.binary(), SYSTEM_ERROR, len(data), data)]))
    with pytest.raises(ObjectLostError, match="all copies"):
        regrow.get([ref])


def test_wait_returns_ready_ones_in_the_order_given(node: FakeNode, driver: Driver) -> None:
    refs = [add.remote(i) for i in range(4)]
    node.specs(4)
    assert regrow.wait(refs, timeout=0) == ([], refs)
    node.settle(refs[2].binary(), 2)
    assert regrow.wait(refs) == ([refs[2]], [refs[0], refs[1], refs[3]])
    node.settle(refs[3].binary(), 3)
    node.settle(refs[0].binary(), 0)
    ready, rest = regrow.wait(refs, num_returns=3)
    assert (ready, rest) == ([refs[0], refs[2], refs[3]], [refs[1]])
    assert regrow.wait(refs, num_returns=2)[0] == [refs[0], refs[2]]
    assert regrow.wait(refs, num_returns=4, timeout=0.01) == (ready, rest)


def test_wait_fetches_large_objects_only_if_asked(node: FakeNode, driver: Driver) -> None:
    ref = add.remote(1)
    node.specs(1)
    node.settle_large(ref.binary(), np.arange(50_000))
    assert regrow.wait([ref], fetch_local=False) == ([ref], [])
    assert not [m for m in node.received if type(m).__name__ == "Read"]
    assert regrow.wait([ref]) == ([ref], [])
    assert [m for m in node.received if type(m).__name__ == "Read"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("x",), TypeError),
        ((["x"],), TypeError),
        (([], 1), None),
    ],
)
def test_wait_checks_its_arguments(
    driver: Driver, arguments: tuple[Any, ...], error: type[Exception] | None
) -> None:
    if error is None:
        assert regrow.wait([]) == ([], [])
        return
    with pytest.raises(error):
        regrow.wait(*arguments)


def test_wait_refuses_wrong_counts(driver: Driver) -> None:
    ref = regrow.put(1)
    with pytest.raises(ValueError, match="unique"):
        regrow.wait([ref, ref])
    with pytest.raises(ValueError, match="Invalid number"):
        regrow.wait([ref], num_returns=0)
    with pytest.raises(ValueError, match="cannot be greater"):
        regrow.wait([ref], num_returns=2)


def test_submitting_waits_for_room_in_the_window(tmp_path: Path) -> None:
    with FakeNode(tmp_path, window=128) as node:
        node.commits = False
        driver = connect(node, [])
        refs: list[Any] = []
        submitter = threading.Thread(
            target=lambda: refs.extend([add.remote(i) for i in range(400)])
        )
        submitter.start()
        node.specs(128)
        assert not refs
        assert len(node.specs(128)) <= 256
        node.commits = True
        node.send(Committed(len(node.specs(128))))
        submitter.join(10)
        assert len(refs) == 400
        disconnect(driver)


def test_a_driver_outlives_its_node(tmp_path: Path) -> None:
    with FakeNode(tmp_path) as first, FakeNode(tmp_path, node_id=2) as second:
        first.commits = False
        driver = connect(first, [second.path])
        done, pending = add.remote(1), add.remote(2)
        held = driver.refs.borrowed(bytes([5]) * 20)
        first.specs(2)
        first.settle(done.binary(), 1)
        assert regrow.get(done) == 1
        first.send(Committed(1))  # the first, but not the second
        second.runs = None
        ready = threading.Event()
        second.handlers[Subscribe] = lambda _: ready.set()
        first.die()
        assert ready.wait(10)
        assert second.until(Hello).number == 7
        [message] = second.all(Submit)
        assert message.resent
        assert [object_id(spec_decoder.decode(s).task_id, 0) for s in message.specs] == [
            pending.binary()
        ]
        assert second.all(Subscribe)[0].object_ids == [pending.binary()]
        assert set(second.until(Borrow).object_ids) >= {held.binary(), done.binary()}
        kinds = [type(m) for m in second.received]
        assert kinds.index(DefineFunctions) < kinds.index(Submit)
        second.settle(pending.binary(), 2)
        assert regrow.get(pending) == 2
        third = add.remote(3)
        second.specs(2)
        disconnect(driver)
        del third


def test_a_driver_without_any_node_fails_in_words(tmp_path: Path) -> None:
    with FakeNode(tmp_path) as node:
        driver = connect(node, [])
        driver._reconnect_timeout_s = 0.1
        ref = add.remote(1)
        node.specs(1)
        node.die()
        with pytest.raises(ConnectionError, match="node of this driver died"):
            regrow.get(ref)
        with pytest.raises(ConnectionError, match="node of this driver died"):
            [add.remote(1) for _ in range(1000)]
        disconnect(driver)


def test_a_driver_whose_job_is_given_to_another_is_told_so(tmp_path: Path) -> None:
    with FakeNode(tmp_path) as node:
        driver = connect(node, [])
        ref = add.remote(1)
        node.specs(1)
        # As when a control store that leads anew is asked for the job again.
        node.send(Refused("job_already_running", "job 'nightly' was taken over by another driver"))
        with pytest.raises(JobAlreadyRunningError, match="taken over"):
            regrow.get(ref)
        node.die()
        with pytest.raises(JobAlreadyRunningError, match="taken over"):
            [add.remote(1) for _ in range(1000)]
        assert driver.refused
        disconnect(driver)


def test_one_key_is_one_task(node: FakeNode, driver: Driver) -> None:
    first = add.options(key="k").remote(1)
    second = add.options(key="k").remote(1)
    assert first is second
    with pytest.raises(ReplayMismatchError, match="key"):
        add.options(key="k").remote(2)
    other = add.options(key="l").remote(1)
    assert other != first
    assert len(node.specs(2)) == 2


async def _gather(refs: list[Any]) -> list[Any]:
    import asyncio

    return list(await asyncio.gather(*[_one(ref) for ref in refs]))


async def _one(ref: Any) -> Any:
    return await ref


def test_references_can_be_awaited(node: FakeNode, driver: Driver) -> None:
    import asyncio

    node.runs = lambda spec: arguments(spec)[0]
    refs = [add.remote(i) for i in range(3)]
    assert asyncio.run(_gather(refs)) == [0, 1, 2]
    assert add.remote(9).future().result(timeout=10) == 9


def test_a_futures_callback_may_use_the_api(node: FakeNode, driver: Driver) -> None:
    node.runs = lambda spec: arguments(spec)[0]
    got: list[int] = []
    done = threading.Event()

    def callback(_: object) -> None:
        got.append(regrow.get(add.remote(8)))
        done.set()

    add.remote(7).future().add_done_callback(callback)
    assert done.wait(10)
    assert got == [8]


def test_threads_submit_and_get_at_once(node: FakeNode, driver: Driver) -> None:
    node.runs = lambda spec: arguments(spec)[0]
    wrong: list[int] = []

    def work(base: int) -> None:
        for i in range(200):
            if regrow.get(add.remote(base + i)) != base + i:
                wrong.append(base + i)

    threads = [threading.Thread(target=work, args=(k * 1000,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong


def test_large_puts_outlive_the_memory_of_the_node(tmp_path: Path) -> None:
    with FakeNode(tmp_path) as first, FakeNode(tmp_path, node_id=2) as second:
        driver = connect(first, [second.path])
        kept = regrow.put(np.arange(50_000))
        first.commits = False
        unknown = regrow.put(np.arange(60_000))
        overwritten = regrow.put(np.arange(70_000))
        place = first._created[overwritten.binary()].offset
        first.until(Seal, lambda seal: seal.object_id == overwritten.binary())
        first.arena.view(place + 5000, 8)[:] = b"\xff" * 8  # as if it were spilled
        first.die()
        second.until(Seal, lambda seal: seal.object_id == unknown.binary())
        assert [regrow.get(ref, timeout=10).size for ref in (kept, unknown)] == [50_000, 60_000]
        with pytest.raises(ObjectLostError, match="lost with its node"):
            regrow.get(overwritten, timeout=10)
        assert len(second.all(Seal)) == 2
        disconnect(driver)
