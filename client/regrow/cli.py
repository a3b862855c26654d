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
import typer.core

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


job = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(job, name="job", help="Let the cluster run drivers, and look after named jobs.")

chaos = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
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


Name = Annotated[str, typer.Argument(metavar="NAME", help="As in init(job=NAME).")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once it is submitted.")]


@job.callback()
def jobs() -> None:
    """Let the cluster run drivers, and look after named jobs."""


@job.command("submit")
def job_submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND", help="The driver.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Of the job; init() in the driver takes it.")
    ],
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Set this for the driver (not for its tasks)."),
    ] = None,
    working_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it runs; by default here.")
    ] = None,
    attempts: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often it may be started, if it fails.")
    ] = 3,
    no_wait: NoWait = False,
) -> None:
    """Let the cluster run a driver, and print its output until it ends.

    It is started again when it fails, with a pause in between; on another node when its node dies;
    and with the cluster, after that was stopped or killed. What the job had finished is found, not
    run again.

    \b
    Examples:
      regrow job submit --name nightly -- python pipeline.py --date today
      regrow job submit --name nightly --env STAGE=test --no-wait -- python pipeline.py
    """
    from regrow import _cli_job, _submission, config

    environment: dict[str, str] = {}
    for pair in env or []:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--env")
        environment[key] = value
    folder = (working_dir or Path()).absolute()
    if not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}", param_hint="--working-dir")
    try:
        _submission.check_name(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--name") from None
    submission = _submission.Submission(name, command, environment, str(folder), attempts)
    raise typer.Exit(_cli_job.submit(config.home(), submission, wait=not no_wait))


@job.command("status")
def job_status(name: Name, json: Json = False) -> None:
    """Show the newest run of a job.

    \b
    Example:
      regrow job status nightly
    """
    from regrow import _cli_job, config

    _cli_job.status(config.home(), name, as_json=json)


@job.command("logs")
def job_logs(
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the driver ends.")] = False,
) -> None:
    """Print what a submitted driver printed.

    \b
    Example:
      regrow job logs nightly --follow
    """
    from regrow import _cli_job, config

    _cli_job.logs(config.home(), name, follow=follow)


@job.command("stop")
def job_stop(name: Name) -> None:
    """End a submitted driver. The job can be resumed.

    \b
    Example:
      regrow job stop nightly
    """
    from regrow import _cli_job, config

    _cli_job.stop(config.home(), name)


@job.command("resume")
def job_resume(name: Name, no_wait: NoWait = False) -> None:
    """Submit a driver again as it was submitted last.

    \b
    Example:
      regrow job resume nightly
    """
    from regrow import _cli_job, config

    raise typer.Exit(_cli_job.resume(config.home(), name, wait=not no_wait))


@job.command("delete")
def job_delete(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="All runs of this job.")
    ] = None,
    retain: Annotated[
        float | None,
        typer.Option(metavar="DAYS", help="All jobs that ended more than so many days ago."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also what other jobs need, so that they may be lost.")
    ] = False,
) -> None:
    """Take jobs that have ended out of the database and the storage, for good.

    \b
    Examples:
      regrow job delete nightly
      regrow job delete --retain 30
    """
    from regrow import _cli_job, config

    if (name is None) == (retain is None):
        raise typer.BadParameter("give either NAME or --retain", param_hint="delete")
    if name is not None:
        _cli_job.delete(config.home(), name, force=force)
    elif retain is not None:
        _cli_job.delete_old(config.home(), retain, force=force)


@chaos.callback()
def under_faults() -> None:
    """Run clusters under faults, and check that nothing is lost, doubled or stuck."""


@chaos.command()
def simulate(
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="How many seeds.")] = 1000,
    start: Annotated[int, typer.Option(metavar="N", min=0, help="The first of them.")] = 0,
    seed: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Replay this one, with its trace.")
    ] = None,
    mutant: Annotated[
        str, typer.Option(metavar="NAME", help="Put this bug in, and stop where it is found.")
    ] = "",
    jobs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes; by default one per core.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Nodes, up to 1,000 and more; by default 1 to 5."),
    ] = None,
    faults: Annotated[
        str | None,
        typer.Option(metavar="KINDS", help="These kinds of faults, and no others: drain,log_break"),
    ] = None,
    shrink: Annotated[
        bool | None,
        typer.Option(help="Make failing seeds small. By default, but not of --seed."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Replay a seed that was made small.")
    ] = None,
) -> None:
    """Simulate clusters: their real cores in virtual time, on a simulated network and database.

    Each seed draws a cluster, programs and faults; the same seed gives the same trace. The exit
    status is 1 if a seed failed, or a kind of fault never struck in 1,000 seeds. Failing seeds are
    made small, and told with the command that replays them.

    \b
    Examples:
      regrow chaos simulate --seeds 10000
      regrow chaos simulate --seed 42
      regrow chaos simulate --mutant fencing-off
      regrow chaos simulate --nodes 1000 --seeds 1
    """
    from regrow import _cli_chaos

    if replay is not None:
        raise typer.Exit(_cli_chaos.replay_file(replay))
    scale = _cli_chaos.scale_of(nodes, faults)
    mutant = _cli_chaos.known_mutant(mutant)
    if seed is not None:
        raise typer.Exit(_cli_chaos.one_seed(seed, mutant, scale, shrink is True))
    which = range(start, start + seeds)
    raise typer.Exit(_cli_chaos.simulate(which, mutant, jobs, scale, shrink is not False))


class _WithProgram(typer.core.TyperCommand):
    """A command after whose options `--` may follow with another program's command line."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Keep that line, untouched, for the function."""
        if "--" in args:
            place = args.index("--")
            ctx.obj = args[place + 1 :]
            args = args[:place]
        return super().parse_args(ctx, args)


@chaos.command("run", cls=_WithProgram)
def chaos_run(
    context: typer.Context,
    scenarios: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SCENARIO...]", help="Names of `regrow chaos scenarios`, or files."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All scenarios that come with regrow.")
    ] = False,
    seed: Annotated[
        int, typer.Option(metavar="N", help="What is drawn at random follows from it.")
    ] = 0,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="Run each with so many seeds, from --seed on.")
    ] = 1,
    duration: Annotated[
        float | None,
        typer.Option(min=0.1, metavar="S", help="Faults strike for so many seconds."),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Nodes of the cluster.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep reports, history and logs there.")
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(min=0, metavar="MIN", help="Begin no further run after so many minutes."),
    ] = None,
    until_fired: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Go on until each fault has fired so often."),
    ] = None,
    kill: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT",
            help="For a program: worker, node (the default), gcs, postgres, driver, everything, or "
            "any nemesis; may be given several times.",
        ),
    ] = None,
    every: Annotated[
        float | None, typer.Option(metavar="S", help="For a program: about how often (3).")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="For a program: a file or folder that it makes, which is compared; by default "
            "those of its arguments that it wrote, else what it printed.",
        ),
    ] = None,
    checker: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="For a program: compares {expected} with {actual}; exit status 0 if they agree.",
        ),
    ] = None,
) -> None:
    """Put a cluster of real processes under the faults of a scenario, and check what came of it.

    With `--` and a command, that is a program of your own: it is run without faults, then with, and
    what it makes is compared. It finds its cluster when it calls regrow.init(). The cluster is a
    private one on this machine. Exit status 1 if a check failed.

    \b
    Examples:
      regrow chaos run node_crash
      regrow chaos run counters --seed 7 --duration 60 --nodes 4 --report out
      regrow chaos run ./my_scenario.toml --seeds 5
      regrow chaos run --kill node --every 3 -- python my_pipeline.py --out result.parquet
    """
    command: list[str] | None = context.obj
    for_programs = [kill, every, output, checker]
    if command is None and any(option is not None for option in for_programs):
        raise typer.BadParameter("--kill, --every, --output and --checker are for a program")
    if command is not None and (not command or scenarios or everything or limit or until_fired):
        raise typer.BadParameter("a program after -- is in place of scenarios, --all, --limit")
    if command is None and bool(scenarios) == everything:
        raise typer.BadParameter("name scenarios, or give --all, or -- and a program")
    from regrow import _cli_chaos_run as chaos_runs

    if command is not None:
        from regrow.chaos.program import Program

        wanted = Program(
            command, tuple(kill or ["node"]), 3.0 if every is None else every, nodes or 3, duration,
            output or [], checker or "",
        )  # fmt: skip
        raise typer.Exit(chaos_runs.run_program(wanted, seed, seeds, report))
    names = scenarios or chaos_runs.names()
    plan = chaos_runs.Plan(names, seed, seeds, duration, nodes, report, limit, until_fired)
    raise typer.Exit(chaos_runs.run_scenarios(plan))


@chaos.command("scenarios")
def chaos_scenarios() -> None:
    """List the scenarios that come with regrow.

    \b
    Example:
      regrow chaos scenarios
    """
    from regrow import _cli_chaos_run

    _cli_chaos_run.scenarios()


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
