"""Code that changed between the drivers of a job is never silent, wherever it runs."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.drivers import TIMEOUT_S, executions, none_left, run, start, written

#: ``kill`` ends the program as soon as the trace has what was named.
TRACED = """
    import time
    def trace(what):
        with open(os.environ["TRACE"], "a") as file: file.write(what + "\\n")
    def kill_after(what):
        open(os.environ["TRACE"], "a").close()
        while what not in open(os.environ["TRACE"]).read().split("\\n"): time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)
    def wait_for_go():
        while not os.path.exists(os.environ["TRACE"] + ".go"): time.sleep(0.02)
    def go():  # the driver before this one, and what it had running, is gone
        open(os.environ["TRACE"] + ".go", "w").close()
    def end():
        if "end" not in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def no_driver_left(
    home: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("REGROW_POSTGRES", database_url)
    with none_left():
        yield


CHANGING = """
    @ray.remote
    def changing(x):
        with open(os.environ["TRACE"], "a") as file: file.write("changing\\n")
        return x + int("%s")
    @ray.remote
    def after(x):
        with open(os.environ["TRACE"], "a") as file: file.write("after\\n")
        return 10 * x
    @ray.remote
    def constant():
        with open(os.environ["TRACE"], "a") as file: file.write("constant\\n")
        return 5
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR", on_changed_code=sys.argv[1])
    first = changing.options(key="the one") if "keyed" in sys.argv else changing
    print(ray.get([constant.remote(), after.remote(first.remote(1))]), flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["keyed", "by content"])
def test_changed_code_is_never_silent(tmp_path: Path, how: str) -> None:
    old, new = (
        written(tmp_path, CHANGING % number, f"{word}.py")
        for word, number in (("old", 1), ("new", 2))
    )
    trace = tmp_path / "trace"

    def killed(program: Path, policy: str) -> str:
        return run(program, policy, how, "kill", code=-signal.SIGKILL, TRACE=str(trace))

    def refused(program: Path) -> None:
        process = start(program, "error", how, TRACE=str(trace))
        _, error = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 1
        words = "CodeChangedError: the code of changing is not what job 'nightly' ran before"
        assert words in error

    assert killed(old, "error") == "[5, 20]\n"
    refused(new)
    assert killed(new, "keep") == "[5, 20]\n"
    assert killed(new, "keep") == "[5, 20]\n"
    assert executions(trace) == {"changing": 1, "after": 1, "constant": 1}
    refused(new)
    assert killed(new, "rerun") == "[5, 30]\n"
    assert executions(trace) == {"changing": 2, "after": 2, "constant": 1}
    assert killed(new, "error") == "[5, 30]\n"
    assert run(old, "rerun", how, TRACE=str(trace)) == "[5, 20]\n"
    assert executions(trace) == {"changing": 2, "after": 2, "constant": 1}


NESTED = (
    TRACED
    + """
    @ray.remote
    def child(x):
        trace("child")
        return x + int("%s")
    @ray.remote
    def after(x):
        trace("after")
        return 10 * x
    @ray.remote
    def middle(x):
        result = ray.get(after.remote(child.remote(x)))
        trace("middle")
        wait_for_go()
        return result
    @ray.remote
    def parent(x):
        return ray.get(middle.remote(x))
    @ray.remote
    class Actor:
        def parent(self, x):
            return ray.get(middle.remote(x))
    ray.init(job="nightly", num_cpus=2, logging_level="ERROR", on_changed_code=sys.argv[1])
    ref = Actor.remote().parent.remote(1) if "actor" in sys.argv else parent.remote(1)
    kill_after("middle") if "kill" in sys.argv else go()
    try: print(ray.get(ref), flush=True)
    except ray.exceptions.CodeChangedError as error: print("refused:", error, flush=True)
    end()
"""
)


@pytest.mark.parametrize("kind", ["task", "actor"])
def test_what_a_task_submits_when_it_runs_again_meets_the_policy(tmp_path: Path, kind: str) -> None:
    """It had not ended when its driver was killed; its children's child had."""
    old, new = (
        written(tmp_path, NESTED % number, f"{word}.py")
        for word, number in (("old", 1), ("new", 2))
    )
    trace = tmp_path / "trace"

    def killed(program: Path, policy: str, *more: str) -> str:
        return run(program, policy, kind, *more, code=-signal.SIGKILL, TRACE=str(trace))

    killed(old, "error", "kill")
    assert executions(trace) == {"child": 1, "after": 1, "middle": 1}
    out = killed(new, "error")
    assert "the code of child is not what job 'nightly' ran before" in out
    assert out.startswith("refused: ")
    assert executions(trace) == {"child": 1, "after": 1, "middle": 1}
    assert killed(new, "rerun") == "30\n"
    again = {"child": 2, "after": 2, "middle": 2}
    assert executions(trace) == again
    if kind == "actor":  # it has forgotten what it did
        assert run(new, "error", kind, "end", TRACE=str(trace)) == "30\n"
        return
    # What has ended is found, whatever the code of its children is.
    assert run(old, "error", kind, "end", TRACE=str(trace)) == "30\n"
    assert executions(trace) == again


def test_what_a_task_submits_when_it_runs_again_may_keep_old_results(tmp_path: Path) -> None:
    old, new = (
        written(tmp_path, NESTED % number, f"{word}.py")
        for word, number in (("old", 1), ("new", 2))
    )
    trace = tmp_path / "trace"
    run(old, "error", "kill", code=-signal.SIGKILL, TRACE=str(trace))
    assert run(new, "keep", "end", TRACE=str(trace)) == "20\n"
    assert executions(trace) == {"child": 1, "after": 1, "middle": 2}


ORPHAN = (
    TRACED
    + """
    import steps
    work = ray.remote(max_retries=-1)(steps.work)
    @ray.remote
    def parent():
        return [work.remote(os.environ["TRACE"])]
    ray.init(job="nightly", num_cpus=2, logging_level="ERROR", on_changed_code=sys.argv[1])
    [ref] = ray.get(parent.remote())
    kill_after("began 1") if "kill" in sys.argv else go()
    try: print(ray.get(ref), flush=True)
    except ray.exceptions.CodeChangedError as error: print("refused:", error, flush=True)
    end()
"""
)
STEPS = """
import os, time
def work(trace):
    with open(trace, "a") as file: file.write("began %s\\n")
    while not os.path.exists(trace + ".go"): time.sleep(0.02)
    return int("%s")
"""


def test_a_task_that_goes_on_by_itself_meets_the_policy(tmp_path: Path) -> None:
    """Its parent has ended; the module from which it is imported was changed."""
    program, trace = written(tmp_path, ORPHAN), tmp_path / "trace"

    def killed(policy: str, *more: str) -> str:
        return run(program, policy, *more, code=-signal.SIGKILL, TRACE=str(trace))

    (tmp_path / "steps.py").write_text(STEPS % (1, 1))
    killed("error", "kill")
    (tmp_path / "steps.py").write_text(STEPS % (20, 20))
    out = killed("error")
    assert "CodeChangedError: the code of work is not what job 'nightly' ran before" in out
    assert out.startswith("refused: ")
    assert executions(trace) == {"began 1": 1}
    assert run(program, "rerun", "end", TRACE=str(trace)) == "20\n"
    assert executions(trace) == {"began 1": 1, "began 20": 1}


SAME_NAMES = """
    import one, two
    @ray.remote
    def pair(x, y): return [x, y]
    swapped = "swap" in sys.argv
    add, double = ray.remote(lambda x: x + 10), ray.remote(lambda x: x * 2)
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    calls = {"add": lambda: add.remote(3), "double": lambda: double.remote(3),
             "one": lambda: one.step.remote(3), "two": lambda: two.step.remote(3)}
    refs = {name: calls[name]() for name in (reversed(calls) if "swap" in sys.argv else calls)}
    print([ray.get(pair.remote(refs[name], name)) for name in calls], flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_functions_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Lambdas, and functions of two modules: in whatever order they are called, each has its own
    results, and none is taken for a changed one."""
    for name, step in (("one", "x - 1"), ("two", "x - 2")):
        text = f"import regrow\n@regrow.remote\ndef step(x): return {step}\n"
        (tmp_path / f"{name}.py").write_text(text)
    program = written(tmp_path, SAME_NAMES)
    right = "[[13, 'add'], [6, 'double'], [2, 'one'], [1, 'two']]\n"
    assert run(program, "kill", code=-signal.SIGKILL) == right
    assert run(program, "kill", "swap", code=-signal.SIGKILL) == right
    assert run(program) == right


VARYING = """
    from dataclasses import dataclass
    @dataclass
    class Point:
        tags: frozenset
        x: int
    @ray.remote
    class Holder:
        def get(self): return 1
    @ray.remote
    def f(*values, **named):
        with open(os.environ["TRACE"], "a") as file: file.write(f"{len(values)}\\n")
        return len(values)
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    names = {f"name {i}" for i in range(20)}
    holder = Holder.options(max_restarts=-1).remote()
    point = Point(frozenset(names), 1)
    ref = ray.put(1)
    given = [(names,), (point, 1), (holder, 1, 2), ({"a": [names, ref]}, 1, 2, 3)]
    refs = [f.remote(*values, named=names) for values in given]
    refs += [f.options(key=f"{i}").remote(*values) for i, values in enumerate(given)]
    print(ray.get(refs), flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_arguments_that_are_pickled_in_another_way_each_time_are_known_again(
    tmp_path: Path,
) -> None:
    """Sets, instances of the program's own classes, handles of actors: with a key or without."""
    program, trace = written(tmp_path, VARYING), tmp_path / "trace"
    for seed in ("1", "2"):
        run(program, "kill", code=-signal.SIGKILL, TRACE=str(trace), PYTHONHASHSEED=seed)
    out = run(program, TRACE=str(trace), PYTHONHASHSEED="3")
    assert out == "[1, 2, 3, 4, 1, 2, 3, 4]\n"
    assert executions(trace) == {"1": 2, "2": 2, "3": 2, "4": 2}
