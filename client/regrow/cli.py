"""The ``regrow`` command: its words, options and exit status.

Parses and dispatches only; what a command does is in the ``_cli_*`` modules, imported when it runs,
so that ``regrow --help`` is quick. Exit status: 0 done; 1 it failed; 2 wrong usage, or there is no
cluster, database or storage that can be used. An error is one sentence on standard error, never a
traceback.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from regrow._commands_chaos import chaos
from regrow._commands_job import job

app = typer.Typer(
    name="regrow",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich for --help would double the time it takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(db, name="db", help="Look after the database.")


app.add_typer(job, name="job", help="Let the cluster run drivers, and look after named jobs.")
app.add_typer(chaos, name="chaos", help="Run clusters under faults.")


#: What ``regrow list`` lists.
KINDS = ("jobs", "nodes", "tasks", "actors", "objects")

Json = Annotated[bool, typer.Option("--json", help="Print JSON, with all columns.")]


@app.callback(invoke_without_command=True)
def regrow(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Kill anything; it regrows: Ray's tasks and actors on a control store that never forgets.

    A cluster lives in a folder, $REGROW_HOME (default ~/.regrow), which also keeps its data.

    \b
    Examples:
      regrow demo
      regrow start --head --num-cpus 2
      regrow status
      regrow list tasks --filter state=failed
      regrow sql "select name, count(*) from regrow.tasks group by 1"
      regrow stop
    """
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"regrow {installed('regrow')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


@app.command()
def start(
    head: Annotated[
        bool, typer.Option("--head", help="Start a cluster: Postgres, the control store, a node.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOME|HOST:PORT",
            help="Start a node of the cluster in this home on this machine, or of the one whose "
            "control store is at HOST:PORT (then --postgres or REGROW_POSTGRES, and REGROW_TOKEN, "
            "must be those of that cluster).",
        ),
    ] = None,
    postgres: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Use this server (version 14 or newer), not the embedded one. A password is "
            "better given in REGROW_POSTGRES, PGPASSWORD, in ~/.pgpass, or with --postgres-file.",
        ),
    ] = None,
    postgres_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Read that URL from the first line of a private file."),
    ] = None,
    num_cpus: Annotated[
        float | None, typer.Option(metavar="N", help="CPUs the node offers; by default all.")
    ] = None,
    num_gpus: Annotated[
        float | None, typer.Option(metavar="N", help="GPUs the node offers; by default all.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory that tasks can ask for.")
    ] = None,
    resources: Annotated[
        str | None, typer.Option(metavar="JSON", help="""Further resources: '{"disk": 2}'.""")
    ] = None,
    object_store_memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Size of the object arena: bytes, or 500MB, 2GiB; by default 30 % of the memory.",
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="JSON", help="""Labels: '{"zone": "a"}'.""")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Where the cluster stores objects: a folder, s3://..."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Listen at this address of the machine, for other machines."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(metavar="N", min=0, max=65535, help="Port of the control store; 0: any."),
    ] = 0,
    block: Annotated[
        bool, typer.Option("--block", help="Stay until stopped; then stop what was started.")
    ] = False,
    gcs_standby: Annotated[
        bool,
        typer.Option(
            "--gcs-standby",
            help="Start a second control store in this home, which takes over if the first dies.",
        ),
    ] = False,
) -> None:
    """Start a cluster, one more node of it, or a standby of its control store.

    \b
    Examples:
      regrow start --head
      regrow start --head --num-cpus 4 --object-store-memory 2GB --block
      regrow start --address ~/.regrow --resources '{"disk": 1}'
      regrow start --gcs-standby
      REGROW_POSTGRES=postgresql://me:secret@db/work regrow start --head
    """
    from regrow import _cli_start

    _cli_start.start(
        _cli_start.Asked(
            head=head,
            address=address,
            postgres=postgres,
            postgres_file=postgres_file,
            storage=storage,
            options=_cli_start.node_options(
                num_cpus, num_gpus, memory, resources, object_store_memory, labels, host
            ),
            port=port,
            block=block,
            gcs_standby=gcs_standby,
        )
    )


@app.command()
def stop(
    force: Annotated[
        bool, typer.Option("--force", help="Kill at once; what was committed is safe.")
    ] = False,
) -> None:
    """Stop the cluster of this home.

    That is, its nodes on this machine, its control store and its embedded Postgres. The data
    stays: `regrow list` and `regrow sql` read it also afterwards.

    \b
    Examples:
      regrow stop
      REGROW_HOME=/data/regrow regrow stop --force
    """
    from regrow import _cli_start

    _cli_start.stop(force=force)


@app.command()
def drain(
    node: Annotated[
        int, typer.Argument(metavar="NODE", help="The node_id of `regrow list nodes`.")
    ],
    deadline: Annotated[
        float,
        typer.Option(
            metavar="S", min=0, help="The node leaves after so many seconds, done or not."
        ),
    ] = 60.0,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="What drivers, tasks and the log are told.")
    ] = "asked to by regrow drain",
) -> None:
    """Empty a node and let it leave the cluster; returns when it has left.

    It takes no new work, and gives away what waits there. Running tasks may end; what only it has
    is written to storage; actors that restart move to other nodes, with their state. What still
    runs at the deadline runs again elsewhere, without using up a retry. SIGTERM to a node does the
    same, within REGROW_DRAIN_DEADLINE_S.

    \b
    Examples:
      regrow drain 2
      regrow drain 3 --deadline 120 --reason "kernel update"
    """
    from regrow import _cli_drain

    if not _cli_drain.run(node, deadline, reason):
        raise typer.Exit(1)


@app.command()
def status(json: Json = False) -> None:
    """Show the cluster that runs, and its nodes.

    Exit status 1 if none runs.

    \b
    Examples:
      regrow status
      regrow status --json
    """
    from regrow import _cli_list

    if not _cli_list.status(as_json=json):
        raise typer.Exit(1)


@app.command("list")
def list_(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="jobs, nodes, tasks, actors or objects")
    ],
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="KEY=VALUE", help="Only rows like this, or KEY!=VALUE; repeatable."
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, metavar="N", help="So many rows at most, the newest.")
    ] = 100,
    full_ids: Annotated[bool, typer.Option("--full-ids", help="Do not shorten ids.")] = False,
    json: Json = False,
) -> None:
    """List what the log knows, newest first.

    The log is that of the cluster that runs in this home, or ran there.

    \b
    Examples:
      regrow list jobs
      regrow list nodes --json
      regrow list tasks --filter state=failed --filter name!=warm_up
      regrow list tasks --filter job=3 --limit 1000 --json
      regrow list actors --filter state=alive
      regrow list objects --full-ids
    """
    if kind not in KINDS:
        raise typer.BadParameter(f"{kind!r} is none of {', '.join(KINDS)}", param_hint="KIND")
    from regrow import _cli_list

    _cli_list.run(kind, filters or [], limit=limit, full_ids=full_ids, as_json=json)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="The statement; - reads it from standard input.")],
    json: Json = False,
    write: Annotated[
        bool, typer.Option("--write", help="Let the statement change data; know what you do.")
    ] = False,
) -> None:
    """Run a statement on the log.

    While the cluster runs, and afterwards on the data that is kept. In JSON, ids are hexadecimal
    and times ISO 8601; what JSON has no number for is text: "NaN", "Infinity", "-Infinity".

    \b
    Examples:
      regrow sql "select name, state, count(*) from regrow.tasks group by 1, 2"
      regrow sql --json "select * from regrow.events order by at desc limit 10"
      regrow sql - < report.sql
    """
    from regrow import _cli_sql, config

    text = sys.stdin.read() if query == "-" else query
    if not text.strip():
        raise typer.BadParameter("the statement is empty", param_hint="QUERY")
    _cli_sql.run(config.home(), text, as_json=json, write=write)


class Victim(StrEnum):
    """What ``regrow demo`` can kill."""

    WORKER = "worker"
    NODE = "node"
    ACTOR = "actor"
    GCS = "gcs"
    POSTGRES = "postgres"
    DRIVER = "driver"
    EVERYTHING = "everything"


@app.command()
def demo(
    kill: Annotated[
        Victim, typer.Option("--kill", help="What is killed in the middle of the training.")
    ] = Victim.NODE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep its data and say where, for regrow sql.")
    ] = False,
) -> None:
    """Train on three nodes, kill one (or something else), show what regrew.

    Runs in a private folder, touches no other cluster, and takes less than a minute. Exit status 1
    if the result is not, bit for bit, that of a run without a fault.

    \b
    Example:
      regrow demo
      regrow demo --kill everything
    """
    from regrow.demo import run_demo

    raise typer.Exit(run_demo(kill=kill.value, keep=keep))


@db.callback()
def database() -> None:
    """Look after the database."""


@db.command()
def upgrade(
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL of a new schema; change nothing.")
    ] = False,
) -> None:
    """Bring the schema `regrow` up to date; a starting cluster does that by itself.

    \b
    Examples:
      regrow db upgrade --sql > regrow.sql
      REGROW_POSTGRES=postgresql://owner@db/work regrow db upgrade
    """
    from regrow import _cli_sql, config

    _cli_sql.upgrade(config.home(), print_only=sql)


def main() -> None:
    """The program; does not return."""
    try:
        app()
    except BrokenPipeError:
        raise SystemExit(1) from None
    except Exception as error:
        raise SystemExit(_say(error)) from None


def _say(error: Exception) -> int:
    """Print an operating error as a sentence; its exit status. Raises what is none."""
    from regrow.exceptions import ClusterConnectionError, RayError, StorageError

    if not isinstance(error, RayError):
        raise error
    print(f"regrow: {error}", file=sys.stderr)
    unusable = isinstance(error, (ClusterConnectionError, StorageError))
    refused = unusable or error.code == "statement_writes"
    return 2 if refused else 1


if __name__ == "__main__":
    main()
