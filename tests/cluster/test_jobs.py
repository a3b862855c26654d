"""Named jobs: run the program again after its driver was killed, and nothing is done twice."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cluster.drivers import TIMEOUT_S, executions, none_left, run, start, written

PROGRAM = Path(__file__).parent / "programs" / "nightly.py"


@pytest.fixture(autouse=True)
def no_driver_left() -> Iterator[None]:
    with none_left():
        yield


def rows(url: str, query: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> object:
    """What the program prints when nothing happens."""
    folder = tmp_path_factory.mktemp("calm")
    out = run(PROGRAM, "calm", NIGHTLY_TRACE=str(folder / "t"), REGROW_HOME=str(folder / "home"))
    return json.loads(out)


def test_a_job_whose_driver_was_killed_finds_what_it_had_done(
    home: Path, tmp_path: Path, database_url: str, calm: object
) -> None:
    trace = tmp_path / "trace"
    settings: dict[str, Any] = {"NIGHTLY_TRACE": str(trace), "REGROW_POSTGRES": database_url}
    run(PROGRAM, "nightly", code=-signal.SIGKILL, NIGHTLY_KILL="middle", **settings)
    done = executions(trace)
    run(PROGRAM, "nightly", code=-signal.SIGKILL, NIGHTLY_KILL="end", **settings)
    out = run(PROGRAM, "nightly", **settings)
    assert json.loads(out) == calm
    again = executions(trace)
    found = [what for what in done if what.startswith(("step", "digest"))]
    assert len(found) == 44
    assert {what: again[what] for what in found} == dict.fromkeys(found, 1)
    [(number, driver, status)] = rows(
        database_url, "SELECT run, driver, status FROM regrow.jobs WHERE name = 'nightly'"
    )
    assert (number, driver, status) == (1, 3, "finished")
    rebuilt = rows(
        database_url,
        "SELECT DISTINCT t.name FROM regrow.rebuilds r JOIN regrow.tasks t USING (task_id)",
    )
    assert {"large", "Ledger.add"} <= {str(name) for (name,) in rebuilt}
    run(PROGRAM, "nightly", **settings)
    assert executions(trace)["step 1"] == 2, "a clean end closes the run: this is the next one"
    runs = rows(database_url, "SELECT run, status FROM regrow.jobs ORDER BY run")
    assert runs == [(1, "finished"), (2, "finished")]


def test_everything_is_killed_and_the_job_goes_on(
    home: Path, tmp_path: Path, kill_everything: Callable[[], None], calm: object
) -> None:
    trace = tmp_path / "trace"
    settings: dict[str, Any] = {"NIGHTLY_TRACE": str(trace)}
    process = start(PROGRAM, "nightly", NIGHTLY_KILL="", NIGHTLY_WAIT="middle", **settings)
    assert process.stdout is not None
    assert process.stdout.readline() == "middle\n"
    done = executions(trace)
    kill_everything()
    process.communicate(timeout=TIMEOUT_S)
    assert json.loads(run(PROGRAM, "nightly", **settings)) == calm
    again = executions(trace)
    found = [what for what in done if what.startswith(("step", "digest"))]
    assert {what: again[what] for what in found} == dict.fromkeys(found, 1)


WAITING = """
    @ray.remote
    def one():
        with open(os.environ["TRACE"], "a") as file: file.write("one\\n")
        return 1
    ray.init(job="nightly", logging_level="ERROR", takeover="take" in sys.argv)
    print(ray.get(one.remote()), flush=True)
    sys.stdin.readline()
    try:
        print(ray.get(ray.put(2)) + ray.get(one.remote()), flush=True)
    except ray.exceptions.JobAlreadyRunningError as error:
        print("fenced:", error)
"""


def test_two_drivers_of_one_run_are_impossible(home: Path, tmp_path: Path) -> None:
    program, trace = written(tmp_path, WAITING), tmp_path / "trace"
    first = start(program, TRACE=str(trace))
    assert first.stdout is not None
    assert first.stdout.readline() == "1\n"
    second = start(program, TRACE=str(trace))
    _, error = second.communicate(timeout=TIMEOUT_S)
    assert second.returncode == 1
    assert "JobAlreadyRunningError: job 'nightly' is run by another driver" in error
    third = start(program, "take", TRACE=str(trace))
    assert third.stdout is not None
    assert third.stdout.readline() == "1\n"
    out, error = first.communicate("\n", timeout=TIMEOUT_S)
    assert "fenced: job 'nightly' was taken over" in out, error
    out, error = third.communicate("\n", timeout=TIMEOUT_S)
    assert out == "3\n", error
    # The second call of the third driver is an equal submission, so another task.
    assert executions(trace) == {"one": 2}


SHUFFLED = """
    import random, threading
    @ray.remote
    def tagged(tag, n):
        with open(os.environ["TRACE"], "a") as file: file.write(f"{tag} {n}\\n")
        return tag, n
    @ray.remote
    def pair(a, b):
        return a, b
    seed = int(sys.argv[1])
    ray.init(job="nightly", num_cpus=2, logging_level="ERROR")
    calls = [(f"tag{i % 7}", i // 2) for i in range(120)]  # with equal ones among them
    random.Random(seed).shuffle(calls)
    stop = len(calls) if seed < 0 else random.Random(seed).randrange(40, 100)
    wrong = []
    def part(calls):
        refs = {tagged.remote(*call): call for call in calls}
        waiting = list(refs)
        while waiting:
            ready, waiting = ray.wait(waiting)
            for ref in ready:
                both = pair.remote(ref, refs[ref])
                if ray.get(both) != (refs[ref], refs[ref]): wrong.append(refs[ref])
    threads = [threading.Thread(target=part, args=(calls[i:stop:3],)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    print(len(wrong), flush=True)
    if seed >= 0: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_task_receives_the_result_of_another_in_whatever_order(
    home: Path, tmp_path: Path
) -> None:
    """Threads and ``wait`` submit in another order each time the job is resumed."""
    program, trace = written(tmp_path, SHUFFLED), tmp_path / "trace"
    for _ in range(4):
        seed = str(random.randrange(1 << 20))
        out = run(program, seed, code=-signal.SIGKILL, TRACE=str(trace))
        assert out == "0\n", f"seed {seed}"
    assert run(program, "-1", TRACE=str(trace)) == "0\n"
    once = Counter(f"tag{i % 7} {i // 2}" for i in range(120))
    assert executions(trace) == once, "each was run once, over all drivers"


KEYED = """
    @ray.remote
    def f(x):
        with open(os.environ["TRACE"], "a") as file: file.write(f"{x}\\n")
        return x
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    refs = [f.options(key="the one").remote(1) for _ in range(3)]
    print(ray.get(refs), flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_key_names_one_task_of_all_drivers(home: Path, tmp_path: Path) -> None:
    program, trace = written(tmp_path, KEYED), tmp_path / "trace"
    run(program, "kill", code=-signal.SIGKILL, TRACE=str(trace))
    assert run(program, TRACE=str(trace)) == "[1, 1, 1]\n"
    assert executions(trace) == {"1": 1}


REKEYED = """
    @ray.remote
    def f(x): return x
    @ray.remote
    def g(x): return x
    @ray.remote
    def pair(x, y): return x, y
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    name, x = sys.argv[1], int(sys.argv[2])
    ref = (f if name == "f" else g).options(key="the one").remote(x)
    try: print(ray.get(ref), flush=True)
    except ray.exceptions.ReplayMismatchError as error: print("mismatch:", error, flush=True)
    try: ray.get(pair.remote(ref, os.getpid())); print("used", flush=True)
    except ray.exceptions.RayError as error: print("not used", flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("name", "x"), [("f", 2), ("g", 1)], ids=["arguments", "function"])
def test_a_key_is_not_given_to_another_call_by_a_later_driver(
    home: Path, tmp_path: Path, name: str, x: int
) -> None:
    program = written(tmp_path, REKEYED)
    assert run(program, "f", "1", "kill", code=-signal.SIGKILL) == "1\nused\n"
    out = run(program, name, str(x), "kill", code=-signal.SIGKILL)
    assert f"mismatch: {name}.options(key='the one') was submitted before" in out
    assert "not used" in out
    assert run(program, "f", "1") == "1\nused\n"


STORED = """
    @ray.remote(checkpoint=True)
    def large(x):
        with open(os.environ["TRACE"], "a") as file: file.write(f"{x}\\n")
        return bytes([x]) * 50_000
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    refs = [large.remote(x) for x in range(5)]
    print(sum(data[-1] for data in ray.get(refs)), flush=True)
    if "kill" in sys.argv: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_large_results_with_a_checkpoint_are_loaded_and_not_made_again(
    home: Path, tmp_path: Path
) -> None:
    program, trace = written(tmp_path, STORED), tmp_path / "trace"
    run(program, "kill", code=-signal.SIGKILL, TRACE=str(trace))
    assert run(program, TRACE=str(trace)) == "10\n"
    assert executions(trace) == {str(x): 1 for x in range(5)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("job=''", "a job's name is a string of 1 to 200"),
        ("takeover=True", "needs the name of the job"),
        ("job='a', on_changed_code='ignore'", "choose one of error, rerun, keep"),
    ],
)
def test_bad_arguments_are_told(home: Path, tmp_path: Path, arguments: str, words: str) -> None:
    process = start(written(tmp_path, f"ray.init({arguments})"))
    _, error = process.communicate(timeout=TIMEOUT_S)
    assert "ValueError" in error
    assert words in error


ENDING = """
    @ray.remote
    def f():
        with open(os.environ["TRACE"], "a") as file: file.write("f\\n")
    ray.init(job="nightly", num_cpus=1, logging_level="ERROR")
    ray.get(f.remote())
    how = sys.argv[1]
    if how == "shutdown":
        try: raise ValueError
        finally: ray.shutdown()
    if how == "raise": raise SystemExit(0)
    if how != "end": sys.exit(int(how))
"""


def test_a_run_is_over_only_if_its_program_ended_well(
    home: Path, tmp_path: Path, database_url: str
) -> None:
    program, trace = written(tmp_path, ENDING), tmp_path / "trace"
    settings: dict[str, Any] = {"TRACE": str(trace), "REGROW_POSTGRES": database_url}
    for how, code in (("1", 1), ("shutdown", 1), ("raise", 0), ("0", 0)):
        run(program, how, code=code, **settings)
        assert executions(trace) == {"f": 1}, f"what {how} left is found"
    run(program, "end", **settings)
    assert executions(trace) == {"f": 2}, "this is the next run"
    ended = rows(database_url, "SELECT run, driver, status FROM regrow.jobs ORDER BY run")
    assert ended == [(1, 4, "finished"), (2, 1, "finished")]
