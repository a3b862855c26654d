"""The pytest plugin without a cluster: what it collects, refuses and prints, and its cost."""

from __future__ import annotations

import fnmatch
import subprocess
import sys

import pytest

# So that the runs inside these tests, which forget what they imported, need not import it again.
from regrow.chaos import testing as testing

pytest_plugins = ["pytester"]


@pytest.fixture
def clusterless(pytester: pytest.Pytester) -> pytest.Pytester:
    """A test folder in which the cluster is a stand-in that counts what strikes it."""
    pytester.makeconftest(
        """
        import contextlib
        import pytest
        from regrow.chaos import testing

        class Background(testing.InBackground):
            def __enter__(self):
                return self
            def __exit__(self, *_):
                if self._cluster != "quiet":
                    for plan in self._wanted.plans():
                        self._strikes.fired[plan.name] += 1
                        self._note("fault", plan.name)
            def __init__(self, cluster, wanted, seed):
                super().__init__(cluster, wanted, seed)
                self._wanted = wanted

        @pytest.fixture(autouse=True)
        def stand_in(monkeypatch):
            @contextlib.contextmanager
            def cluster(wanted, seed, folder):
                yield "quiet" if wanted.nodes == 1 else f"cluster of {wanted.nodes}"
            monkeypatch.setattr(testing, "cluster", cluster)
            monkeypatch.setattr(testing, "InBackground", Background)
            monkeypatch.setattr(testing, "contradictions", lambda cluster, seed: [])
        """
    )
    return pytester


def test_a_marked_test_runs_once_for_each_seed(clusterless: pytest.Pytester) -> None:
    clusterless.makepyfile(
        """
        import pytest

        @pytest.mark.chaos(kill="node", every_s=2, seeds=3)
        def test_it(chaos_seed, regrow_cluster):
            assert chaos_seed in (0, 1, 2)
            assert regrow_cluster == "cluster of 3"

        @pytest.mark.chaos(kill=["node", "gcs"], seeds=[7, 9], nodes=5)
        def test_without_naming_the_fixtures(request):
            assert request.getfixturevalue("regrow_cluster") == "cluster of 5"

        def test_plain():
            pass
        """
    )
    result = clusterless.runpytest("-v", "--strict-markers", "-W", "error")
    result.assert_outcomes(passed=6)
    result.stdout.fnmatch_lines(["*test_it?seed-2?*", "*fixtures?seed-9?*"])


def test_a_seed_given_is_the_only_one(clusterless: pytest.Pytester) -> None:
    clusterless.makepyfile(
        """
        import pytest

        @pytest.mark.chaos(seeds=3)
        def test_it(chaos_seed):
            assert chaos_seed == 41
        """
    )
    clusterless.runpytest("--chaos-seed", "41").assert_outcomes(passed=1)


def test_a_failure_tells_the_seed_the_faults_and_how_to_replay_it(
    clusterless: pytest.Pytester,
) -> None:
    clusterless.makepyfile(
        """
        import pytest

        @pytest.mark.chaos(kill="worker", seeds=2)
        def test_it(chaos_seed):
            assert chaos_seed == 0
        """
    )
    result = clusterless.runpytest()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*regrow chaos*",
            "seed 1",
            "again: pytest '*::test_it?seed-1?' --chaos-seed 1",
            "*fault  worker_crash",
        ]
    )


def test_a_test_whose_faults_never_struck_fails_and_says_so(clusterless: pytest.Pytester) -> None:
    clusterless.makepyfile(
        """
        import pytest

        @pytest.mark.chaos(kill="node", nodes=1)
        def test_it():
            pass
        """
    )
    result = clusterless.runpytest()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["node_crash never struck in the * s of the test*"])


def test_without_faults_there_is_nothing_to_strike(clusterless: pytest.Pytester) -> None:
    clusterless.makepyfile(
        """
        import pytest

        @pytest.mark.chaos(kill=[], nodes=1)
        def test_it(regrow_cluster):
            assert regrow_cluster == "quiet"
        """
    )
    clusterless.runpytest().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("kill='tree'", "*there is no fault 'tree'; there are worker, node*"),
        ("kill='driver'", "*driver_kill kills the driver, which here is the test itself*"),
        ("everys=2", "*the marker chaos: *everys*"),
        ("every_s=0", "*every so many seconds, more than 0; not 0*"),
        ("'node'", "*the marker chaos takes keywords*"),
    ],
)
def test_a_marker_that_makes_no_sense_is_refused(
    clusterless: pytest.Pytester, arguments: str, said: str
) -> None:
    clusterless.makepyfile(
        f"""
        import pytest

        @pytest.mark.chaos({arguments})
        def test_it():
            pass
        """
    )
    result = clusterless.runpytest()
    assert result.ret != 0
    output = result.stdout.str() + result.stderr.str()
    assert fnmatch.filter(output.splitlines(), said)


def test_who_does_not_use_the_plugin_does_not_pay_for_it() -> None:
    program = (
        "import sys, pytest\nbefore = set(sys.modules)\nimport regrow.chaos.pytest_plugin\n"
        "print(sorted(name for name in set(sys.modules) - before if '.' in name or "
        "name in ('regrow', 'msgspec', 'psycopg', 'numpy')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['regrow', 'regrow.chaos', 'regrow.chaos.pytest_plugin']"
