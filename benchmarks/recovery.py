"""How soon what was lost is back: objects of a killed node, and a job whose driver was killed.

    python benchmarks/recovery.py

Times count from the SIGKILL.  The objects are 20 of 1 MiB, each worth 50 ms of work, whose only
copies were on the killed node.  The job has 10,000 finished tasks; its time is that of the second
program, from its start to the last result, with the start of the cluster.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import regrow as ray
from regrow.cluster_utils import Cluster

RUNS = 3
OBJECTS = 20
WORK_S = 0.05
TASKS = 10_000


@ray.remote(resources={"spare": 0.001})
def worth(number: int) -> np.ndarray:
    end = time.perf_counter() + WORK_S
    while time.perf_counter() < end:
        pass
    return np.full(1 << 20, number % 256, np.uint8)


def seconds_until_objects_are_back() -> float:
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 0}) as cluster:
        victim = cluster.add_node(num_cpus=2, resources={"spare": 1})
        cluster.connect()
        cluster.wait_for_nodes()
        refs = [worth.remote(number) for number in range(OBJECTS)]
        ray.wait(refs, num_returns=OBJECTS, timeout=60, fetch_local=False)
        cluster.add_node(num_cpus=2, resources={"spare": 1})
        cluster.wait_for_nodes()
        start = time.perf_counter()
        cluster.remove_node(victim, allow_graceful=False)
        back = ray.get(refs, timeout=60)
        took = time.perf_counter() - start
        assert [int(array[0]) for array in back] == list(range(OBJECTS))
        ray.shutdown()
    return took


PROGRAM = f"""
import os, signal, sys
import regrow as ray
@ray.remote
def step(i): return i + 1
ray.init(job="benchmark", logging_level="ERROR")
assert ray.get([step.remote(i) for i in range({TASKS})]) == list(range(1, {TASKS} + 1))
if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


def seconds_until_a_job_is_back(folder: Path) -> float:
    program = folder / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "REGROW_HOME": str(folder / "home")}
    command = [sys.executable, str(program)]
    killed = subprocess.run([*command, "kill"], env=environment, check=False).returncode
    assert killed == -signal.SIGKILL
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True)
    return time.perf_counter() - start


def main() -> None:
    objects = [seconds_until_objects_are_back() for _ in range(RUNS)]
    jobs = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            jobs.append(seconds_until_a_job_is_back(Path(folder)))
    for what, times in (
        (f"{OBJECTS} lost objects of 1 MiB, {OBJECTS * WORK_S:g} s of work", objects),
        (f"a job of {TASKS:,} finished tasks", jobs),
    ):
        spread = f"{min(times):.2f} to {max(times):.2f}"
        print(f"{what:45} back after {statistics.median(times):.2f} s ({spread}, {RUNS} runs)")


if __name__ == "__main__":
    main()
