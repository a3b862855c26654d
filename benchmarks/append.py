"""What one row of the log costs: CPU of the node's side and of Postgres, and rows a second.

Run: python benchmarks/append.py [POSTGRES_URL]

Without a URL on an embedded server of its own, with fsync on. The database must be empty: it is
filled. Takes about five seconds.
"""

from __future__ import annotations

import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from regrow.gcs import embedded, schema
from regrow.gcs import operations as ops
from regrow.gcs.log import LogConnection
from regrow.gcs.operations import Append, Batch, Outcome, PutRow, Submitted
from regrow.gcs.store import PostgresStore
from regrow.ids import CountedIds, put_object_id
from regrow.messages import NodeView, Return, TaskHeader

ROOT = b"root of the job."
IN_FLIGHT = 2


class Bench:
    """One node that appends to its log."""

    def __init__(self, url: str) -> None:
        schema.upgrade(url)
        store = PostgresStore(url, connections=1)
        epoch = msgspec.structs.asdict(store.execute(ops.Lead("bench", 0, 60)))["epoch"]
        view = NodeView(0, 0, "", 0, "", {}, {}, 0, {}, True, True)
        store.execute(ops.RegisterNode(epoch, view, 60))
        store.execute(ops.CreateJob(epoch, ROOT, "bench", 1))
        store.close()
        self._ids = CountedIds(ROOT)
        self._log = LogConnection.connect(url)
        self._number = 0
        self._waiting = 0

    def task(self, outcome: bool) -> Submitted:
        """A small call: a spec of 150 bytes, a result of 20."""
        task_id = self._ids.next_id()
        header = TaskHeader(
            task_id, b"parent of it all", 1, b"its function ...", "square", 0, b"", [], [], None,
            1, 3, 0, "",
        )  # fmt: skip
        ended = self.outcome(task_id) if outcome else None
        return Submitted(header, b"s" * 150, 1, (1, 1), 1, ended)

    @staticmethod
    def outcome(task_id: bytes) -> Outcome:
        return Outcome(task_id, 1, 1, [Return(20, b"digest of result", b"r" * 20)], 120)

    def put(self) -> PutRow:
        oid = put_object_id(self._ids.next_id())
        return PutRow(oid, b"parent of it all", 1, 20, b"digest of result", b"r" * 20, [])

    def send(self, batch: Batch) -> None:
        self._number += 1
        self._log.send(Append(1, 1, self._number, batch))
        self._waiting += 1

    def wait(self, left: int) -> None:
        """Until no more than so many batches are unanswered."""
        while self._waiting > left:
            writing = [self._log] if self._log.flush() else []
            select.select([self._log], writing, [], 10)
            for _, answer in self._log.receive():
                assert answer.verdict == ops.APPLIED, answer
                self._waiting -= 1

    def run(self, name: str, batches: list[Batch], size: int) -> None:
        """Prints the figures of one kind of batch."""
        rows = size * len(batches)
        cpu_s, server_s, started = time.process_time(), self._server_s(), time.perf_counter()
        for batch in batches:
            self.send(batch)
            self._log.flush()
            self.wait(IN_FLIGHT - 1)
        self.wait(0)
        took_s = time.perf_counter() - started
        ours_us = (time.process_time() - cpu_s) / rows * 1e6
        theirs_us = (self._server_s() - server_s) / rows * 1e6
        print(
            f"{name:<18}{size:>6} {rows / took_s:>10,.0f} rows/s"
            f"{ours_us:>7.1f} us node {theirs_us:>6.1f} us Postgres"
        )

    def _server_s(self) -> float:
        """CPU time of the server process; its clock has steps of 10 ms."""
        text = Path(f"/proc/{self._log.backend_pid}/stat").read_text()
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def alone(self, times: int = 300) -> None:
        """Prints how long a single record takes."""
        took_ms = []
        for _ in range(times):
            batch = Batch(submitted=[self.task(True)])
            started = time.perf_counter()
            self.send(batch)
            self.wait(0)
            took_ms.append((time.perf_counter() - started) * 1e3)
        print(f"one record alone: {statistics.median(took_ms):.2f} ms")


def measure(url: str) -> None:
    """All figures, on an empty database."""
    bench = Bench(url)
    for size in (50, 200, 1000):
        made = range(40_000 // size)
        done = [Batch(submitted=[bench.task(True) for _ in range(size)]) for _ in made]
        bench.run("spec with outcome", done, size)
    for size in (200, 1000):
        batches = [[bench.task(False) for _ in range(size)] for _ in range(20_000 // size)]
        bench.run("spec alone", [Batch(submitted=tasks) for tasks in batches], size)
        outcomes = [[bench.outcome(t.header.task_id) for t in tasks] for tasks in batches]
        bench.run("outcome alone", [Batch(outcomes=ended) for ended in outcomes], size)
    puts = [Batch(puts=[bench.put() for _ in range(200)]) for _ in range(100)]
    bench.run("small put", puts, 200)
    bench.alone()


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    with tempfile.TemporaryDirectory(prefix="regrow-bench-") as folder:
        data_dir = Path(folder) / "postgres"
        try:
            measure(embedded.start(data_dir).url)
        finally:
            embedded.destroy(data_dir)


if __name__ == "__main__":
    main()
