"""What type checkers know of the API."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

PROGRAM = """
import regrow as ray

@ray.remote
def f(x: int, y: str = "") -> float:
    return float(x)

@ray.remote(num_cpus=2)
def g(x: float) -> list[int]:
    return [int(x)]

@ray.remote(num_returns=2)
def two() -> tuple[int, str]:
    return 1, "a"

@ray.remote(num_returns=0)
def none() -> None: ...

class A:
    def __init__(self, n: int) -> None: ...

def take(handle: ray.ActorHandle, ref: ray.ObjectRef, actors: ray.ActorClass) -> None: ...

B = ray.remote(num_cpus=1, max_concurrency=2)(A)

reveal_type(f.remote(1))  # ObjectRef[float]
reveal_type(ray.get(f.remote(1, y="a")))  # "float"
reveal_type(ray.get([f.remote(1)]))  # list[float]
reveal_type(g.remote(f.remote(1)))  # ObjectRef[list[int]]
reveal_type(g.options(num_cpus=1).remote(2.0))  # ObjectRef[list[int]]
reveal_type(ray.put("x"))  # ObjectRef[str]
reveal_type(ray.wait([f.remote(1)]))  # tuple[list[ObjectRef[float]]
reveal_type(ray.remote(A).remote(1))  # ActorHandle[
reveal_type(two.remote())  # list[ObjectRef[Any]]
reveal_type(none.remote())  # "None"
reveal_type(f.options(num_returns=2).remote(1))  # list[ObjectRef[Any]]
reveal_type(two.options(num_returns=1, name="n").remote())  # ObjectRef[Any]
reveal_type(two.options(name="n").remote())  # list[ObjectRef[Any]]
take(B.options(name="n").remote(1), f.remote(1), B)
B.remote(1).method.options(num_returns=2).remote()
f.options(num_cpu=1)  # error: Unexpected keyword argument "num_cpu"
g.options(retry_exceptions="yes")  # error: No overload variant
B.options(max_retries=1)  # error: Unexpected keyword argument "max_retries"
ray.remote(num_cpu=1)  # error: Unexpected keyword argument "num_cpu"
f.remote("no")  # error: Argument 1
f.remote(1, z=2)  # error: Unexpected keyword argument "z"
g.remote()  # error: Missing positional argument "x"
"""


def checked(program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``mypy --strict`` says of a user's program."""
    from mypy import api

    monkeypatch.setenv("MYPYPATH", str(ROOT / "client"))
    path = folder / "program.py"
    path.write_text(program)
    output, errors, _ = api.run(
        ["--strict", "--no-error-summary", "--cache-dir", str(folder / "cache"), str(path)]
    )
    assert not errors
    return output


@pytest.mark.slow
def test_calls_are_checked_and_results_inferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = checked(PROGRAM, tmp_path, monkeypatch)
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


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_the_programs_shown_pass_strict_mypy(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = re.findall(r"^```python test\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    assert programs
    for program in programs:
        assert checked(program, tmp_path, monkeypatch) == ""
