"""Connects to the Postgres server a user named, or says in one sentence why that fails.

Decides how connection failures are worded and which servers are new enough. A password never
appears in what it says. It must not know the schema; credentials that are not in the URL come from
libpq's own places (PGPASSWORD, PGPASSFILE or ~/.pgpass, a service file).
"""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

Connection = psycopg.Connection[tuple[Any, ...]]

OLDEST_VERSION = 14
URL_FORM = "postgresql://USER@HOST:PORT/DATABASE"
PASSWORD_PLACES = "PGPASSWORD, ~/.pgpass or REGROW_POSTGRES"

_SQLALCHEMY_DRIVER = re.compile(r"^(postgres(?:ql)?)\+\w+://")
#: A password in a URL's query, and in key=value form: quoted, quoted without an end, or bare.
_QUERY_FIELD = re.compile(r"(password=)[^&]*", re.IGNORECASE)
_KEY_VALUE_FIELD = re.compile(
    r"(password\s*=\s*)(?:'(?:[^'\\]|\\.)*'(?=\s|$)|'.*|.*?(?=\s+\w+\s*=|$))",
    re.IGNORECASE | re.DOTALL,
)


class PostgresUnavailableError(Exception):
    """The named Postgres server cannot be used; the message is one sentence for the user."""


def libpq_url(url: str) -> str:
    """Return the URL as libpq reads it: without the driver that SQLAlchemy's form may name."""
    return _SQLALCHEMY_DRIVER.sub(r"\1://", url.strip())


def redact_url(url: str) -> str:
    """Return the URL or key=value string with any password replaced by `***`.

    Also for text that cannot be parsed: whatever might be a password is taken for one.
    """
    scheme, separator, rest = url.partition("://")
    if not re.fullmatch(r"\s*[\w+.-]*", scheme):
        separator = ""  # key=value form with :// somewhere in a value
    # A password may hold an unescaped @ or /, so the last @ of all ends the credentials.
    credentials, at, place = (rest if separator else url).rpartition("@")
    if not separator:
        shown = _KEY_VALUE_FIELD.sub(r"\1***", url)
        return f"***@{place}" if at and shown == url else shown
    if _QUERY_FIELD.search(credentials):
        return f"{scheme}://***"  # the last @ may be within a password in the query
    user, colon, _ = credentials.partition(":")
    secret = ":***" if colon else ""
    return f"{scheme}://{user}{secret}{at}" + _QUERY_FIELD.sub(r"\1***", place)


@dataclass(frozen=True)
class _Target:
    """What a URL names, for use in sentences."""

    parameters: dict[str, Any]

    @property
    def place(self) -> str:
        host = self.parameters.get("host") or self.parameters.get("hostaddr") or "the local socket"
        port = self.parameters.get("port")
        return f"{host}:{port}" if port and not str(host).startswith("/") else str(host)

    @property
    def database(self) -> str:
        return str(self.parameters.get("dbname") or self.user)

    @property
    def user(self) -> str:
        return str(self.parameters.get("user") or "the current user")

    def scrub(self, text: str) -> str:
        """Remove the URL's passwords from a message of libpq or the server."""
        for name in ("password", "sslpassword"):
            secret = self.parameters.get(name)
            if secret:
                # Whole words only: cutting a short one out of other words would give it away.
                text = re.sub(rf"(?<!\w){re.escape(str(secret))}(?!\w)", "***", text)
        return text


@dataclass
class _Attempt:
    """One connection attempt in a thread of its own, because resolving a name cannot be bounded."""

    conninfo: str
    connection: Connection | None = None
    error: psycopg.Error | None = None
    abandoned: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> None:
        try:
            connection = psycopg.connect(self.conninfo)
        except psycopg.Error as error:
            self.error = error
            return
        with self.lock:
            if not self.abandoned:
                self.connection = connection
                return
        connection.close()

    def wait(self, timeout_s: float) -> bool:
        """Return whether the attempt ended in time; one that did not closes what it opens."""
        thread = threading.Thread(target=self.run, name="postgres-connect", daemon=True)
        thread.start()
        thread.join(timeout_s)
        with self.lock:
            self.abandoned = self.connection is None and self.error is None
            return not self.abandoned


def connect_checked(url: str, timeout_s: float = 8) -> Connection:
    """Connect to this server and check that regrow can use its version.

    `url` is a libpq URL or key=value string; SQLAlchemy's `postgresql+psycopg://` is taken too.
    Raises PostgresUnavailableError within about `timeout_s` seconds.
    """
    target = _parse(url)
    # libpq counts whole seconds and rounds 1 up to 2.
    conninfo = make_conninfo(libpq_url(url), connect_timeout=max(2, int(timeout_s)))
    attempt = _Attempt(conninfo)
    if not attempt.wait(timeout_s + 1):
        raise _unanswered(target, timeout_s)
    if attempt.error is not None:
        raise _explain(attempt.error, target, timeout_s) from None
    connection = attempt.connection
    assert connection is not None
    version = connection.info.server_version
    if version < OLDEST_VERSION * 10_000:
        connection.close()
        raise PostgresUnavailableError(
            f"Postgres at {target.place} is version {_readable(version)}; "
            f"regrow needs version {OLDEST_VERSION} or newer"
        )
    return connection


def _parse(url: str) -> _Target:
    libpq = libpq_url(url)
    scheme = libpq.partition("://")[0] if "://" in libpq else ""
    known = not re.fullmatch(r"\w+", scheme) or scheme in ("postgres", "postgresql")
    if libpq and known:
        # libpq's own message may quote the password, so it is not passed on.
        with contextlib.suppress(psycopg.Error):
            parameters = dict(conninfo_to_dict(libpq))
            # A @ in the host, or a port of letters, is part of a password that was not encoded.
            misread = "@" in str(parameters.get("host") or "")
            if not misread and re.fullmatch(r"[\d,]*", str(parameters.get("port") or "")):
                return _Target(parameters)
    shown = f"Postgres URL {redact_url(url.strip())!r}" if libpq else "empty Postgres URL"
    raise PostgresUnavailableError(
        f"the {shown} cannot be read; it should look like {URL_FORM}, "
        "with special characters in it percent-encoded"
    )


def _readable(version: int) -> str:
    major, minor = divmod(version, 10_000)
    return f"{major}.{minor}" if major >= 10 else f"{major}.{minor // 100}"


def _unanswered(target: _Target, timeout_s: float) -> PostgresUnavailableError:
    return PostgresUnavailableError(
        f"Postgres at {target.place} did not answer within {timeout_s:g} s; "
        "is the address right, and does a firewall let the connection through?"
    )


def _explain(error: psycopg.Error, target: _Target, timeout_s: float) -> PostgresUnavailableError:
    """Word a failed connection; libpq tells its causes apart only in English prose."""
    said = target.scrub(str(error))
    place = target.place
    if "no password supplied" in said:
        sentence = (
            f"Postgres at {place} asks for the password of {target.user} and none was given; "
            f"set it in {PASSWORD_PLACES}"
        )
    elif "password authentication failed" in said:
        sentence = (
            f"Postgres at {place} refused the password of {target.user}; "
            f"correct it in {PASSWORD_PLACES}"
        )
    elif re.search(r"could not translate host name|failed to resolve host", said):
        sentence = f"the Postgres host {place} is unknown; is its name spelled right?"
    elif re.search(r"Connection refused|No such file or directory", said):
        sentence = f"nothing answers for Postgres at {place}; is the server running there?"
    elif isinstance(error, psycopg.errors.ConnectionTimeout) or "timeout expired" in said:
        return _unanswered(target, timeout_s)
    elif re.search(r'database ".*" does not exist', said):
        sentence = (
            f"Postgres at {place} has no database named {unquote(target.database)}; "
            f"create it first, or name another one"
        )
    elif re.search(r'role ".*" does not exist', said):
        sentence = f"Postgres at {place} has no user named {target.user}"
    else:
        last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
        sentence = (
            f"cannot connect to Postgres at {place}: {''.join(last) or 'no reason was given'}"
        )
    return PostgresUnavailableError(sentence)
