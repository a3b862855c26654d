"""The control store's process: its files, its port, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from regrow.gcs import embedded

TIMEOUT_S = 60.0


class Process:
    """``python -m regrow.gcs.main``."""

    def __init__(self, home: Path, *arguments: str, **environment: str) -> None:
        self.home = home
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("REGROW_P")}
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "regrow.gcs.main", "--home", str(home), *arguments],
            env={**inherited, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> Any:
        """What ``gcs.json`` says, once this process has written it."""
        deadline = time.monotonic() + TIMEOUT_S
        path = self.home / "gcs.json"
        while time.monotonic() < deadline and self.popen.poll() is None:
            if path.exists() and json.loads(path.read_text())["pid"] == self.popen.pid:
                return json.loads(path.read_text())
            time.sleep(0.01)
        self.kill()
        raise AssertionError(f"not ready: {self.popen.communicate()[1]}")

    def end(self) -> int:
        """SIGTERM; the exit status."""
        self.popen.send_signal(signal.SIGTERM)
        self.popen.communicate(timeout=TIMEOUT_S)
        return self.popen.returncode

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def home(tmp_path: Path, system_state: Path) -> Iterator[Path]:
    """A home, whose embedded server is deleted after the test."""
    yield tmp_path
    embedded.destroy(tmp_path / "postgres")


def test_what_it_writes_is_private_and_gone_after_its_end(home: Path, database_url: str) -> None:
    process = Process(home, "--storage", "file:///there", REGROW_POSTGRES=database_url)
    said = process.ready()
    assert said["postgres_url"] == database_url
    assert said["storage"] == "file:///there"
    assert len(bytes.fromhex(said["cluster_id"])) == 16
    for name in ("gcs.json", "token"):
        assert (home / name).stat().st_mode & 0o777 == 0o600
    assert process.end() == 0
    assert not (home / "gcs.json").exists()
    assert not (home / "postgres").exists(), "the server is another's"


def test_a_killed_one_is_followed_on_the_same_port(home: Path, database_url: str) -> None:
    first = Process(home, REGROW_POSTGRES=database_url)
    address = first.ready()["address"]
    first.kill()
    second = Process(home, REGROW_POSTGRES=database_url)
    assert second.ready()["address"] == address
    assert second.end() == 0


def test_one_that_leads_again_after_another_says_so_again(home: Path, database_url: str) -> None:
    """Nodes look for the control store in ``gcs.json``, where the other one left its address."""
    process = Process(home, REGROW_POSTGRES=database_url)
    mine = process.ready()
    with psycopg.connect(database_url, autocommit=True) as sql:
        sql.execute(
            "UPDATE regrow.cluster SET holder = 'another', epoch = epoch + 1, "
            "expires_at = regrow.now() + interval '3 seconds'"
        )
        (home / "gcs.json").write_text(json.dumps({**mine, "pid": 1, "address": "127.0.0.1:1"}))
    assert process.ready() == mine
    assert process.end() == 0
    assert not (home / "gcs.json").exists()


def test_the_embedded_server_ends_with_an_ephemeral_one_only(home: Path) -> None:
    process = Process(home)
    process.ready()
    assert process.end() == 0
    assert embedded.status(home / "postgres") is not None
    process = Process(home, "--ephemeral")
    process.ready()
    assert process.end() == 0
    assert embedded.status(home / "postgres") is None


def test_an_embedded_server_that_is_killed_is_started_again(home: Path) -> None:
    process = Process(home)
    url = process.ready()["postgres_url"]
    server = embedded.status(home / "postgres")
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    deadline = time.monotonic() + TIMEOUT_S
    while (again := embedded.status(home / "postgres")) is None or again.pid == server.pid:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM regrow.cluster").fetchone() == (1,)
    assert process.end() == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://u:hidden@127.0.0.1:1/x", "nothing answers for Postgres at 127.0.0.1:1"),
        ("mysql://u:hidden@there/x", "cannot be read"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_sentence_and_status_2(
    tmp_path: Path, url: str, said: str
) -> None:
    process = Process(tmp_path, REGROW_POSTGRES=url)
    output = process.popen.communicate(timeout=TIMEOUT_S)[1]
    assert process.popen.returncode == 2
    assert said in output
    assert "hidden" not in output
    assert "Traceback" not in output
