"""The pytest plugin that comes with regrow: tests under faults.

    @pytest.mark.chaos(kill="node", every_s=2, seeds=5)
    def test_pipeline(regrow_cluster):
        assert regrow.get(pipeline.remote()) == EXPECTED

The test runs once for each seed, with that fault striking in the background on a private cluster
whose driver is the test's own process. It fails if the faults never struck. pytest loads this
module wherever regrow is installed, so it imports nothing of regrow before a test asks for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from regrow.chaos.testing import ChaosCluster, InBackground, Nemeses, Wanted

MARKER = "chaos"
_BACKGROUND: pytest.StashKey[InBackground] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The seed to replay."""
    group = parser.getgroup("regrow", "regrow: tests under faults")
    group.addoption(
        "--chaos-seed",
        type=int,
        metavar="N",
        help="run tests marked `chaos` with this seed only: that of a failure, to replay it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(kill='node', every_s=3, seeds=1, nodes=3, cpus=2, standby=False, proxy=False): "
        "run once for each seed while the faults strike a private cluster; kill is worker, node, "
        "gcs, postgres or any nemesis of `regrow chaos`, or a list of them.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed."""
    marker = metafunc.definition.get_closest_marker(MARKER)
    if marker is None:
        return
    wanted = _wanted(marker)
    given = metafunc.config.getoption("--chaos-seed")
    seeds = list(wanted.all_seeds()) if given is None else [given]
    if "chaos_seed" not in metafunc.fixturenames:
        metafunc.fixturenames.append("chaos_seed")
    ids = [f"seed-{seed}" for seed in seeds]
    metafunc.parametrize("chaos_seed", seeds, indirect=True, ids=ids)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A marked test has a cluster and a seed, whether it names them or not."""
    if isinstance(item, pytest.Function) and item.get_closest_marker(MARKER) is not None:
        for name in ("chaos_seed", "regrow_cluster"):
            if name not in item.fixturenames:
                item.fixturenames.append(name)


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run of the test."""
    given = request.config.getoption("--chaos-seed")
    return int(getattr(request, "param", 0 if given is None else given))


@pytest.fixture
def regrow_cluster(
    request: pytest.FixtureRequest, chaos_seed: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChaosCluster]:
    """A private cluster, which this process has joined: ``regrow.get`` and the like work."""
    from regrow.chaos import testing

    marker = request.node.get_closest_marker(MARKER)
    wanted = testing.Wanted(kill=()) if marker is None else _wanted(marker)
    folder: Path = tmp_path_factory.mktemp("chaos")
    with testing.cluster(wanted, chaos_seed, folder) as cluster:
        yield cluster


@pytest.fixture
def nemesis(regrow_cluster: ChaosCluster, chaos_seed: int) -> Iterator[Nemeses]:
    """Breaks things of the cluster by hand: ``nemesis.kill_node()`` and the like."""
    from regrow.chaos.testing import Nemeses

    nemeses = Nemeses(regrow_cluster, chaos_seed)
    yield nemeses
    nemeses.heal()


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """The body of a marked test, with faults that strike meanwhile."""
    marker = pyfuncitem.get_closest_marker(MARKER)
    cluster: Any = pyfuncitem.funcargs.get("regrow_cluster")
    if marker is None or cluster is None:
        return (yield)
    from regrow.chaos import testing

    seed: Any = pyfuncitem.funcargs["chaos_seed"]
    wanted = _wanted(marker)
    background = testing.InBackground(cluster, wanted, seed)
    pyfuncitem.stash[_BACKGROUND] = background
    with background:
        answer = yield
        took_s = background.took_s
    planned = [plan.name for plan in wanted.plans()]
    missing = [name for name in planned if not background.fired.get(name)]
    if missing:
        pytest.fail(
            f"{', '.join(missing)} never struck in the {took_s:.1f} s of the test, so nothing was "
            f"shown; let it run longer, or have faults strike more often than every "
            f"{wanted.every_s:g} s",
            pytrace=False,
        )
    if found := testing.contradictions(cluster, seed):
        pytest.fail("the log contradicts itself: " + "; ".join(found), pytrace=False)
    return answer


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Below a failure: the seed, what struck, and how to have it again."""
    report = yield
    if report.failed and item.get_closest_marker(MARKER) is not None:
        seed = getattr(item, "funcargs", {}).get("chaos_seed")
        if seed is not None:
            background = item.stash.get(_BACKGROUND, None)
            lines = [f"seed {seed}", f"again: pytest '{item.nodeid}' --chaos-seed {seed}"]
            lines += [] if background is None else background.news
            report.sections.append(("regrow chaos", "\n".join(lines)))
    return report


def _wanted(marker: pytest.Mark) -> Wanted:
    from regrow.chaos.scenario import ScenarioError
    from regrow.chaos.testing import Wanted

    if marker.args:
        raise pytest.UsageError("the marker chaos takes keywords: @pytest.mark.chaos(kill='node')")
    try:
        wanted = Wanted.of(marker.kwargs)
        wanted.plans()
    except ScenarioError as error:
        raise pytest.UsageError(str(error)) from None
    return wanted
