"""``regrow demo``: trains over three nodes, SIGKILLs one, and shows that nothing changed.

It decides what is run, which node dies and when, and whether the result counts as a success. The
training itself is `regrow.demo_training`, the figures at the end are `regrow.demo_report`'s, and
what else can be killed is `regrow.demo_faults`'.
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
    from regrow.demo_faults import Scene
    from regrow.demo_model import Floats
    from regrow.demo_report import Death, Figures, History
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
    #: On this machine's clock; and how long the step that was hit took from then.
    begun: float = 0.0
    recovered_s: float | None = None


def run_demo(
    *,
    kill: str = "node",
    home: Path | None = None,
    keep: bool = False,
    console: Console | None = None,
) -> int:
    """Run the demo and return its exit status.

    Args:
        kill: what dies: node, worker, actor, gcs, postgres, driver or everything.
        home: where the cluster keeps its data; by default a new temporary folder.
        keep: leave the data there, for ``regrow sql``; a given ``home`` is always left.
        console: where to print; by default standard output.

    Returns:
        0 if the weights equal those of the fault-free run bit for bit, the accuracy is at least
        `ACCURACY_FLOOR`, and what was killed was missed (objects of the killed node were lost and
        made again, calls of the killed actor were run again, and so on); 1 if not;
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
        return _run(console, place, kill)


def _run(console: Console, home: Path | None, kind: str) -> int:
    """Run it in this home, or in one that ends with the cluster."""
    from regrow import _home, demo_faults, demo_training
    from regrow.cluster_utils import Cluster
    from regrow.demo_report import History

    begin = time.monotonic()
    killed = {"node": "one", "gcs": "the control store", "postgres": "Postgres"}
    killed |= {kind: f"the {kind}" for kind in ("worker", "actor", "driver")}
    console.print(
        "A parameter server learns handwritten digits on three nodes; "
        f"{killed.get(kind, kind)} is killed."
    )
    with (
        console.status("starting three nodes"),
        contextlib.ExitStack() as started,
    ):
        cluster = Cluster(home=home)
        started.callback(cluster.shutdown)

        def start_nodes() -> list[Any]:
            cluster.add_node(num_cpus=1, resources=demo_training.HEAD)
            return [cluster.add_node(num_cpus=1, resources=demo_training.WORKER) for _ in range(2)]

        workers = start_nodes()
        cluster.wait_for_nodes()
        cluster.connect()
        ending = started.pop_all()
    with ending:
        running = _home.read_gcs(cluster.home)
        assert running is not None, "the cluster has just been started"
        console.print(f"three nodes after {time.monotonic() - begin:.1f} s, data in {cluster.home}")
        plan = demo_training.Plan()
        if kind == "node":
            with History(running.postgres_url) as history:
                passed = _compare(console, plan, cluster, workers, history)
        else:
            passed = _compare_faults(
                console, plan, demo_faults.Scene(cluster, workers, start_nodes, console.print), kind
            )
    console.print(f"total {time.monotonic() - begin:.1f} s")
    if home is not None:
        console.print(f"the log is kept: REGROW_HOME={home} regrow list tasks", soft_wrap=True)
    return SUCCESS if passed else FAILURE


def _compare_faults(console: Console, plan: Plan, scene: Scene, kind: str) -> bool:
    """As `_compare`, for everything that can be killed other than a node."""
    from regrow import demo_faults

    train = demo_faults.train_here if kind in demo_faults.HERE else demo_faults.train_again
    with _progress(console) as progress:
        scene.say = progress.console.print
        expected = _train(progress, "without a fault", plan)
        with scene.history() as history:
            tasks = history.tasks()
        weights, blow = train(plan, scene, kind, _bar(progress, "with a fault", plan))
    figures = blow.figures(tasks)
    for line in figures.lines():
        console.print(line, highlight=False, soft_wrap=True)
    return _verdict(console, {**_missed(kind, figures), **_learned(weights, expected)})


def _missed(kind: str, figures: Figures) -> dict[str, bool]:
    """What shows that the blow hit something."""
    again = figures.attempts + figures.replays
    share = f"work done again: {again / figures.tasks:.1%}"
    return {
        "worker": {"the worker's task ran again": figures.attempts > 0},
        "actor": {"the actor is back: calls after its checkpoint ran again": figures.replays > 0},
        "gcs": {"no task or call ran again": again == 0 and figures.noticed_s is not None},
        "postgres": {"no task or call ran again": again == 0 and figures.noticed_s is not None},
        "driver": {share: again < figures.tasks / 2 and figures.noticed_s is not None},
        "everything": {share: 0 < again < figures.tasks / 2},
    }[kind]


def _learned(weights: Floats, expected: Floats) -> dict[str, bool]:
    """Whether the training has come to what it was to come to."""
    from regrow.demo_model import accuracy, training_and_test_rows

    _, test = training_and_test_rows()
    right = accuracy(weights, test)
    return {
        f"accuracy on {len(test.labels)} digits not seen before: {right:.3f}": (
            right >= ACCURACY_FLOOR
        ),
        "weights equal those of the run without a fault, bit for bit": (
            weights.tobytes() == expected.tobytes()
        ),
    }


def _compare(
    console: Console, plan: Plan, cluster: Any, workers: list[Any], history: History
) -> bool:
    """Train without and with a fault, print what happened, return whether all is as it must be."""
    import regrow as ray
    from regrow import demo_report, demo_training

    kill = Kill()

    def choose(step: Step) -> None:
        if step.epoch == plan.kill_epoch:
            _choose_victim(kill, workers, history, [ref.task_id() for ref in step.shards])

    def strike(step: Step) -> None:
        if kill.node is not None and kill.at is None:
            kill.at, kill.begun = history.now(), time.monotonic()
            cluster.remove_node(kill.node, allow_graceful=False)
            progress.console.print(
                f"step {step.number(plan)}: node {kill.node_id} SIGKILLed; "
                f"of this epoch's {plan.shards} shards it made {kill.shards}"
            )

    with _progress(console) as progress:
        expected = _train(progress, "without a fault", plan)
        tasks = history.tasks()
        advance = _bar(progress, "with a fault", plan)

        def stepped() -> None:
            if kill.at is not None and kill.recovered_s is None:
                kill.recovered_s = time.monotonic() - kill.begun
            advance()

        final = demo_training.train(plan, choose, strike, stepped)
        weights: Floats = ray.get(final)
    assert kill.at is not None
    death = history.death(kill.node_id)
    reruns = history.reruns(death) if death is not None else []
    if death is not None:
        console.print(demo_report.losses_table(kill.at, death, reruns))
        for line in _figures(kill, death, history, tasks).lines():
            console.print(line, highlight=False, soft_wrap=True)
    console.print("lineage, as Postgres has it:")
    console.print(demo_report.lineage_tree(history.lineage(final.binary())))
    return _verdict(
        console,
        {
            f"objects lost and made again: {sum(one.restored for one in reruns)}": (
                any(one.restored for one in reruns)
            ),
            **_learned(weights, expected),
        },
    )


def _figures(kill: Kill, death: Death, history: History, tasks: int) -> Figures:
    from regrow.demo_report import Figures

    assert kill.at is not None
    assert kill.recovered_s is not None
    noticed_s = (death.died_at - kill.at).total_seconds()
    attempts, replays = history.run_again(kill.at)
    sign = "declared dead, in Postgres"
    return Figures(noticed_s, sign, kill.recovered_s, "the kill", attempts, replays, tasks)


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
