"""``regrow list`` and ``regrow status``: what the log knows, as rows.

Decides which columns each kind has, how they read and how they are filtered. Blobs (specs, results,
pickles) are in none of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import psycopg
import typer
from psycopg import sql

from regrow import _bootstrap, _cli_render, config
from regrow._bootstrap import Cluster
from regrow._cli_database import Connection, connected
from regrow._cli_render import Format
from regrow.config import RESOURCE_UNIT
from regrow.exceptions import ClusterConnectionError

Type = Literal["text", "word", "integer", "boolean", "id", "other"]

FILTER = re.compile(r"(\w+)\s*(!?=)\s*(.*)", re.DOTALL)
OBJECT_STORE = "object store"


@dataclass(frozen=True)
class Column:
    """One column of a list."""

    name: str
    #: A word is text in a case of its own: failed matches FAILED. "other" cannot be filtered.
    type: Type = "text"
    #: The SQL expression; by default the column of that name.
    expression: str = ""
    format: Format = _cli_render.plain
    #: Whether the table shows it; JSON has all.
    shown: bool = True

    @property
    def sql(self) -> sql.Composable:
        """The expression."""
        return sql.SQL(self.expression) if self.expression else sql.Identifier(self.name)


@dataclass(frozen=True)
class Listing:
    """One kind of thing that can be listed."""

    source: str
    newest_first: str
    columns: tuple[Column, ...]


def resources(value: dict[str, int] | None) -> str:
    """Resources as people write them: 2 CPU, 0.5 disk; without those that only say which node."""
    if not value:
        return ""
    amounts = {
        name: amount / RESOURCE_UNIT
        for name, amount in value.items()
        if not name.startswith("node:")
    }
    memory = amounts.pop("memory", None)
    parts = [f"{amount:g} {name}" for name, amount in amounts.items()]
    if memory is not None:
        parts.append(f"{_cli_render.size(int(memory))} memory")
    return ", ".join(parts)


def failure(value: bytes | None) -> str:
    """The message of a failure as the log keeps it: msgpack of (code, message)."""
    if value is None:
        return ""
    try:
        code, message = msgspec.msgpack.decode(value, type=tuple[str, str])
    except msgspec.MsgspecError:
        return "?"
    return f"{code}: {message}"


def duration(value: int | None) -> str:
    """Microseconds."""
    return "" if value is None else _cli_render.span(value / 1e6)


#: A node that is alive has a reason only while it drains.
NODE_STATE = (
    "CASE WHEN alive AND reason IS NULL THEN 'ALIVE' WHEN alive THEN 'DRAINING' "
    "WHEN starts_with(reason, 'it was drained') THEN 'DRAINED' ELSE 'DEAD' END"
)

LISTINGS = {
    "jobs": Listing(
        "regrow.jobs",
        "job DESC",
        (
            Column("job", "integer"),
            Column("name"),
            Column("run", "integer"),
            Column("status", "word"),
            Column("entrypoint"),
            Column("pid", "integer"),
            Column("started_at", "other", format=_cli_render.age),
            Column("finished_at", "other", format=_cli_render.age),
            Column("driver_id", "id", format=_cli_render.short_id, shown=False),
            Column("driver", "integer", shown=False),
        ),
    ),
    "nodes": Listing(
        "regrow.nodes",
        "registered_at DESC, node_id DESC",
        (
            Column("node_id", "integer"),
            Column("incarnation", "integer"),
            Column("state", "word", NODE_STATE),
            Column("is_head", "boolean"),
            Column("host", expression="host || ':' || port"),
            Column("hostname", shown=False),
            Column("resources", "other", "total", resources),
            Column("labels", "other", shown=False),
            Column("object_store_memory", "integer", format=_cli_render.size),
            Column("registered_at", "other", format=_cli_render.age),
            Column("died_at", "other", format=_cli_render.age, shown=False),
            Column("reason"),
            Column("socket_path", shown=False),
        ),
    ),
    "tasks": Listing(
        "regrow.tasks",
        "submitted_at DESC, task_id DESC",
        (
            Column("task_id", "id", format=_cli_render.short_id),
            Column("name"),
            Column("kind", "word"),
            Column("state", "word"),
            Column("job", "integer"),
            Column("node_id", "integer"),
            Column("attempt", "integer"),
            Column("duration_us", "integer", format=duration),
            Column("submitted_at", "other", format=_cli_render.age),
            Column("finished_at", "other", shown=False),
            Column("result_size", "integer", format=_cli_render.size),
            Column("error"),
            Column("parent_id", "id", format=_cli_render.short_id, shown=False),
            Column("function_id", "id", format=_cli_render.short_id, shown=False),
            Column("actor_id", "id", format=_cli_render.short_id, shown=False),
            Column("actor_seq", "integer", shown=False),
            Column("incarnation", "integer", shown=False),
            Column("submitter_node", "integer", shown=False),
            Column("max_retries", "integer", shown=False),
            Column("num_returns", "integer", shown=False),
            Column("resources", "other", format=resources, shown=False),
        ),
    ),
    "actors": Listing(
        "regrow.actors LEFT JOIN LATERAL (SELECT f.name AS class_name FROM regrow.functions f "
        "WHERE f.function_id = actors.function_id) f ON true",
        "coalesce(started_at, died_at) DESC NULLS FIRST, actor_id DESC",
        (
            Column("actor_id", "id", format=_cli_render.short_id),
            Column("class_name"),
            Column("name"),
            Column("namespace", shown=False),
            Column("state", "word"),
            Column("job", "integer"),
            Column("node_id", "integer"),
            Column("incarnation", "integer", shown=False),
            Column("started_at", "other", format=_cli_render.age),
            Column("died_at", "other", format=_cli_render.age),
            Column("error", "other", format=failure),
        ),
    ),
    "objects": Listing(
        "regrow.objects",
        "created_at DESC, object_id DESC",
        (
            Column("object_id", "id", format=_cli_render.short_id),
            Column("kind", "word"),
            Column("size", "integer", format=_cli_render.size),
            Column(
                "kept_in",
                "word",
                "CASE WHEN data IS NOT NULL THEN 'log' WHEN stored_path IS NOT NULL "
                f"THEN 'storage' ELSE '{OBJECT_STORE}' END",
            ),
            Column("job", "integer"),
            Column("created_at", "other", format=_cli_render.age),
            Column("task_id", "id", format=_cli_render.short_id, shown=False),
            Column("digest", "id", format=_cli_render.full_id, shown=False),
            Column("stored_path", shown=False),
        ),
    ),
}


def run(kind: str, filters: Sequence[str], *, limit: int, full_ids: bool, as_json: bool) -> None:
    """Print the newest ``limit`` things of a kind that match all filters.

    Raises typer.BadParameter for a filter that cannot be read, ClusterConnectionError if there is
    no database.
    """
    listing = LISTINGS[kind]
    where, values = conditions(listing, filters)
    with connected(Path(os.path.realpath(config.home()))) as connection:
        rows = select(connection, listing, where, values, limit)
    columns = listing.columns
    if as_json:
        _cli_render.print_json(
            [column.name for column in columns],
            [[_raw(c, value) for c, value in zip(columns, row, strict=True)] for row in rows],
        )
        return
    if not rows:
        print(f"No {kind}{' like that' if filters else ''}.")
        return
    shown = [index for index, column in enumerate(columns) if column.shown]
    _cli_render.print_table(
        [columns[index].name for index in shown],
        [[row[index] for index in shown] for row in rows],
        [_format(columns[index], full_ids) for index in shown],
    )
    if len(rows) == limit:
        print(f"(the newest {limit}; --limit shows more, --filter others)")


def _raw(column: Column, value: Any) -> Any:
    """As a program wants it: resources in units, failures as text, all else as it is."""
    if value is None:
        return None
    if column.format is resources:
        return {name: amount / RESOURCE_UNIT for name, amount in value.items()}
    return failure(value) if column.format is failure else value


def _format(column: Column, full_ids: bool) -> Format:
    return _cli_render.full_id if full_ids and column.type == "id" else column.format


def select(
    connection: Connection,
    listing: Listing,
    where: sql.Composable,
    values: Sequence[object],
    limit: int,
) -> list[tuple[Any, ...]]:
    """The rows, newest first."""
    query = sql.SQL("SELECT {} FROM {} WHERE {} ORDER BY {} LIMIT %s").format(
        sql.SQL(", ").join(column.sql for column in listing.columns),
        sql.SQL(listing.source),
        where,
        sql.SQL(listing.newest_first),
    )
    try:
        return connection.execute(query, [*values, limit]).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        raise ClusterConnectionError(
            "the database holds no log yet: no cluster has run on it"
        ) from None
    except psycopg.OperationalError as error:  # the cluster, and its server, ended just now
        said = str(error).strip().splitlines()[0]
        raise ClusterConnectionError(f"the database went away meanwhile: {said}") from None


def conditions(listing: Listing, filters: Sequence[str]) -> tuple[sql.Composable, list[object]]:
    """The filters as SQL and its values. Raises typer.BadParameter."""
    parts: list[sql.Composable] = [sql.SQL("true")]
    values: list[object] = []
    known = {column.name: column for column in listing.columns if column.type != "other"}
    for text in filters:
        found = FILTER.fullmatch(text.strip())
        if found is None:
            raise typer.BadParameter(
                f"{text!r} is not KEY=VALUE or KEY!=VALUE", param_hint="--filter"
            )
        name, operator, value = found.groups()
        column = known.get(name)
        if column is None:
            raise typer.BadParameter(
                f"there is no {name!r} to filter by; there are {', '.join(known)}",
                param_hint="--filter",
            )
        same = sql.SQL("=" if operator == "=" else "IS DISTINCT FROM")
        side = sql.SQL("lower({})").format(column.sql) if column.type == "word" else column.sql
        parts.append(sql.SQL("{} {} %s").format(side, same))
        values.append(_value(column, value))
    return sql.SQL(" AND ").join(parts), values


def _value(column: Column, text: str) -> object:
    try:
        match column.type:
            case "integer":
                return int(text)
            case "id":
                return bytes.fromhex(text)
            case "boolean":
                return {"true": True, "false": False}[text.lower()]
            case "word":
                return text.lower()
            case _:
                return text
    except (ValueError, KeyError):
        forms = {"integer": "a number", "id": "hexadecimal (--full-ids shows it)"}
        form = forms.get(column.type, "true or false")
        raise typer.BadParameter(
            f"{column.name} is {form}, not {text!r}", param_hint="--filter"
        ) from None


# Status


def status(*, as_json: bool) -> bool:
    """Print what runs; whether anything does."""
    home = Path(os.path.realpath(config.home()))
    cluster = _bootstrap.look(home)
    if cluster.gcs is None and not cluster.nodes:
        if as_json:
            _cli_render.print_object({"home": str(home), "running": False})
        else:
            print(f"No cluster runs in {home}.")
        return False
    try:
        with connected(home) as connection:
            alive = sql.SQL("alive")
            nodes = select(connection, LISTINGS["nodes"], alive, [], 1000)
            running, pending = _counts(connection)
    except ClusterConnectionError as unreadable:
        _status_of_this_machine(cluster, str(unreadable), as_json=as_json)
        return True
    if as_json:
        _print_status(cluster, nodes, running, pending)
        return True
    print(_headline(cluster))
    print(f"{running} job(s) running, {pending} task(s) unfinished.")
    columns = LISTINGS["nodes"].columns
    shown = [index for index, column in enumerate(columns) if column.shown][:-1]
    _cli_render.print_table(
        [columns[index].name for index in shown],
        [[row[index] for index in shown] for row in nodes],
        [columns[index].format for index in shown],
    )
    return True


def _headline(cluster: Cluster) -> str:
    store = f"at {cluster.gcs.address}" if cluster.gcs is not None else "not running"
    return f"The cluster in {cluster.home}: control store {store}."


def _status_of_this_machine(cluster: Cluster, unreadable: str, *, as_json: bool) -> None:
    """What can be told without the database: whether it runs, and the nodes that accept here."""
    names = ("node_id", "incarnation", "pid", "host")
    nodes = [(n.node_id, n.incarnation, n.pid, f"{n.host}:{n.port}") for n in cluster.nodes]
    if as_json:
        _cli_render.print_object(
            _described(cluster)
            | {
                "database_error": unreadable,
                "jobs_running": None,
                "tasks_unfinished": None,
                "nodes": [dict(zip(names, node, strict=True)) for node in nodes],
            }
        )
        return
    print(_headline(cluster))
    print(f"Only the nodes of this machine are shown, without jobs and tasks: {unreadable}.")
    _cli_render.print_table(names, nodes)


def _described(cluster: Cluster) -> dict[str, Any]:
    return {
        "home": str(cluster.home),
        "running": cluster.runs,
        "control_store": cluster.gcs.address if cluster.gcs is not None else None,
        "storage": cluster.gcs.storage if cluster.gcs is not None else None,
    }


def _counts(connection: Connection) -> tuple[int, int]:
    """Jobs that run, tasks that are unfinished; both are found by partial indices."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM regrow.jobs WHERE status = 'running'), "
        "(SELECT count(*) FROM regrow.tasks WHERE status = 0)"
    ).fetchone()
    assert row is not None
    return int(row[0]), int(row[1])


def _print_status(
    cluster: Cluster, nodes: Sequence[tuple[Any, ...]], running: int, pending: int
) -> None:
    columns = LISTINGS["nodes"].columns
    _cli_render.print_object(
        _described(cluster)
        | {
            "jobs_running": running,
            "tasks_unfinished": pending,
            "nodes": [
                {c.name: _raw(c, value) for c, value in zip(columns, row, strict=True)}
                for row in nodes
            ],
        }
    )
