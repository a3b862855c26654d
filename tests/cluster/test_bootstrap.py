"""Joining, starting and stopping the cluster of a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest

from regrow import _bootstrap, _daemons, _home, _named_server
from regrow._cli_database import connected
from regrow.exceptions import ClusterConnectionError, UnsupportedOptionError
from regrow.gcs import embedded


def wait_until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def made(home: Path) -> Path:
    """A home whose folders are there."""
    return _home.create(home)


@pytest.fixture
def stand_in(made: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process that looks like a daemon of the home, in a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *arguments: str, code: str = "") -> subprocess.Popen[bytes]:
        program = f"import signal, subprocess, sys\n{code}\nsignal.pause()"
        command = [sys.executable, "-c", program, module, "--home", str(made), *arguments]
        environment = {**os.environ, "REGROW_HOME": str(made)}
        process = subprocess.Popen(
            command, start_new_session=True, env=environment, stdout=subprocess.PIPE
        )
        started.append(process)
        return process

    yield start
    for process in started:
        _daemons.kill_sessions([process.pid])
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class TestRuntimeDirectory:
    def test_it_is_private_and_its_sockets_names_are_short_enough(self, made: Path) -> None:
        path = _home.create_runtime_directory(made)
        assert path.stat().st_mode & 0o777 == 0o700
        assert len(str(path / "node-123456789.sock")) < 100
        _home.remove_what_ended(made)
        assert not path.exists()

    def test_it_is_the_same_through_a_symbolic_link(self, made: Path, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(made)
        assert _home.runtime_directory(tmp_path / "link") == _home.runtime_directory(made)

    def test_a_symbolic_link_in_its_place_is_refused(self, made: Path, tmp_path: Path) -> None:
        path = _home.runtime_directory(made)
        path.symlink_to(tmp_path)
        with pytest.raises(ClusterConnectionError, match="not a folder of this user's"):
            _home.create_runtime_directory(made)
        path.unlink()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give folders away")
    def test_another_users_folder_is_refused(self, made: Path) -> None:
        path = _home.runtime_directory(made)
        path.mkdir()
        os.chown(path, 65534, 65534)
        with pytest.raises(ClusterConnectionError, match="not a folder of this user's"):
            _home.create_runtime_directory(made)
        path.rmdir()

    def test_permissions_that_were_opened_are_closed(self, made: Path) -> None:
        _home.runtime_directory(made).mkdir(mode=0o755)
        assert _home.create_runtime_directory(made).stat().st_mode & 0o777 == 0o700
        _home.remove_what_ended(made)


class TestToken:
    def test_it_is_made_once_for_this_user_only(self, made: Path) -> None:
        first = _home.token(made, {})
        assert (made / "token").stat().st_mode & 0o777 == 0o600
        assert len(first) >= 43
        assert _home.token(made, {}) == first

    def test_racing_makers_get_the_same(self, made: Path) -> None:
        barrier, tokens = threading.Barrier(8), []

        def make() -> None:
            barrier.wait()
            tokens.append(_home.token(made, {}))

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(tokens)) == 1
        assert [path.name for path in made.iterdir() if "token" in path.name] == ["token"]

    def test_the_environments_goes_first_and_into_the_file(self, made: Path) -> None:
        _home.token(made, {})
        assert _home.token(made, {"REGROW_TOKEN": "given"}) == "given"
        assert _home.token(made, {}) == "given"

    def test_one_that_others_may_read_is_refused(self, made: Path) -> None:
        _home.token(made, {})
        (made / "token").chmod(0o644)
        with pytest.raises(ClusterConnectionError, match="chmod 600"):
            _home.token(made, {})


class TestLocks:
    def test_the_start_lock_is_exclusive_and_says_so(self, made: Path) -> None:
        with (
            _home.start_lock(made, 1),
            pytest.raises(ClusterConnectionError, match="starting or stopping"),
            _home.start_lock(made, 0.05),
        ):
            pass
        with _home.start_lock(made, 0.05):
            pass

    def test_only_the_last_driver_is_the_last(self, made: Path) -> None:
        one, other = _home.drivers(made), _home.drivers(made)
        assert not _home.has_drivers(made)
        one.hold()
        other.hold()
        assert not one.release()
        assert _home.has_drivers(made)
        assert other.release()
        assert not _home.has_drivers(made)
        one.close()
        other.close()


class TestDaemons:
    def test_a_pid_of_another_program_or_home_is_no_daemon(
        self, made: Path, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        process = stand_in(_daemons.GCS_MODULE, "--ephemeral")
        wait_until(lambda: _daemons.identify(process.pid, made))
        found = _daemons.identify(process.pid, made)
        assert found is not None
        assert found.ephemeral
        assert _daemons.find(made) == [found]
        assert _daemons.identify(os.getpid(), made) is None
        assert _daemons.identify(process.pid, made / "other") is None

    def test_a_zombie_is_dead(
        self, made: Path, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        process = stand_in(_daemons.NODE_MODULE)
        wait_until(lambda: _daemons.find(made))
        process.kill()
        wait_until(lambda: not _daemons.find(made))
        assert _daemons.session_members([process.pid]) == []

    def test_a_killed_session_takes_workers_that_left_its_process_group(
        self, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        code = (
            "subprocess.Popen(['sleep', '600'], process_group=0)\n"
            "subprocess.Popen(['sleep', '600'])\nprint('.', flush=True)"
        )
        process = stand_in(_daemons.NODE_MODULE, code=code)
        assert process.stdout is not None
        process.stdout.readline()
        assert len(_daemons.session_members([process.pid])) == 3
        assert _daemons.kill_sessions([process.pid])
        assert _daemons.session_members([process.pid]) == []

    def test_one_that_ignores_the_request_to_stop_is_killed(
        self, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        ignored = "for n in (signal.SIGTERM, signal.SIGINT): signal.signal(n, signal.SIG_IGN)"
        code = f"{ignored}\nprint('.', flush=True)"
        process = stand_in(_daemons.NODE_MODULE, code=code)
        assert process.stdout is not None
        process.stdout.readline()
        assert _daemons.end([process.pid], 0.05)
        assert process.wait() == -signal.SIGKILL

    def test_workers_of_a_dead_node_are_found_by_session_and_home(
        self, made: Path, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        code = "subprocess.Popen(['sleep', '600'])\nprint('.', flush=True)"
        process = stand_in(_daemons.NODE_MODULE, code=code)
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        process.wait()
        assert _daemons.orphans(made, [process.pid]) == [process.pid]
        assert _daemons.orphans(made / "other", [process.pid]) == []

    def test_one_that_ends_while_it_starts_is_quoted(self, made: Path) -> None:
        log = made / "logs" / "gcs.log"
        log.write_text("of an earlier start\n")
        start = log.stat().st_size
        process = subprocess.Popen(["sh", "-c", f"echo why not >> {log}; exit 3"])
        process.wait()
        daemon = _daemons.Daemon("node", process, log, start)
        with pytest.raises(ClusterConnectionError) as caught:
            daemon.check()
        said = str(caught.value)
        assert "why not" in said
        assert "status 3" in said
        assert str(log) in said
        assert "earlier" not in said

    def test_a_node_that_is_killed_while_it_starts_is_not_waited_for(self, made: Path) -> None:
        node = _daemons.start_node(made, _daemons.NodeOptions(), name="node-1")
        _daemons.kill_sessions([node.pid])
        with pytest.raises(ClusterConnectionError, match="killed by signal 9"):
            _bootstrap.await_node(made, node)
        _home.remove_what_ended(made)


class TestAddress:
    def test_nothing_there_is_a_connection_error_that_says_what_to_do(self, home: Path) -> None:
        for address in ("auto", str(home), "127.0.0.1:1234"):
            with pytest.raises(ConnectionError, match="regrow start"):
                _bootstrap.attach(address)
        assert not home.exists()

    def test_regrow_address_is_the_default(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGROW_ADDRESS", "auto")
        with pytest.raises(ConnectionError, match=f"no cluster runs in {home}"):
            _bootstrap.attach()

    def test_a_url_is_refused(self) -> None:
        with pytest.raises(UnsupportedOptionError, match="ray://"):
            _bootstrap.attach("ray://somewhere:10001")


class TestPostgres:
    def test_what_is_remembered_has_no_password(self, made: Path) -> None:
        url = "postgresql+psycopg://me:secret@db:5433/work?sslmode=disable"
        assert _named_server.without_password(url) == (
            "user=me dbname=work host=db port=5433 sslmode=disable"
        )
        assert _named_server.without_password("password=secret host=db") == "host=db"
        assert _named_server.without_password("postgresql://me:se%cret@") == ""

    def test_a_server_that_is_not_there_is_told_before_anything_starts(self, home: Path) -> None:
        started = time.monotonic()
        with pytest.raises(ClusterConnectionError, match="is the server running there"):
            _bootstrap.attach(postgres="postgresql://me:secret@127.0.0.1:1/work")
        assert time.monotonic() - started < 10
        assert list((home / "logs").iterdir()) == []


class TestStale:
    def test_files_of_a_killed_cluster_do_not_pass_for_a_running_one(self, made: Path) -> None:
        dead = subprocess.Popen(["true"])
        dead.wait()
        runtime = _home.create_runtime_directory(made)
        note = _home.GcsFile("127.0.0.1:1", dead.pid, "postgresql:///x")
        (made / "gcs.json").write_bytes(msgspec.json.encode(note))
        node = _home.NodeFile(7, 1, dead.pid, str(runtime / "node-7.sock"))
        (runtime / "node-7.json").write_bytes(msgspec.json.encode(node))
        (runtime / "node-7.arena").touch()
        cluster = _bootstrap.look(made)
        assert (cluster.gcs, cluster.nodes) == (None, [])
        with pytest.raises(ConnectionError, match="no cluster runs"):
            _bootstrap.attach("auto")
        assert not (made / "gcs.json").exists()
        assert list(runtime.glob("node-*")) == []
        _home.remove_what_ended(made)

    def test_a_half_written_file_is_no_file(self, made: Path) -> None:
        (made / "gcs.json").write_text('{"address": "127.')
        assert _bootstrap.look(made).gcs is None

    def test_stop_ends_daemons_and_the_workers_of_dead_ones(
        self, made: Path, stand_in: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        runtime = _home.create_runtime_directory(made)
        code = "subprocess.Popen(['sleep', '600'])\nprint('.', flush=True)"
        dead = stand_in(_daemons.NODE_MODULE, code=code)
        assert dead.stdout is not None
        dead.stdout.readline()
        node = _home.NodeFile(1, 1, dead.pid, str(runtime / "node-1.sock"))
        (runtime / "node-1.json").write_bytes(msgspec.json.encode(node))
        dead.kill()
        dead.wait()
        living = stand_in(_daemons.NODE_MODULE)
        store = stand_in(_daemons.GCS_MODULE)
        wait_until(lambda: len(_daemons.find(made)) == 2)
        stopped = _bootstrap.stop(made)
        assert (stopped.nodes, stopped.gcs) == (1, True)
        assert _daemons.session_members([dead.pid, living.pid, store.pid]) == []
        assert not runtime.exists()
        assert not _bootstrap.stop(made).anything


JOIN = """
import os, sys
import regrow
from regrow import _api
regrow.init()
session = _api._session
print(session.started, session.node_socket, flush=True)
sys.stdin.readline()
if "kill" in sys.argv:
    os.kill(os.getpid(), 9)
regrow.shutdown()
"""


@pytest.fixture
def drivers(home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts drivers that join the home's cluster, or start it, and leave when told to."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", JOIN, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    _bootstrap.stop(home)
    if (home / "postgres").exists():
        embedded.destroy(home / "postgres")


def joined(process: subprocess.Popen[str]) -> tuple[bool, str]:
    """Whether this driver started the cluster, and its node's socket."""
    assert process.stdout is not None
    started, path = process.stdout.readline().split()
    return started == "True", path


def leave(process: subprocess.Popen[str]) -> None:
    process.communicate("\n", timeout=30)


class TestRealClusters:
    def test_of_racing_starters_one_starts_and_the_others_join(
        self, home: Path, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        processes = [drivers() for _ in range(3)]
        answers = [joined(process) for process in processes]
        assert sorted(started for started, _ in answers) == [False, False, True]
        assert len({path for _, path in answers}) == 1
        assert len(_daemons.find(home)) == 2
        for process in processes[:2]:
            leave(process)
        assert len(_daemons.find(home)) == 2
        leave(processes[2])
        assert _daemons.find(home) == []
        assert not _home.runtime_directory(home).exists()
        assert embedded.status(home / "postgres") is None

    def test_the_cluster_of_a_killed_driver_is_replaced(
        self, home: Path, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        first = drivers("kill")
        assert joined(first)[0]
        before = {found.pid for found in _daemons.find(home)}
        leave(first)
        second = drivers()
        assert joined(second)[0]
        after = {found.pid for found in _daemons.find(home)}
        assert len(after) == 2
        assert before.isdisjoint(after)
        leave(second)

    def test_after_a_power_cut_a_new_one_starts_on_the_same_data(
        self, home: Path, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        session = _bootstrap.start_head(home, options=_daemons.NodeOptions(num_cpus=1))
        assert session.local_sockets() == [session.node_socket]
        server = embedded.status(home / "postgres")
        assert server is not None
        pids = [found.pid for found in _daemons.find(home)]
        os.kill(server.pid, signal.SIGKILL)
        _daemons.kill_sessions(pids)
        assert (home / "gcs.json").exists()
        assert session.local_sockets() == []
        with pytest.raises(ConnectionError, match="no cluster runs"):
            _bootstrap.attach("auto")
        process = drivers()
        assert joined(process)[0]
        leave(process)

    def test_a_killed_node_is_replaced_beside_its_control_store(
        self, home: Path, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        session = _bootstrap.start_head(home, options=_daemons.NodeOptions(num_cpus=1))
        (store,) = [d for d in _daemons.find(home) if d.module == _daemons.GCS_MODULE]
        assert session.daemon is not None
        _daemons.kill_sessions([session.daemon.pid])
        process = drivers()
        assert joined(process)[0]
        assert store in _daemons.find(home)
        assert len(_daemons.find(home)) == 2
        leave(process)
        assert store in _daemons.find(home)

    def test_what_a_running_cluster_cannot_heed_is_refused(
        self, home: Path, database_url: str, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        process = drivers()
        joined(process)
        with pytest.raises(ValueError, match="num_cpus, resources cannot be given"):
            _bootstrap.attach(num_cpus=2, resources={"x": 1})
        with pytest.raises(ClusterConnectionError, match="another database"):
            _bootstrap.attach(postgres=database_url)
        with pytest.raises(ClusterConnectionError, match="has the storage"):
            _bootstrap.attach(storage="/elsewhere")
        with pytest.raises(ClusterConnectionError, match="already"):
            _bootstrap.attach("local")
        with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1 runs on this machine"):
            _bootstrap.attach("127.0.0.1:1")
        gcs = _home.read_gcs(home)
        assert gcs is not None
        for address in (str(home), "auto", gcs.address):
            session = _bootstrap.attach(address)
            assert not session.started
            session.close()
        leave(process)

    def test_a_start_that_fails_leaves_nothing(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REGROW_LEASE_TTL_S", "soon")
        with pytest.raises(ClusterConnectionError, match="REGROW_"):
            _bootstrap.attach()
        assert _daemons.find(home) == []
        assert not _home.runtime_directory(home).exists()
        assert not (home / "gcs.json").exists()

    def test_a_database_of_ones_own_is_used_and_left(self, home: Path, database_url: str) -> None:
        session = _bootstrap.attach(postgres=database_url, num_cpus=1)
        assert session.started
        session.close()
        assert _daemons.find(home) == []
        with psycopg.connect(database_url) as connection:
            nodes = connection.execute("SELECT alive FROM regrow.nodes").fetchall()
        assert nodes == [(False,)]

    def test_readers_of_kept_data_and_a_cluster_that_starts_do_not_disturb_each_other(
        self, home: Path, drivers: Callable[..., subprocess.Popen[str]]
    ) -> None:
        first = drivers()
        joined(first)
        leave(first)
        with connected(home) as one:
            with connected(home) as other:
                assert other.execute("SELECT count(*) FROM regrow.jobs").fetchone() == (1,)
            assert one.execute("SELECT count(*) FROM regrow.jobs").fetchone() == (1,)
            second = drivers()
            assert joined(second)[0]
        assert len(_daemons.find(home)) == 2
        assert embedded.status(home / "postgres") is not None
        leave(second)
        with connected(home) as one:
            assert one.execute("SELECT count(*) FROM regrow.jobs").fetchone() == (2,)
        assert embedded.status(home / "postgres") is None
