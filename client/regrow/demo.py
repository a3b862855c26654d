"""``regrow demo``: trains over three nodes, SIGKILLs one, and shows that nothing changed.

It decides what is run, which node dies and when, and whether the result counts as a success. The
training itself is `regrow.demo_training`, the figures at the end are `regrow.demo_report`'s.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from regrow.demo_model import Floats
    from regrow.demo_report import History
    from regrow.demo_training import Plan, Step

#: The share of held-out digits that the classifier must get right.
ACCURACY_FLOOR = 0.93
#: Exit statuses.
SUCCESS, FAILURE, UNUSABLE = 0, 1, 2
#: What the daemons and workers of the demo inherit.
ENVIRONMENT = {
    # The cluster is the demo's own: the user's database is not touched.
    "REGROW_POSTGRES": None,
    # Sums of products come out in one order in every worker.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass
class Kill:
    """The SIGKILL of a node that holds shards: what was chosen, and when it was done."""

    node: Any = None
    node_id: int = 0
    shards: int = 0
    at: datetime | None = None


def run_demo(
    *, home: Path | None = None, keep: bool = False, console: Console | None = None
) -> int:
    """Run the demo and return its exit status.

    Args:
        home: where the cluster keeps its data; by default a new temporary folder.
        keep: leave the data there, for ``regrow sql``; a given ``home`` is always left.
        console: where to print; by default standard output.

    Returns:
        0 if the weights equal those of the fault-free run bit for bit, the accuracy is at least
        `ACCURACY_FLOOR`, and objects of the killed node were lost and made again; 1 if not;
        2 if scikit-learn is not installed.
    """
    console = console or Console()
    if importlib.util.find_spec("sklearn") is None:
        console.print(
            "The demo learns the digits that come with scikit-learn, which is not installed: "
            "pip install 'regrow[demo]'",
            markup=False,
        )
        return UNUSABLE
    place = home or (Path(tempfile.mkdtemp(prefix="regrow-demo-")) if keep else None)
    with _environment(ENVIRONMENT):
        return _run(console, place)


def _run(console: Console, home: Path | None) -> int:
    """Run it in this home, or in one that ends with the cluster."""
    from regrow import _home, demo_training
    from regrow.cluster_utils import Cluster
    from regrow.demo_report import History

    begin = time.monotonic()
    console.print("A parameter server learns handwritten digits on three nodes; one is killed.")
    with (
        console.status("starting three nodes"),
        contextlib.ExitStack() as started,
    ):
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "resources": demo_training.HEAD},
            home=home,
        )
        started.callback(cluster.shutdown)
        workers = [cluster.add_node(num_cpus=1, resources=demo_training.WORKER) for _ in range(2)]
        cluster.wait_for_nodes()
        cluster.connect()
        ending = started.pop_all()
    with ending:
        running = _home.read_gcs(cluster.home)
        assert running is not None, "the cluster has just been started"
        console.print(f"three nodes after {time.monotonic() - begin:.1f} s, data in {cluster.home}")
        with History(running.postgres_url) as history:
            passed = _compare(console, demo_training.Plan(), cluster, workers, history)
    console.print(f"total {time.monotonic() - begin:.1f} s")
    if home is not None:
        console.print(f"the log is kept: REGROW_HOME={home} regrow list tasks", soft_wrap=True)
    return SUCCESS if passed else FAILURE


def _compare(
    console: Console, plan: Plan, cluster: Any, workers: list[Any], history: History
) -> bool:
    """Train without and with a fault, print what happened, return whether all is as it must be."""
    import regrow as ray
    from regrow import demo_report, demo_training
    from regrow.demo_model import accuracy, training_and_test_rows

    kill = Kill()

    def choose(step: Step) -> None:
        if step.epoch == plan.kill_epoch:
            _choose_victim(kill, workers, history, [ref.task_id() for ref in step.shards])

    def strike(step: Step) -> None:
        if kill.node is not None and kill.at is None:
            kill.at = history.now()
            cluster.remove_node(kill.node, allow_graceful=False)
            progress.console.print(
                f"step {step.number(plan)}: node {kill.node_id} SIGKILLed; "
                f"of this epoch's {plan.shards} shards it made {kill.shards}"
            )

    with _progress(console) as progress:
        expected = _train(progress, "without a fault", plan)
        final = demo_training.train(plan, choose, strike, _bar(progress, "with a fault", plan))
        weights: Floats = ray.get(final)
    assert kill.at is not None
    death = history.death(kill.node_id)
    reruns = history.reruns(death) if death is not None else []
    if death is not None:
        console.print(demo_report.losses_table(kill.at, death, reruns))
    console.print("lineage, as Postgres has it:")
    console.print(demo_report.lineage_tree(history.lineage(final.binary())))
    _, test = training_and_test_rows()
    right = accuracy(weights, test)
    return _verdict(
        console,
        {
            f"accuracy on {len(test.labels)} digits not seen before: {right:.3f}": (
                right >= ACCURACY_FLOOR
            ),
            f"objects lost and made again: {sum(one.restored for one in reruns)}": (
                any(one.restored for one in reruns)
            ),
            "weights equal those of the run without a fault, bit for bit": (
                weights.tobytes() == expected.tobytes()
            ),
        },
    )


def _train(progress: Progress, title: str, plan: Plan) -> Floats:
    """Train with nobody interfering and return the weights."""
    import regrow as ray
    from regrow import demo_training

    def leave_alone(_: Step) -> None:
        """Let the step be."""

    final = demo_training.train(plan, leave_alone, leave_alone, _bar(progress, title, plan))
    # A copy: the arena's bytes are pinned only as long as they are looked at.
    weights: Floats = ray.get(final).copy()
    return weights


def _choose_victim(
    kill: Kill, workers: list[Any], history: History, shard_tasks: list[bytes]
) -> None:
    """Choose the worker node that made the most of the shards: the log knows."""
    made = history.made_on(shard_tasks)
    kill.node = max(workers, key=lambda node: made[node.node_id])
    kill.node_id = kill.node.node_id
    kill.shards = made[kill.node_id]


def _verdict(console: Console, claims: dict[str, bool]) -> bool:
    for claim, true in claims.items():
        console.print(f"[green]yes[/] {claim}" if true else f"[red]NO[/]  {claim}")
    return all(claims.values())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


def _bar(progress: Progress, title: str, plan: Plan) -> Callable[[], None]:
    task = progress.add_task(title, total=plan.total_steps)
    return lambda: progress.advance(task)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables (None: unset), which daemons and workers inherit, for a while."""
    before = {name: os.environ.get(name) for name in changes}
    _apply(changes)
    try:
        yield
    finally:
        _apply(before)


def _apply(changes: Mapping[str, str | None]) -> None:
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
