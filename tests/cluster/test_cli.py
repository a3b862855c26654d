"""The commands, run as people run them: processes with arguments, output and an exit status."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from regrow import _bootstrap, _daemons
from regrow.gcs import embedded
from tests.cluster.conftest import PasswordServer

COMMANDS = (
    "",
    "start",
    "stop",
    "status",
    "list",
    "sql",
    "demo",
    "db",
    "db upgrade",
    "job",
    "job submit",
    "job status",
    "job logs",
    "job stop",
    "job resume",
    "job delete",
)
#: Where an example stands for whatever server a user has.
EXAMPLE_URL = re.compile(r"postgresql://\S+")

PROGRAM = """
import regrow as ray
ray.init({})
@ray.remote
def double(n):
    return 2 * n
@ray.remote
def fail():
    raise ValueError("as asked")
@ray.remote
class Counter:
    def add(self, n):
        return n
counter = Counter.options(name="counter").remote()
print(sum(ray.get([double.remote(n) for n in range(50)])), ray.get(counter.add.remote(1)))
try:
    ray.get(fail.remote())
except ValueError as error:
    print("raised")
ray.get(ray.put(b"x" * 100_000))
"""


@dataclass(frozen=True)
class Shell:
    """Runs commands of a user whose home directory is a folder of the test's."""

    folder: Path

    @property
    def home(self) -> Path:
        """Where the cluster of this user lives."""
        return self.folder / ".regrow"

    def environment(self, **more: str) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if k != "REGROW_HOME"}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**inherited, "HOME": str(self.folder), "PATH": path, **more}

    def run(
        self, line: str, status: int = 0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a line, as the shell reads it, and check its exit status."""
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == status, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr
        return done

    def json(self, line: str) -> Any:
        return json.loads(self.run(line).stdout)

    def program(self, arguments: str = "") -> str:
        """Run a program that makes tasks, an actor and objects."""
        path = self.folder / "program.py"
        path.write_text(PROGRAM.format(arguments))
        return self.run(f"python {path}").stdout


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    _bootstrap.stop(shell.home)
    if (shell.home / "postgres").exists():
        embedded.destroy(shell.home / "postgres")


def examples(command: str) -> list[str]:
    """The command lines under "Examples:" in the help of a command."""
    help_ = [sys.executable, "-m", "regrow.cli", *command.split(), "--help"]
    text = subprocess.run(help_, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Examples?:\n((?: +.+\n)+)", text)
    return [line.strip() for line in found[1].splitlines()] if found else []


class TestExamples:
    def test_every_command_has_some_that_are_whole_lines(self) -> None:
        for command in COMMANDS:
            lines = examples(command)
            assert lines or command in ("db", "job"), command
            for line in lines:
                words = [w for w in shlex.split(line) if "=" not in w or w[0] == "-"]
                assert words[0] == "regrow", line

    @pytest.mark.slow
    def test_those_of_a_running_cluster_work(self, shell: Shell) -> None:
        (shell.folder / "report.sql").write_text("select 1 as one")
        shell.run("regrow start --head")
        for command in ("", "start", "status", "list", "sql", "db upgrade"):
            for line in examples(command):
                if "--head" not in line and " stop" not in line and " demo" not in line:
                    shell.run(EXAMPLE_URL.sub("", line))
        for line in examples("stop"):
            shell.run(line)

    def test_those_of_jobs_work(self, shell: Shell) -> None:
        pipeline = shell.folder / "pipeline.py"
        pipeline.write_text(
            "import os, time\nimport regrow as ray\nray.init()\nprint('begun', flush=True)\n"
            "time.sleep(60 if 'STAGE' in os.environ else 0)\n"
        )
        shell.run("regrow start --head")
        waits, returns = examples("job submit")
        assert "begun" in shell.run(waits).stdout
        assert "finished" in shell.run(examples("job status")[0]).stdout
        assert "begun" in shell.run(examples("job logs")[0]).stdout
        shell.run(returns)
        shell.run(examples("job stop")[0])
        pipeline.write_text("import regrow as ray\nray.init()\nprint('ended')\n")
        assert "ended" in shell.run(examples("job resume")[0]).stdout
        for line in examples("job delete"):
            assert "Deleted" in shell.run(line).stdout
        assert shell.json("regrow list jobs --json") == []

    def test_a_blocking_start_stops_what_it_started(self, shell: Shell) -> None:
        (line,) = [line for line in examples("start") if "--block" in line]
        process = subprocess.Popen(
            shlex.split(line), env=shell.environment(), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process, process.stdout:
            assert str(shell.home) in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert _daemons.find(shell.home) == []

    def test_a_named_server_is_used(self, shell: Shell, password_server: PasswordServer) -> None:
        (line,) = [line for line in examples("start") if "REGROW_POSTGRES" in line]
        url = password_server.url(password_server.password)
        shell.run(EXAMPLE_URL.sub(url, line))
        assert not (shell.home / "postgres").exists()
        assert "3" in shell.run("regrow sql 'select 1 + 2'").stdout
        shell.run("regrow stop")
        # Afterwards the home still knows which server it was, though not its password.
        kept = (shell.home / "database").read_text()
        assert password_server.password not in kept
        said = shell.run("regrow sql 'select 1'", 2).stderr
        assert "asks for the password" in said
        environment = {"PGPASSWORD": password_server.password}
        assert "3" in shell.run("regrow sql 'select 1 + 2'", 0, **environment).stdout
        logs = "".join(path.read_text() for path in (shell.home / "logs").iterdir())
        assert password_server.password not in logs

    def test_where_a_password_is_missing_a_node_is_refused_and_status_still_answers(
        self, shell: Shell, password_server: PasswordServer
    ) -> None:
        named = f"--postgres {password_server.url(None)}"
        password = {"PGPASSWORD": password_server.password}
        shell.run(f"regrow start --head --num-cpus 1 {named}", 0, **password)
        join = f"regrow start --num-cpus 1 --address {shell.home}"
        said = shell.run(join, 2).stderr
        assert "asks for the password of visitor" in said
        assert said.count("\n") == 1
        told = shell.run("regrow status").stdout
        assert f"The cluster in {shell.home}: control store at" in told
        assert "asks for the password of visitor" in told
        found = shell.json("regrow status --json")
        assert found["running"]
        assert len(found["nodes"]) == 1
        assert found["tasks_unfinished"] is None
        shell.run(join, 0, **password)
        shell.run(join, 0, REGROW_POSTGRES=password_server.url(password_server.password))
        assert len(shell.json("regrow status --json")["nodes"]) == 3


class TestWithoutACluster:
    def test_status_says_so_and_fails(self, shell: Shell) -> None:
        assert f"No cluster runs in {shell.home}" in shell.run("regrow status", 1).stdout
        assert json.loads(shell.run("regrow status --json", 1).stdout)["running"] is False

    def test_stop_has_nothing_to_do(self, shell: Shell) -> None:
        assert "Nothing runs" in shell.run("regrow stop").stdout

    @pytest.mark.parametrize("line", ["regrow list tasks", "regrow sql 'select 1'"])
    def test_there_is_nothing_to_read(self, shell: Shell, line: str) -> None:
        said = shell.run(line, 2).stderr
        assert said.count("\n") == 1
        assert "no cluster has kept data" in said
        assert not shell.home.exists()

    @pytest.mark.parametrize(
        "line",
        [
            "regrow",
            "regrow nonsense",
            "regrow start",
            "regrow start --head --address x",
            "regrow start --head --num-cpus many",
            "regrow start --head --resources '[1]'",
            "regrow start --head --resources '{\"CPU\": 1}'",
            "regrow start --head --object-store-memory big",
            "regrow start --head --object-store-memory 10",
            "regrow start --address 10.0.0.1:99",
            "regrow start --head --storage ''",
            "regrow start --head --postgres ''",
            "regrow list",
            "regrow list dogs",
            "regrow list tasks --filter nonsense=1",
            "regrow list tasks --limit 0",
        ],
    )
    def test_wrong_usage_has_status_2_and_starts_nothing(self, shell: Shell, line: str) -> None:
        shell.run(line, 2)
        assert _daemons.find(shell.home) == []
        assert not shell.home.exists()

    def test_an_unknown_kind_is_told_the_known_ones(self, shell: Shell) -> None:
        said = shell.run("regrow list dogs", 2).stderr
        assert "'dogs' is none of jobs, nodes, tasks, actors, objects" in said

    @pytest.mark.parametrize("line", ["regrow sql ' '", "regrow sql - < /dev/null"])
    def test_an_empty_statement_is_wrong_usage(self, shell: Shell, line: str) -> None:
        assert "the statement is empty" in shell.run(line, 2).stderr

    def test_joining_a_home_where_nothing_runs_fails(self, shell: Shell) -> None:
        said = shell.run(f"regrow start --address {shell.home}", 2).stderr
        assert f"no cluster runs in {shell.home}" in said


class TestStorageThatCannotBeUsed:
    @pytest.mark.parametrize("storage", ["bogus://x", "/dev/null/x"])
    def test_it_is_refused_in_one_sentence(self, shell: Shell, storage: str) -> None:
        done = shell.run(f"regrow start --head --storage {storage}", 2)
        assert done.stderr.startswith(f"regrow: the storage '{storage}' ")
        assert done.stderr.count("\n") == 1
        assert _daemons.find(shell.home) == []


class TestPostgresThatCannotBeUsed:
    def refusal(self, shell: Shell, line: str, **environment: str) -> str:
        """The one sentence on standard error, when nothing was started and it was quick."""
        begun = time.monotonic()
        done = shell.run(line, 2, **environment)
        assert time.monotonic() - begun < 10
        assert done.stdout == ""
        assert done.stderr.startswith("regrow: ")
        assert done.stderr.count("\n") == 1
        assert _daemons.find(shell.home) == []
        return done.stderr

    def test_a_refused_password_is_told_and_not_shown(
        self, shell: Shell, password_server: PasswordServer
    ) -> None:
        url = password_server.url("wrong-one")
        said = self.refusal(shell, f"regrow start --head --postgres {url}")
        assert "refused the password of visitor" in said
        said += self.refusal(shell, "regrow start --head", REGROW_POSTGRES=url)
        said += self.refusal(shell, "regrow sql 'select 1'", REGROW_POSTGRES=url)
        assert "wrong-one" not in said

    def test_a_missing_password_is_told_with_the_places_for_it(
        self, shell: Shell, password_server: PasswordServer
    ) -> None:
        url = password_server.url(None)
        said = self.refusal(shell, f"regrow start --head --postgres {url}")
        assert "PGPASSWORD" in said
        assert "REGROW_POSTGRES" in said

    @pytest.mark.parametrize(
        ("url", "sentence"),
        [
            ("postgresql://me@127.0.0.1:1/work", "is the server running there"),
            ("postgresql://me@nowhere.invalid/work", "is unknown"),
            ("mysql://me@127.0.0.1/work", "cannot be read"),
        ],
    )
    def test_a_wrong_url_is_told(self, shell: Shell, url: str, sentence: str) -> None:
        assert sentence in self.refusal(shell, "regrow start --head", REGROW_POSTGRES=url)

    def test_a_server_that_is_too_old_is_told_with_its_version(self, shell: Shell) -> None:
        with old_server("13.4") as port:
            url = f"postgresql://me@127.0.0.1:{port}/work?sslmode=disable&gssencmode=disable"
            said = self.refusal(shell, "regrow start --head", REGROW_POSTGRES=url)
        assert "is version 13.4; regrow needs version 14 or newer" in said

    def test_a_file_that_others_may_read_is_refused(self, shell: Shell) -> None:
        (shell.folder / "url").write_text("postgresql://me:secret@127.0.0.1:1/work\n")
        (shell.folder / "url").chmod(0o644)
        said = shell.run("regrow start --head --postgres-file url", 2).stderr
        assert "chmod 600" in said
        (shell.folder / "url").chmod(0o600)
        said = self.refusal(shell, "regrow start --head --postgres-file url")
        assert "is the server running there" in said
        assert "secret" not in said


class TestPasswordsOffTheCommandLine:
    @pytest.mark.parametrize(
        "place", ["REGROW_POSTGRES", "PGPASSWORD", "PGPASSFILE", "--postgres-file"]
    )
    def test_each_place_for_a_password_works(
        self, shell: Shell, password_server: PasswordServer, place: str
    ) -> None:
        bare, whole = password_server.url(None), password_server.url(password_server.password)
        private = shell.folder / "private"
        environment = {"REGROW_POSTGRES": bare}
        line = "regrow start --head --num-cpus 1"
        match place:
            case "REGROW_POSTGRES":
                environment = {"REGROW_POSTGRES": whole}
            case "PGPASSWORD":
                environment["PGPASSWORD"] = password_server.password
            case "PGPASSFILE":
                private.write_text(f"*:*:*:*:{password_server.password}\n")
                environment["PGPASSFILE"] = str(private)
            case _:
                private.write_text(f"{whole}\n")
                line += f" --postgres-file {private}"
                environment = {}
        private.touch()
        private.chmod(0o600)
        shell.run(line, 0, **environment)
        daemons = _daemons.find(shell.home)
        assert len(daemons) == 2
        arguments = " ".join(word for daemon in daemons for word in daemon.arguments)
        assert password_server.password not in arguments
        shell.run("regrow stop")


class TestARun:
    def test_it_can_be_read_meanwhile_and_afterwards(self, shell: Shell) -> None:
        said = shell.run("regrow start --head --num-cpus 2").stdout
        assert str(shell.home) in said
        assert "already" in shell.run("regrow start --head", 2).stderr
        assert shell.program("'auto'").split() == ["2450", "1", "raised"]
        self.check_what_is_listed(shell, alive=True)
        status = shell.json("regrow status --json")
        assert status["running"]
        assert [node["resources"]["CPU"] for node in status["nodes"]] == [2]
        assert "Stopped 1 node, the control store, Postgres" in shell.run("regrow stop").stdout
        assert _daemons.find(shell.home) == []
        self.check_what_is_listed(shell, alive=False)
        assert embedded.status(shell.home / "postgres") is None

    def check_what_is_listed(self, shell: Shell, *, alive: bool) -> None:
        (job,) = shell.json("regrow list jobs --json")
        assert job["status"] == "finished"
        (node,) = shell.json("regrow list nodes --json")
        assert node["state"] == ("ALIVE" if alive else "DEAD")
        tasks = shell.json("regrow list tasks --filter name=double --json")
        assert len(tasks) == 50
        assert {task["state"] for task in tasks} == {"FINISHED"}
        (failed,) = shell.json("regrow list tasks --filter state=failed --json")
        assert (failed["name"], failed["error"]) == ("fail", "task_error")
        others = "--filter name!=double --filter state=finished --limit 1"
        assert len(shell.json(f"regrow list tasks {others} --json")) == 1
        (actor,) = shell.json("regrow list actors --json")
        assert (actor["class_name"], actor["name"]) == ("Counter", "counter")
        (put,) = shell.json("regrow list objects --filter kind=put --json")
        assert put["size"] >= 100_000
        table = shell.run("regrow list tasks --limit 5").stdout.splitlines()
        assert table[0].split()[:4] == ["task_id", "name", "kind", "state"]
        assert len(table) == 7
        count = "select count(*) as n from regrow.tasks where name = 'double'"
        assert shell.json(f'regrow sql --json "{count}"') == [{"n": 50}]
        assert "--write" in shell.run("regrow sql 'delete from regrow.events'", 2).stderr
        assert "line 1" in shell.run("regrow sql 'select nonsense'", 1).stderr

    def test_a_second_node_joins_and_stop_ends_both(self, shell: Shell) -> None:
        shell.run("regrow start --head --num-cpus 1")
        shell.run("""regrow start --address ~/.regrow --num-cpus 1 --resources '{"disk": 2}'""")
        nodes = shell.json("regrow status --json")["nodes"]
        assert [node["resources"].get("disk") for node in nodes] == [2, None]
        assert "Stopped 2 nodes" in shell.run("regrow stop").stdout

    def test_what_init_starts_ends_with_its_driver_and_can_be_read(self, shell: Shell) -> None:
        assert shell.program().split() == ["2450", "1", "raised"]
        assert _daemons.find(shell.home) == []
        (job,) = shell.json("regrow list jobs --json")
        assert job["status"] == "finished"

    def test_a_forced_stop_loses_nothing_that_was_committed(self, shell: Shell) -> None:
        shell.run("regrow start --head --num-cpus 1")
        shell.program("'auto'")
        shell.run("regrow stop --force")
        assert len(shell.json("regrow list tasks --filter name=double --json")) == 50


class old_server:  # noqa: N801
    """A server that says it is of this version, as far as the protocol's handshake goes."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._listening.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                setting = b"server_version\0" + self._version.encode() + b"\0"
                for kind, body in ((b"R", bytes(4)), (b"S", setting), (b"Z", b"I")):
                    connection.sendall(kind + struct.pack("!i", len(body) + 4) + body)
                connection.recv(4096)
