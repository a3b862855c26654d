"""What type checkers know of the API."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = """
import regrow as ray

@ray.remote
def f(x: int, y: str = "") -> float:
    return float(x)

@ray.remote(num_cpus=2)
def g(x: float) -> list[int]:
    return [int(x)]

class A:
    def __init__(self, n: int) -> None: ...

reveal_type(f.remote(1))  # ObjectRef[float]
reveal_type(ray.get(f.remote(1, y="a")))  # "float"
reveal_type(ray.get([f.remote(1)]))  # list[float]
reveal_type(g.remote(f.remote(1)))  # ObjectRef[list[int]]
reveal_type(g.options(num_cpus=1).remote(2.0))  # ObjectRef[list[int]]
reveal_type(ray.put("x"))  # ObjectRef[str]
reveal_type(ray.wait([f.remote(1)]))  # tuple[list[ObjectRef[float]]
reveal_type(ray.remote(A).remote(1))  # ActorHandle[
f.remote("no")  # error: Argument 1
f.remote(1, z=2)  # error: Unexpected keyword argument "z"
g.remote()  # error: Missing positional argument "x"
"""


@pytest.mark.slow
def test_calls_are_checked_and_results_inferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mypy import api

    monkeypatch.setenv("MYPYPATH", str(Path(__file__).parents[3] / "client"))
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    output, errors, _ = api.run(
        ["--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), str(program)]
    )
    assert not errors
    told: dict[int, str] = {}
    for line in output.replace("regrow._refs.ObjectRef[", "ObjectRef[").splitlines():
        number = int(line.split(":")[1])
        told[number] = told.get(number, "") + line
    expected = {
        number: line.split("# ")[1]
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if "# " in line
    }
    assert told.keys() == expected.keys(), output
    for number, text in expected.items():
        assert text in told[number]
