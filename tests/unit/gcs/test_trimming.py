"""How often the control store looks for calls whose arguments may leave the log."""

from __future__ import annotations

from regrow.gcs import operations as ops
from regrow.gcs.core_events import Settings
from regrow.gcs.trimming import CALLS_PER_TRIM, TRIM_MORE_S
from tests.unit.gcs.harness import Bench

TRIM_EVERY_S = Settings(holder="").trim_every_s


def looks(bench: Bench) -> int:
    return len(bench.operations(ops.TrimCalls))


def bench_that_has_just_looked() -> Bench:
    bench = Bench()
    before = looks(bench)
    while looks(bench) == before:
        bench.tick(0.05)
    return bench


def test_it_looks_now_and_then_and_soon_again_where_there_is_more() -> None:
    bench = bench_that_has_just_looked()
    before = looks(bench)
    bench.store.trimmable = 3 * CALLS_PER_TRIM
    bench.tick(TRIM_EVERY_S - 0.1)
    assert looks(bench) == before
    bench.tick(0.15)
    assert looks(bench) == before + 1
    bench.tick(2 * TRIM_MORE_S + 0.1)
    assert not bench.store.trimmable
    assert looks(bench) == before + 3
    bench.tick(TRIM_EVERY_S - 0.2)
    assert looks(bench) == before + 3, "nothing was left"


def test_one_look_is_under_way_at_a_time() -> None:
    bench = bench_that_has_just_looked()
    bench.hold = (ops.TrimCalls,)
    bench.tick(3 * TRIM_EVERY_S)
    assert len(bench.held) == 1
    bench.release()
    bench.tick(TRIM_EVERY_S)
    assert looks(bench) >= 3
