"""``regrow job``: its words and options; what a command does is in `regrow._cli_job`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON, with all columns.")]

job = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
