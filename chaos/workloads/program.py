"""A user's own program, as it is: it finds the cluster by REGROW_ADDRESS and is run to its end.

It is one operation, whose result is its exit status. Killed with its driver it is run again from
the beginning, and resumes if it names its job (`regrow.init(job=...)`).
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import ClassVar

import msgspec

from regrow.chaos.workloads.workload import Client, Workload


class ProgramWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "program"
    checkers: ClassVar[tuple[str, ...]] = ("program",)
    joins: ClassVar[bool] = False

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """What is run, and where what it makes is found."""

        command: list[str]
        #: Where it runs.
        directory: str = "."
        #: Files or folders that it makes, seen from there.
        outputs: list[str] = []
        #: Its standard output goes to this file.
        stdout: str = "/dev/null"
        #: The folder with the outputs of a run without faults; "": this is that run.
        expected: str = ""
        #: The folder to which its outputs are copied.
        kept: str = ""
        #: A command with ``{expected}`` and ``{actual}``: it ends with 0 if they mean the same.
        checker: str = ""

    def run_client(self, client: Client) -> None:
        """Once, by the first client."""
        if client.number != 1:
            return
        given = self.parameters
        with (
            client.operation("run", given.command) as pending,
            Path(given.stdout).open("wb") as stdout,
        ):
            done = subprocess.run(
                given.command, cwd=given.directory, stdin=subprocess.DEVNULL, stdout=stdout,
                check=False,
            )  # fmt: skip
            pending.ok(done.returncode)
