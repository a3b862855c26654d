"""Large objects: read-only views, spill, limits, and that nothing stays behind: not with a process
that dies, not with a reference that is dropped, on no node."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import regrow as ray
from regrow.chaos.spy import Spy
from regrow.cluster_utils import Cluster
from regrow.exceptions import ObjectStoreFullError, WorkerCrashedError
from tests.cluster.watching import node_files, wait_until

MB = 1 << 20
ARENA = 32 * MB


class Watched:
    """A cluster and what each of its nodes holds."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.spies = [Spy(cluster.home, file["socket"]) for file in node_files(cluster.home)]

    def held(self) -> list[tuple[int, int, int]]:
        """Of each node: bytes in the arena, bytes spilled, readers' pins."""
        stats = [spy.stats() for spy in self.spies]
        return [(s["arena_used"], s["spill_used"], s["pinned"]) for s in stats]

    def objects(self) -> list[int]:
        return [spy.stats()["objects"] for spy in self.spies]

    def wait_empty(self) -> None:
        nothing = [(0, 0, 0)] * len(self.spies)
        wait_until(lambda: self.held() == nothing, f"everything is free, not {self.held()}", 20)

    def close(self) -> None:
        for spy in self.spies:
            spy.close()


@contextmanager
def watched(others: int = 0, **head: Any) -> Iterator[Watched]:
    head = {"num_cpus": 2, "object_store_memory": ARENA, **head}
    with Cluster(initialize_head=True, head_node_args=head) as cluster:
        for index in range(others):
            cluster.add_node(num_cpus=1, object_store_memory=ARENA, resources={f"node{index}": 100})
        cluster.wait_for_nodes()
        cluster.connect()
        view = Watched(cluster)
        try:
            yield view
        finally:
            view.close()


@pytest.fixture(scope="module")
def shared(own_environment: Path) -> Iterator[Cluster]:
    options = {"num_cpus": 2, "object_store_memory": ARENA}
    with Cluster(initialize_head=True, head_node_args=options) as cluster:
        yield cluster


@pytest.fixture
def store(shared: Cluster) -> Iterator[Watched]:
    """A node with a small arena, which is empty before and after the test."""
    ray.init(address=shared.address)
    view = Watched(shared)
    view.wait_empty()
    yield view
    view.wait_empty()
    view.close()
    ray.shutdown()


@ray.remote
def make(index: int, size: int) -> np.ndarray[Any, Any]:
    return np.full(size, index % 251, dtype=np.uint8)


@ray.remote
def total(*arrays: np.ndarray[Any, Any]) -> int:
    return int(sum(int(array.sum(dtype=np.int64)) for array in arrays))


def is_filled(array: np.ndarray[Any, Any], index: int, size: int) -> bool:
    return array.shape == (size,) and bool((array == index % 251).all())


# --- views ----------------------------------------------------------------------------------------


def test_arrays_are_read_only_views_of_the_arena(store: Watched) -> None:
    ref = make.remote(7, MB)
    first, second = ray.get(ref), ray.get(ref)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        first.flags.writeable = True
    with pytest.raises(TypeError, match=r"read-?only"):
        memoryview(first)[0] = 1
    copied = first.copy()
    copied[0] = 1
    assert is_filled(second, 7, MB)
    del ref, first, second


def test_views_stay_while_the_arena_is_filled_over_and_over(store: Watched) -> None:
    kept = ray.get(make.remote(1, 2 * MB))
    part = kept[1000:2000]
    del kept
    table = ray.get(ray.put(pa.table({"x": np.arange(200_000)})))
    column = table.column("x")
    del table
    for index in range(40):
        assert is_filled(ray.get(make.remote(index, 4 * MB)), index, 4 * MB)
    assert (part == 1).all()
    assert column.to_pylist()[:3] == [0, 1, 2]
    assert column.to_numpy()[-1] == 199_999
    assert store.held()[0][2] >= 1
    del part, column


def test_tables_and_what_is_cut_from_them_are_views(store: Watched) -> None:
    table = pa.table({"x": np.arange(300_000), "name": ["a", "b", "c"] * 100_000})
    ref = ray.put(table)
    found = ray.get(ref)
    assert found.equals(table)
    cut = found.slice(10, 5)
    again = ray.get(ref)
    addresses = [t.column("x").chunk(0).buffers()[1].address for t in (found, again)]
    assert addresses[0] == addresses[1]
    del ref, found, again
    assert cut.column("x").to_pylist() == [10, 11, 12, 13, 14]
    assert cut.column("name").to_pylist() == ["b", "c", "a", "b", "c"]
    del cut


# --- more than the arena --------------------------------------------------------------------------


def test_a_working_set_over_the_arena_is_spilled_and_comes_back_right(store: Watched) -> None:
    size = 3 * MB
    made = [make.remote(i, size) for i in range(15)]
    put = [ray.put(np.full(size, 100 + i, dtype=np.uint8)) for i in range(15)]
    ray.wait(made, num_returns=15, timeout=60)
    for _ in range(2):
        for i in range(15):
            assert is_filled(ray.get(made[i]), i, size)
            assert is_filled(ray.get(put[14 - i]), 114 - i, size)
    # Five arguments at a time fit; together they do not.
    for start in (0, 5, 10):
        wanted = sum(range(start, start + 5)) * size
        assert ray.get(total.remote(*made[start : start + 5]), timeout=60) == wanted
    assert store.held()[0][0] <= ARENA
    del made, put


def test_readers_of_more_than_the_arena_get_files(store: Watched) -> None:
    """All 60 MB are pinned at once; nothing waits for readers, and nothing is lost."""
    refs = [make.remote(i, 5 * MB) for i in range(12)]
    arrays = ray.get(refs, timeout=60)
    del refs
    assert all(is_filled(array, i, 5 * MB) for i, array in enumerate(arrays))
    more = [ray.put(np.full(MB, i, dtype=np.uint8)) for i in range(8)]
    assert all(is_filled(ray.get(ref), i, MB) for i, ref in enumerate(more))
    del arrays, more


def test_arguments_larger_than_the_arena_together(store: Watched) -> None:
    refs = [make.remote(i, 6 * MB) for i in range(8)]
    assert ray.get(total.remote(*refs), timeout=60) == sum(range(8)) * 6 * MB
    del refs


def test_what_fits_nowhere_says_so_with_the_sizes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_SPILL_CAPACITY", str(16 * MB))
    with watched() as view:
        before = view.held()
        with pytest.raises(ObjectStoreFullError, match=r"(?s)\d+.*\d+") as caught:
            ray.put(np.zeros(60 * MB, dtype=np.uint8))
        assert str(ARENA) in str(caught.value) or "32" in str(caught.value)
        assert "16" in str(caught.value)
        with pytest.raises(ObjectStoreFullError):
            ray.get(make.remote(1, 60 * MB), timeout=60)
        assert is_filled(ray.get(make.remote(2, 4 * MB), timeout=60), 2, 4 * MB)
        wait_until(lambda: view.held() == before, "nothing of it is left")


# --- death ----------------------------------------------------------------------------------------


def test_a_writer_that_is_killed_leaves_nothing(store: Watched) -> None:
    @ray.remote(max_retries=0)
    def dies_writing(size: int) -> None:
        from regrow import _client

        requests = _client.current()._requests
        for index in range(3):
            requests.make_room(bytes([index]) * 20, 0, size)
        ray.put(np.ones(size, dtype=np.uint8))
        os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        with pytest.raises(WorkerCrashedError):
            ray.get(dies_writing.remote(4 * MB), timeout=60)
        store.wait_empty()


def test_a_reader_that_is_killed_leaves_nothing(store: Watched) -> None:
    @ray.remote(max_retries=0)
    def dies_reading(array: np.ndarray[Any, Any], refs: list[Any]) -> None:
        kept = ray.get(refs)
        assert kept
        assert array.size
        os.kill(os.getpid(), signal.SIGKILL)

    refs = [make.remote(i, 3 * MB) for i in range(4)]
    with pytest.raises(WorkerCrashedError):
        ray.get(dies_reading.remote(refs[0], refs), timeout=60)
    assert all(is_filled(a, i, 3 * MB) for i, a in enumerate(ray.get(refs, timeout=30)))
    del refs


def test_a_driver_that_is_killed_leaves_nothing(shared: Cluster, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        "import numpy as np\n"
        "import regrow as ray\n"
        "ray.init(address=sys.argv[1])\n"
        "refs = [ray.put(np.ones(3 << 20, dtype=np.uint8)) for _ in range(4)]\n"
        "kept = ray.get(refs)\n"
        "print('ready', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    view = Watched(shared)
    done = subprocess.run(
        [sys.executable, str(program), shared.address],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    view.wait_empty()
    view.close()


# --- references -----------------------------------------------------------------------------------


def test_a_dropped_reference_frees_memory_on_every_node() -> None:
    with watched(others=2) as view:
        there = [{f"node{i}": 1} for i in range(2)]
        refs = [make.options(resources=there[i % 2]).remote(i, MB) for i in range(6)]
        wanted = sum(range(6)) * MB
        for resources in (*there, {}):
            assert ray.get(total.options(resources=resources).remote(*refs), timeout=60) == wanted
        assert all(is_filled(a, i, MB) for i, a in enumerate(ray.get(refs, timeout=30)))
        assert all(used > 0 for used, _, _ in view.held())
        put = ray.put(np.full(2 * MB, 3, dtype=np.uint8))
        assert ray.get(total.options(resources=there[0]).remote(put), timeout=30) == 6 * MB
        del refs, put
        view.wait_empty()
        wait_until(lambda: view.objects() == [0, 0, 0], f"no entries, not {view.objects()}")


def test_large_objects_cross_nodes_unharmed() -> None:
    with watched(others=1) as view:
        size = 24 * MB
        away = make.options(resources={"node0": 1})

        @ray.remote(resources={"node0": 1})
        def random(seed: int) -> np.ndarray[Any, Any]:
            return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)

        for seed in range(3):
            expected = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
            assert np.array_equal(ray.get(random.remote(seed), timeout=60), expected)
        # Larger than the arena of either node.
        assert is_filled(ray.get(away.remote(9, 40 * MB), timeout=60), 9, 40 * MB)
        view.wait_empty()


def test_an_object_may_hold_ten_thousand_references(store: Watched) -> None:
    refs = [ray.put(i) for i in range(5_000)]
    refs += [make.remote(i, 10) for i in range(5_000)]
    boxed = ray.put({"refs": refs})
    del refs

    @ray.remote
    def open_box(box: dict[str, list[Any]]) -> int:
        inner = box["refs"]
        assert len(inner) == 10_000
        return int(sum(ray.get(inner[:5_000]))) + len(ray.get(inner[5_000:]))

    @ray.remote
    def pass_on(box: list[Any]) -> list[Any]:
        return box

    assert ray.get(open_box.remote(boxed), timeout=90) == sum(range(5_000)) + 5_000
    passed = pass_on.remote([boxed])
    del boxed
    (inner,) = ray.get(passed, timeout=60)
    del passed
    found = ray.get(ray.get(inner)["refs"][-3:])
    assert [int(array[0]) for array in found] == [i % 251 for i in (4997, 4998, 4999)]
    del inner, found
    wait_until(lambda: store.objects() == [0], f"no entries, not {store.objects()}")


def test_what_is_handed_through_a_task_is_kept(store: Watched) -> None:
    """The caller lets go of what it passed in; only the result holds it then."""

    @ray.remote
    def pass_on(box: list[Any]) -> list[Any]:
        return box

    for index in range(200):
        passed = pass_on.remote([ray.put(np.full(MB // 8, index, dtype=np.uint8))])
        (inner,) = ray.get(passed, timeout=30)
        del passed
        assert is_filled(ray.get(inner, timeout=30), index, MB // 8)
    del inner
    wait_until(lambda: store.objects() == [0], f"no entries, not {store.objects()}")


def test_references_in_results_keep_what_they_name(store: Watched) -> None:
    @ray.remote
    def box(index: int) -> list[Any]:
        return [make.remote(index, MB), ray.put(np.full(MB, index, dtype=np.uint8))]

    boxes = [box.remote(i) for i in range(4)]
    ray.wait(boxes, num_returns=4, timeout=30)
    for index, ref in enumerate(boxes):
        for array in ray.get(ray.get(ref), timeout=30):
            assert is_filled(array, index, MB)
    del boxes, array, ref
    wait_until(lambda: store.objects() == [0], f"no entries, not {store.objects()}")


def test_what_is_never_asked_for_is_freed_too(store: Watched) -> None:
    for index in range(30):
        make.remote(index, 2 * MB)
    ray.get(make.remote(1, 1), timeout=60)
    wait_until(lambda: store.objects() == [0], f"no entries, not {store.objects()}")
