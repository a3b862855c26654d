"""``regrow chaos``: its words and options; what a command does is in the ``_cli_chaos`` modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

chaos = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
