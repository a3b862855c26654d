"""Whole programs: how they begin and end, what they print, and what they leave behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PRELUDE = """
import os, sys, time
import regrow as ray

@ray.remote
def one():
    return 1
"""


def run(
    home: Path, program: str, *, status: int = 0, extra: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``program`` as a script in a folder of its own."""
    folder = home.parent / f"{home.name}-program"
    folder.mkdir(exist_ok=True)
    script = folder / "program.py"
    script.write_text(PRELUDE + program)
    environment = {**os.environ, "REGROW_HOME": str(home), **(extra or {})}
    done = subprocess.run(
        [sys.executable, str(script)],
        env=environment, cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    return done


def test_a_program_needs_no_init_and_no_shutdown(tmp_path: Path) -> None:
    done = run(tmp_path / "home", "print(ray.get(one.remote()))")
    assert done.stdout == "1\n"
    assert re.fullmatch(r"Started a regrow cluster in .*\n", done.stderr)


def test_programs_may_connect_again(tmp_path: Path) -> None:
    program = """
old = None
for i in range(2):
    with ray.init(num_cpus=1):
        new = one.remote()
        print(ray.get(new), new == old)
        old = new
    print(ray.is_initialized())
ray.shutdown()
"""
    assert run(tmp_path / "home", program).stdout == "1 False\nFalse\n" * 2


def test_output_of_workers_is_printed_once_with_a_prefix(tmp_path: Path) -> None:
    program = """
@ray.remote
def speak(word):
    print(word)
    print("no end", end="")
    print("err", file=sys.stderr)

@ray.remote
class Singer:
    def sing(self):
        print("la\\nla")

ray.get(speak.remote("hello"))
singer = Singer.remote()
ray.get(singer.sing.remote())
"""
    done = run(tmp_path / "home", program)
    lines = [re.sub(r"pid=\d+", "pid=P", line) for line in done.stdout.splitlines()]
    assert sorted(lines) == sorted([
        "(speak pid=P) hello", "(speak pid=P) no end", "(Singer pid=P) la", "(Singer pid=P) la",
    ])  # fmt: skip
    assert re.search(r"^\(speak pid=\d+\) err$", done.stderr, re.MULTILINE)
    quiet = run(tmp_path / "home", "ray.init(log_to_driver=False)\n" + program)
    assert quiet.stdout == ""


def test_what_is_written_past_sys_stdout_is_printed_too_and_in_order(tmp_path: Path) -> None:
    program = """
import ctypes, subprocess

@ray.remote
def low(stream):
    file = sys.stdout if stream == 1 else sys.stderr
    print("1 print", file=file)
    os.write(stream, b"2 write\\n")
    print("3 print", file=file)
    subprocess.run(["sh", "-c", "echo 4 child; printf '5 no end'"], stdout=stream, check=True)
    file.buffer.write("6 b\xfctes\\n".encode())
    print("7 print", file=file)
    ctypes.CDLL(None).dprintf(stream, b"8 in C\\n")
    print("9 plain", file=sys.__stdout__ if stream == 1 else sys.__stderr__)
    print("10 \\ud800", file=file)
    os.write(stream, b"11 no end")

@ray.remote
class Singer:
    def sing(self):
        os.write(1, b"la\\n")

for stream in (1, 2):
    ray.get(low.remote(stream))
singer = Singer.remote()
ray.get(singer.sing.remote())
"""
    done = run(tmp_path / "home", program)
    said = [
        "1 print", "2 write", "3 print", "4 child", "5 no end", "6 b\xfctes", "7 print", "8 in C",
        "9 plain", "10 \\ud800", "11 no end",
    ]  # fmt: skip
    prefixed = re.compile(r"^\((\w+) pid=\d+\) (.*)$", re.MULTILINE)
    outs, errs = prefixed.findall(done.stdout), prefixed.findall(done.stderr)
    assert outs == [*(("low", line) for line in said), ("Singer", "la")]
    assert errs == [("low", line) for line in said]


def test_the_last_words_of_a_process_that_crashes_are_printed(tmp_path: Path) -> None:
    program = """
@ray.remote(max_retries=0)
def crash():
    print("printed", file=sys.stderr)
    os.write(2, b"written")
    os._exit(1)

@ray.remote
class Actor:
    def crash(self):
        print("as an actor", file=sys.stderr)
        os.kill(os.getpid(), 9)

actor = Actor.remote()
for call in (crash, actor.crash):
    try:
        ray.get(call.remote())
    except ray.exceptions.RayError:
        pass
"""
    done = run(tmp_path / "home", program)
    told = re.findall(r"^\((\w+) pid=\d+\) (.*)$", done.stderr, re.MULTILINE)
    assert told == [("crash", "printed"), ("crash", "written"), ("Actor", "as an actor")]


def test_workers_import_modules_beside_the_program(tmp_path: Path) -> None:
    folder = tmp_path / "home-program"
    folder.mkdir()
    (folder / "beside.py").write_text(
        "import regrow as ray\n"
        "class Thing:\n    def __init__(self, n):\n        self.n = n\n"
        "def make(n):\n    return Thing(n)\n"
        "@ray.remote\ndef remote_make(n):\n    return make(n)\n"
    )
    program = """
import beside
@ray.remote
def use(thing):
    return beside.make(thing.n + 1)
print(ray.get(use.remote(beside.Thing(1))).n, ray.get(beside.remote_make.remote(5)).n)
"""
    assert run(tmp_path / "home", program).stdout == "2 5\n"


def test_a_failing_program_shows_the_tasks_traceback(tmp_path: Path) -> None:
    program = """
@ray.remote
def fails():
    return {}["missing"]
ray.get(fails.remote())
"""
    done = run(tmp_path / "home", program, status=1)
    assert "KeyError" in done.stderr
    assert 'return {}["missing"]' in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_forked_child_is_no_driver_and_may_become_one(tmp_path: Path) -> None:
    program = """
ray.init()
ref = ray.put([1, 2])
pid = os.fork()
if pid == 0:
    assert not ray.is_initialized()
    del ref
    assert ray.get(one.remote()) == 1
    ray.shutdown()
    os._exit(7)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), ray.get(ref), ray.get(one.remote()))
"""
    assert run(tmp_path / "home", program).stdout == "7 [1, 2] 1\n"


def test_references_in_globals_survive_the_interpreters_end(tmp_path: Path) -> None:
    program = """
import numpy as np
class Holder:
    def __init__(self):
        self.ref = ray.put(np.zeros(100_000))
        self.value = ray.get(self.ref)
    def __del__(self):
        print("end", self.value[0])
holder = Holder()
holder.me = holder
refs = [one.remote() for _ in range(100)]
"""
    done = run(tmp_path / "home", program)
    assert done.stdout == "end 0.0\n"
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_ctrl_c_in_get_ends_the_program_in_good_order(tmp_path: Path) -> None:
    program = """
import signal, threading
@ray.remote
def forever():
    time.sleep(1000)
ref = forever.remote()
ray.wait([ref], timeout=0.2)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    ray.get(ref)
except KeyboardInterrupt:
    print("interrupted", ray.get(one.remote()))
"""
    assert run(tmp_path / "home", program).stdout == "interrupted 1\n"


def test_subprocesses_of_tasks_join_the_same_cluster(tmp_path: Path) -> None:
    program = """
@ray.remote
def outer():
    import subprocess
    code = "import regrow as ray; print(ray.init()['address'], ray.nodes()[0]['NodeManagerPort'])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
home = ray.init()["address"]
done = ray.get(outer.remote())
port = ray.nodes()[0]["NodeManagerPort"]
assert port > 0
print(done.stdout == f"{home} {port}\\n", done.stderr)
"""
    assert run(tmp_path / "home", program).stdout.startswith("True Joined")


def test_the_cluster_is_reached_by_its_address(tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run(home, "ray.init(address='auto')", status=1)
    assert "ClusterConnectionError" in done.stderr


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("ray.init(include_dashboard=True)", "UnsupportedOptionError"),
        ("ray.init(runtime_env={'pip': ['x']})", "UnsupportedOptionError"),
        ("ray.init(labels={'a': 'b'})", "UnsupportedOptionError: init(labels={'a': 'b'}) is not"),
        ("ray.init(job='')", "ValueError: init(job=''): a job's name is a string"),
        ("ray.init(nonsense=1)", "Unknown keyword argument"),
        ("ray.init(durability='never')", "ValueError"),
        ("ray.init(num_cpus=-1)", "ValueError: num_cpus of init()"),
        ("ray.init(num_cpus='two')", "TypeError: num_cpus of init()"),
        ("ray.init(resources={'CPU': 1})", "ValueError: resources of init() cannot have 'CPU'"),
        ("ray.init(object_store_memory=10)", "ValueError: object_store_memory of init() must be"),
        ("ray.nodes()", "RaySystemError"),
        ("ray.remote(3)", "TypeError"),
        ("ray.remote()", "TypeError"),
    ],
)
def test_wrong_calls_are_typed_and_start_nothing(tmp_path: Path, call: str, error: str) -> None:
    done = run(tmp_path / "home", call, status=1)
    assert error in done.stderr.splitlines()[-1]
    assert not (tmp_path / "home").exists()


def test_usual_arguments_of_rays_init_are_accepted(tmp_path: Path) -> None:
    program = """
ray.init(include_dashboard=False, log_to_driver=True, configure_logging=True, namespace="n")
print(ray.get_runtime_context().namespace)
"""
    assert run(tmp_path / "home", program).stdout == "n\n"


def test_the_logging_level_silences_the_start(tmp_path: Path) -> None:
    loud = run(tmp_path / "home", "ray.init(logging_level='info')\n")
    quiet = run(tmp_path / "home", "ray.init(logging_level=40)\n")
    assert "regrow cluster in" in loud.stderr
    assert quiet.stderr == ""
