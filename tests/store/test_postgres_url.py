"""A server that cannot be used is reported in one sentence, in time, without the password."""

from __future__ import annotations

import os
import socket
import string
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.gcs.postgres_url import (
    PostgresUnavailableError,
    connect_checked,
    libpq_url,
    redact_url,
)

if TYPE_CHECKING:
    from tests.store.conftest import PasswordServer

SECRET = "hunter2-and-more"


@pytest.fixture(autouse=True)
def no_credentials_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither variables nor a password file of whoever runs the tests takes part in them."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def refusal(url: str, timeout_s: float = 8) -> str:
    """The sentence with which this URL is refused."""
    started = time.monotonic()
    with pytest.raises(PostgresUnavailableError) as caught:
        connect_checked(url, timeout_s)
    assert time.monotonic() - started < 10
    sentence = str(caught.value)
    assert SECRET not in sentence
    assert "\n" not in sentence
    assert caught.value.__cause__ is None, "the cause may quote the password"
    return sentence


def test_a_good_url_connects(password_server: PasswordServer, database_url: str) -> None:
    for url in (password_server.url(password_server.password), database_url):
        with connect_checked(url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_sqlalchemys_form_of_a_url_connects_too(database_url: str) -> None:
    url = database_url.replace("postgresql://", "postgresql+psycopg://")
    assert libpq_url(url) == database_url
    connect_checked(url).close()


def test_the_password_may_come_from_the_environment(
    password_server: PasswordServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", password_server.password)
    connect_checked(password_server.url()).close()


def test_the_password_may_come_from_the_password_file(
    password_server: PasswordServer, tmp_path: Path
) -> None:
    entry = f"127.0.0.1:{password_server.port}:*:visitor:{password_server.password}\n"
    (tmp_path / ".pgpass").write_text(entry)
    (tmp_path / ".pgpass").chmod(0o600)
    connect_checked(password_server.url()).close()


def test_a_refused_password_is_not_repeated(password_server: PasswordServer) -> None:
    sentence = refusal(password_server.url(SECRET))
    assert "refused the password of visitor" in sentence
    assert "PGPASSWORD" in sentence


def test_a_missing_password_is_asked_for(password_server: PasswordServer) -> None:
    assert "none was given" in refusal(password_server.url())


def test_a_missing_database_is_named(password_server: PasswordServer) -> None:
    url = password_server.url(password_server.password, database="nowhere")
    assert "no database named nowhere" in refusal(url)


def test_a_missing_user_on_the_socket_is_named(database_url: str) -> None:
    url = database_url.replace("regrow@", "ghost@")
    assert "no user named ghost" in refusal(url)


def test_a_port_where_nothing_listens_is_named() -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        sentence = refusal(f"postgresql://u:{SECRET}@127.0.0.1:{port}/d")
    assert f"127.0.0.1:{port}" in sentence
    assert "is the server running there?" in sentence


def test_an_unknown_host_is_named() -> None:
    sentence = refusal(f"postgresql://u:{SECRET}@no-such-host.invalid/d")
    assert "host no-such-host.invalid is unknown" in sentence


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        sentence = refusal(f"postgresql://u:{SECRET}@127.0.0.1:{port}/d", timeout_s=2)
    assert "did not answer within 2 s" in sentence


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        f"mysql://u:{SECRET}@h/d",
        f"postgresql://u:{SECRET}%zz@h/d",
        f"postgresql://u:{SECRET}@h:port/d",
        f"postgresql://u:{SECRET}@x@h/d",
        f"host=h password='{SECRET}",
        f"host=h password={SECRET} and more",
        f"postgresql://u@h/d?password={SECRET}&nonsense=1",
    ],
)
def test_an_unreadable_url_is_answered_with_the_right_form(url: str) -> None:
    assert "postgresql://USER@HOST:PORT/DATABASE" in refusal(url)


@pytest.mark.parametrize(("version", "shown"), [(130_004, "13.4"), (90_624, "9.6")])
def test_a_server_that_is_too_old_is_refused_by_its_version(
    database_url: str, monkeypatch: pytest.MonkeyPatch, version: int, shown: str
) -> None:
    monkeypatch.setattr(psycopg.ConnectionInfo, "server_version", version)
    assert f"version {shown}; regrow needs version 14 or newer" in refusal(database_url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://u:pw@h:1/d", "postgresql://u:***@h:1/d"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run/pg", "postgresql:///d?host=/run/pg"),
        ("postgresql://h/d?password=pw&user=u", "postgresql://h/d?password=***&user=u"),
        ("host=h password=pw user=u", "host=h password=*** user=u"),
        ("host=h password = 'p w' user=u", "host=h password = *** user=u"),
    ],
)
def test_all_but_the_password_of_a_url_is_shown(url: str, shown: str) -> None:
    assert redact_url(url) == shown


#: Digits only where the rest of the URL has none, so that finding one means a leak.
passwords = st.text(st.sampled_from(string.punctuation + " é\t"), max_size=5).map(
    lambda text: f"9{text}9"
)


@given(passwords)
def test_no_password_however_odd_is_shown_from_a_urls_credentials(password: str) -> None:
    assert "9" not in redact_url(f"postgresql://u:{password}@h/d")


@given(passwords.filter(lambda text: "&" not in text))
def test_no_password_however_odd_is_shown_from_a_urls_query(password: str) -> None:
    assert "9" not in redact_url(f"postgresql://u@h/d?password={password}&user=u")


@given(passwords)
def test_no_quoted_password_however_odd_is_shown(password: str) -> None:
    quoted = password.replace("\\", "\\\\").replace("'", "\\'")
    assert "9" not in redact_url(f"host=h password='{quoted}' user=u")
