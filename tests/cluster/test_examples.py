"""The examples, run as their readers run them and called in one shared cluster."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

import regrow as ray

EXAMPLES = Path(__file__).parents[2] / "examples"

EXPECTED: dict[str, Any] = {
    "pipeline": {"mon": 62700, "tue": 67600, "wed": 76800, "thu": 74850, "fri": 77100},
    "nested_experiments": {4: 119.5, 5: 32.17, 6: 10.67, 8: 2.17},
    "parameter_server": {
        "weights": [2.0, -3.0, 0.5],
        "each push applied once": True,
        "every sensor took part": True,
    },
    "dynamic_graph": {
        "parts": [0, 1, 2, 4, 5, 6, 8, 9],
        "metres": 1027,
        "stragglers": 2,
        "merges": 7,
    },
}

LAST_LINE = {
    "pipeline": "sum    3590.50",
    "nested_experiments": "8 cars a ferry: longest queue    2.17 cars on the mean day",
    "parameter_server": "every sensor took part: True",
    "dynamic_graph": "merges: 7",
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Workers cannot import a module loaded from a path, so its functions travel by value.
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("REGROW_HOME", str(tmp_path_factory.mktemp("home")))
    ray.init()
    yield
    ray.shutdown()
    patch.undo()


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example_gives_its_exact_value(name: str, cluster: None) -> None:
    assert load(name).main() == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_example_runs_as_a_program_from_nothing(name: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "REGROW_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == LAST_LINE[name]
