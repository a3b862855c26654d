"""Ray's semantics of tasks and objects, through a real cluster on this machine."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import regrow as ray
from regrow.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError

TIMEOUT_S = 30.0


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("REGROW_HOME", str(tmp_path_factory.mktemp("home")))
    ray.init(num_cpus=2, object_store_memory=200 << 20)
    yield
    ray.shutdown()
    patch.undo()


def get(refs: Any) -> Any:
    return ray.get(refs, timeout=TIMEOUT_S)


def plain(value: int) -> int:
    """Not remote: workers import it by name."""
    return value * 2


@ray.remote
def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


@ray.remote
def add(a: int, b: int = 1) -> int:
    return a + b


def test_arguments_arrive_as_they_were_given() -> None:
    args = (1, "two", [3.0, None], {"four": (5,)}, b"six", {7})
    assert get(echo.remote(*args, seven=8, nine=[10])) == (args, {"seven": 8, "nine": [10]})
    assert get(echo.remote()) == ((), {})
    assert get(echo.remote(a=1)) == ((), {"a": 1})


def test_results_feed_tasks_by_position_and_by_name() -> None:
    one = add.remote(0)
    two = add.remote(one, b=one)
    assert get(add.remote(two, b=two)) == 4
    assert get(echo.remote(one, one, x=two)) == ((1, 1), {"x": 2})


def test_nested_references_stay_references() -> None:
    @ray.remote
    def total(refs: dict[str, Any]) -> int:
        assert all(isinstance(ref, ray.ObjectRef) for ref in refs.values())
        return sum(ray.get(list(refs.values())))

    assert get(total.remote({"a": add.remote(1), "b": ray.put(10)})) == 12


def test_a_returned_reference_outlives_the_task_that_made_it() -> None:
    @ray.remote
    def make() -> list[Any]:
        return [ray.put(np.arange(50_000)), add.remote(4), ray.put("small")]

    large, child, small = get(make.remote())
    assert get(large).sum() == 1249975000
    assert get([child, small]) == [5, "small"]


def test_nested_tasks_do_not_starve_their_parents() -> None:
    @ray.remote
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        return sum(ray.get([tree.remote(depth - 1) for _ in range(3)]))

    assert get(tree.remote(3)) == 27


def test_recursion_through_a_closure() -> None:
    @ray.remote
    def factorial(n: int) -> int:
        return 1 if n <= 1 else n * ray.get(factorial.remote(n - 1))

    assert get(factorial.remote(6)) == 720


def test_captured_values_and_imported_functions() -> None:
    factor = 7

    @ray.remote
    def scale(x: int) -> int:
        return plain(x) * factor

    assert get(scale.remote(3)) == 42


def test_several_return_values() -> None:
    @ray.remote(num_returns=3)
    def three() -> tuple[int, str, list[int]]:
        return 1, "b", [3]

    a, b, c = three.remote()
    assert get([a, b, c]) == [1, "b", [3]]
    assert three.options(num_returns=0).remote() is None
    wrong = three.options(num_returns=2).remote()
    with pytest.raises(ValueError, match="num_returns=2 but returned 3"):
        get(wrong[1])


def test_the_values_of_a_generator_become_its_results() -> None:
    @ray.remote(num_returns=3)
    def count(n: int) -> Iterator[Any]:
        for i in range(n):
            yield np.full(20_000, i) if i == 1 else i
        if n == 1:
            raise LookupError("after the first")

    def endless() -> Iterator[int]:
        while True:
            yield 1

    zero, one, two = count.remote(3)
    assert get([zero, two]) == [0, 2]
    assert get(one).sum() == 20_000
    for n, text in ((2, "returned 2 values"), (4, "yielded more than 3"), (1, "after the first")):
        for ref in count.remote(n):
            with pytest.raises((ValueError, LookupError), match=text):
                get(ref)
    with pytest.raises(ValueError, match="yielded more than 2"):
        get(ray.remote(endless).options(num_returns=2).remote())


def test_large_arguments_and_results_are_shared_and_read_only() -> None:
    array = np.random.default_rng(1).normal(size=(300, 400))

    @ray.remote
    def double(x: Any) -> Any:
        assert not x.flags.writeable
        return x * 2

    result = get(double.remote(array))
    assert np.array_equal(result, array * 2)
    assert not result.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        result[0] = 0


def test_arrow_tables_come_back_equal() -> None:
    table = pa.table({"n": list(range(10_000)), "s": [str(i) for i in range(10_000)]})

    @ray.remote
    def rows(t: Any) -> int:
        return int(t.num_rows)

    ref = ray.put(table)
    assert get(rows.remote(ref)) == 10_000
    assert get(ref).equals(table)


def test_views_stay_valid_after_their_reference_died() -> None:
    views = [get(ray.put(np.full(200_000, i))) for i in range(20)]  # 32 MB of a 200 MB arena
    more = [ray.put(np.full(200_000, -1)) for _ in range(100)]
    assert [int(view[-1]) for view in views] == list(range(20))
    del more


def test_what_is_dropped_makes_room() -> None:
    for i in range(40):  # 40 x 16 MB through a 200 MB arena
        assert get(ray.put(np.full(2_000_000, i)))[0] == i


def test_get_of_many_and_of_duplicates() -> None:
    refs = [add.remote(i) for i in range(500)]
    assert get(refs) == list(range(1, 501))
    assert get([refs[3]] * 3) == [4, 4, 4]
    assert get([]) == []


def test_get_refuses_what_is_no_reference() -> None:
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        ray.get(3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="Invalid type of object refs"):
        ray.get([add.remote(1), 3])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not allowed"):
        ray.put(ray.put(1))


def test_timeouts_leave_the_reference_usable() -> None:
    @ray.remote
    def slow() -> str:
        time.sleep(0.3)
        return "done"

    ref = slow.remote()
    with pytest.raises(GetTimeoutError):
        ray.get(ref, timeout=0.01)
    assert ray.wait([ref], timeout=0) == ([], [ref])
    assert get(ref) == "done"
    assert ray.wait([ref], timeout=0) == ([ref], [])


def test_wait_does_not_wait_for_stragglers(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    @ray.remote
    def straggle(i: int) -> int:
        while i == 0 and not gate.exists():
            time.sleep(0.01)
        return i

    refs = [straggle.remote(i) for i in range(3)]
    ready, rest = ray.wait(refs, num_returns=2, timeout=TIMEOUT_S)
    assert ready == refs[1:]
    assert rest == refs[:1]
    gate.touch()
    assert get(refs) == [0, 1, 2]


def test_references_are_awaitable_and_futures() -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*[_one(add.remote(i)) for i in range(10)]))

    assert asyncio.run(main()) == list(range(1, 11))
    assert add.remote(5).future().result(TIMEOUT_S) == 6


async def _one(ref: Any) -> int:
    return int(await ref)


def test_threads_of_one_driver() -> None:
    results: dict[int, list[int]] = {}

    def work(k: int) -> None:
        results[k] = get([add.remote(k * 100 + i) for i in range(50)])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert results == {k: [k * 100 + i + 1 for i in range(50)] for k in range(4)}


def test_a_thread_that_a_task_starts_can_submit() -> None:
    @ray.remote
    def parent() -> int:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(ray.get(add.remote(1))))
        thread.start()
        thread.join()
        return found[0]

    assert get(parent.remote()) == 2


def test_one_key_is_one_task_within_a_job(tmp_path: Path) -> None:
    @ray.remote
    def append() -> int:
        with (tmp_path / "runs").open("a") as file:
            file.write("x")
        return 5

    refs = [append.options(key="once").remote() for _ in range(3)]
    assert get(refs) == [5, 5, 5]
    del refs
    assert get(append.options(key="once").remote()) == 5
    assert (tmp_path / "runs").read_text() == "x"


def test_forked_workers_draw_different_numbers(tmp_path: Path) -> None:
    @ray.remote
    def draw(i: int) -> tuple[int, float, float]:
        (tmp_path / str(i)).touch()
        while len(os.listdir(tmp_path)) < 2:  # so that two workers take part
            time.sleep(0.005)
        return os.getpid(), random.random(), float(np.random.random())

    (pid, first, of_numpy), (other_pid, second, of_numpy_2) = get([draw.remote(i) for i in (0, 1)])
    assert pid != other_pid
    assert first != second
    assert of_numpy != of_numpy_2


def test_workers_have_a_fixed_hash_seed() -> None:
    @ray.remote
    def hashed() -> int:
        return hash("a string")

    values = get([hashed.remote() for _ in range(4)])
    assert len(set(values)) == 1


# --- errors ---------------------------------------------------------------------------------------


class ShopError(Exception):
    """Its arguments are not those of its constructor."""

    def __init__(self, item: str, price: int) -> None:
        super().__init__(f"{item} costs {price}")
        self.price = price


def buy(item: str) -> None:
    raise LookupError(item)


@ray.remote
def failing(kind: str) -> Any:
    if kind == "lookup":
        buy("tea")
    if kind == "shop":
        raise ShopError("tea", 3)
    if kind == "lock":
        error = RuntimeError("held")
        error.lock = threading.Lock()  # type: ignore[attr-defined]
        raise error
    if kind == "exit":
        raise SystemExit(3)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "result":
        return threading.Lock()
    if kind == "chained":
        try:
            buy("milk")
        except LookupError as error:
            raise ValueError("no milk") from error
    return None


def test_an_error_has_the_users_type_and_frames_only() -> None:
    with pytest.raises(LookupError) as caught:
        get(failing.remote("lookup"))
    error = caught.value
    assert isinstance(error, RayTaskError)
    assert error.args == ("tea",) or "tea" in str(error)
    assert "in buy" in str(error)
    assert "in failing" in str(error)
    assert "_execute.py" not in str(error)
    assert isinstance(error.cause, LookupError)


def test_chained_errors_show_their_origin() -> None:
    with pytest.raises(ValueError, match="no milk") as caught:
        get(failing.remote("chained"))
    assert "LookupError: milk" in str(caught.value)


def test_an_error_with_a_constructor_of_its_own_has_its_type() -> None:
    with pytest.raises(ShopError, match="tea costs 3") as caught:
        get(failing.remote("shop"))
    assert isinstance(caught.value, RayTaskError)
    assert caught.value.args == ("tea costs 3",)
    assert caught.value.price == 3


def test_an_error_that_does_not_pickle_arrives_as_text_that_says_why() -> None:
    with pytest.raises(RayTaskError, match=r"held[^$]*RuntimeError, is not here: pickling .*lock"):
        get(failing.remote("lock"))


@pytest.mark.parametrize(
    ("kind", "text"), [("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")]
)
def test_exits_in_a_task_are_errors_of_that_task(kind: str, text: str) -> None:
    with pytest.raises(RayTaskError, match=text):
        get(failing.remote(kind))
    assert get(add.remote(1)) == 2


def test_a_result_that_does_not_pickle_is_named() -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        get(failing.remote("result"))


def test_errors_pass_through_dependent_and_nesting_tasks() -> None:
    @ray.remote
    def outer() -> None:
        ray.get(failing.remote("lookup"))

    with pytest.raises(LookupError):
        get(add.remote(failing.remote("lookup")))
    with pytest.raises(LookupError, match="tea"):
        get(outer.remote())


def test_get_of_several_raises_the_first_error() -> None:
    with pytest.raises(LookupError):
        get([add.remote(1), failing.remote("lookup"), failing.remote("exit")])


def test_exceptions_are_retried_only_if_asked(tmp_path: Path) -> None:
    @ray.remote(max_retries=5)
    def flaky(name: str, kind: type[Exception]) -> int:
        path = tmp_path / name
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size < 3:
            raise kind("not yet")
        return path.stat().st_size

    with pytest.raises(ValueError, match="not yet"):
        get(flaky.remote("never", ValueError))
    assert (tmp_path / "never").stat().st_size == 1
    assert get(flaky.options(retry_exceptions=True).remote("all", ValueError)) == 3
    some = flaky.options(retry_exceptions=[KeyError])
    assert get(some.remote("those", KeyError)) == 3
    with pytest.raises(ValueError, match="not yet"):
        get(some.remote("others", ValueError))


def test_a_task_that_kills_its_worker_is_retried_then_failed(tmp_path: Path) -> None:
    @ray.remote(max_retries=1)
    def crash(times: int) -> int:
        path = tmp_path / f"crash-{times}"
        with path.open("a") as file:
            file.write("x")
        if path.stat().st_size <= times:
            os.kill(os.getpid(), 11)
        return path.stat().st_size

    assert get(crash.remote(1)) == 2
    with pytest.raises(WorkerCrashedError):
        get(crash.remote(5))
    # A finite number is honoured, three by default; without one, three deaths end it.
    assert get(crash.options(max_retries=3).remote(3)) == 4
    assert get(crash.options(max_retries=6).remote(6)) == 7
    with pytest.raises(WorkerCrashedError, match="3 workers"):
        get(crash.options(max_retries=-1).remote(8))
    assert (tmp_path / "crash-8").stat().st_size == 3
    assert get(add.remote(1)) == 2


def test_calling_a_remote_function_is_refused() -> None:
    with pytest.raises(TypeError, match=r"add\.remote\(\)"):
        add(1)


def test_partials_and_lambdas_are_functions_too() -> None:
    double = ray.remote(lambda x: x * 2)
    assert get(double.remote(4)) == 8
    with pytest.raises(TypeError, match="either a function or a class"):
        ray.remote(functools.partial(plain, 3))


# --- the rest -------------------------------------------------------------------------------------


def test_the_context_of_driver_and_task() -> None:
    @ray.remote(num_cpus=0.5)
    def inside() -> dict[str, Any]:
        context = ray.get_runtime_context()
        return {
            "job": context.get_job_id(),
            "task": context.get_task_id(),
            "actor": context.get_actor_id(),
            "node": context.get_node_id(),
            "resources": context.get_assigned_resources(),
        }

    ref = inside.remote()
    told = get(ref)
    context = ray.get_runtime_context()
    assert context.get_task_id() is None
    assert told == {
        "job": context.get_job_id(),
        "task": ref.task_id().hex(),
        "actor": None,
        "node": context.get_node_id(),
        "resources": {"CPU": 0.5},
    }


def test_the_cluster_as_it_is_seen() -> None:
    [node] = ray.nodes()
    assert node["Alive"]
    assert node["Resources"]["CPU"] == 2.0
    total = ray.cluster_resources()
    assert total == node["Resources"]
    assert total["CPU"] == 2.0
    assert total["object_store_memory"] == 200 << 20
    assert total[f"node:{node['NodeManagerAddress']}"] == 1.0
    assert total["node:__internal_head__"] == 1.0
    assert ray.available_resources()["object_store_memory"] == 200 << 20
    here = add.options(resources={f"node:{node['NodeManagerAddress']}": 0.01})
    assert get(here.remote(1)) == 2
    assert ray.available_resources()["CPU"] <= 2.0
    assert ray.is_initialized()
    with pytest.raises(RuntimeError, match="twice"):
        ray.init()
    assert ray.init(ignore_reinit_error=True)["node_id"] == node["NodeID"]
