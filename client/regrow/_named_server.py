"""The Postgres server that a user names: whether it can be used, and whether two names mean one.

What it imports is needed only where a server is named, so whoever needs it imports it then.
"""

from __future__ import annotations

from psycopg import Error
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from regrow.exceptions import ClusterConnectionError
from regrow.gcs.postgres_url import PostgresUnavailableError, connect_checked, libpq_url


def check_postgres(url: str, password: str = "") -> None:
    """Raise ClusterConnectionError, in one sentence, if this server cannot be used.

    ``password`` is for a URL that has none.
    """
    if password:
        url = make_conninfo(libpq_url(url), password=password)
    try:
        connect_checked(url).close()
    except PostgresUnavailableError as error:
        raise ClusterConnectionError(str(error)) from None


def password_of(url: str, other: str) -> str:
    """The password in ``url`` if it names the same database as ``other``, which has none."""
    try:
        if not same_database(url, other) or "password" in conninfo_to_dict(libpq_url(other)):
            return ""
        return str(conninfo_to_dict(libpq_url(url)).get("password") or "")
    except Error:
        return ""


def without_password(url: str) -> str:
    """The same server as libpq's key=value text, without passwords; "" for none."""
    try:
        return make_conninfo("", **_parameters(url))
    except Error:
        return ""


def _parameters(url: str) -> dict[str, str]:
    found = conninfo_to_dict(libpq_url(url))
    return {k: str(v) for k, v in found.items() if k not in ("password", "sslpassword")}


def same_database(one: str, other: str) -> bool:
    """Whether two URLs name one database, as far as they say."""

    def place(url: str) -> tuple[str, str, str]:
        named = _parameters(url)
        user = named.get("user", "")
        return (named.get("host", ""), named.get("port", "5432"), named.get("dbname", user))

    return place(one) == place(other)
