"""What a workload is: operations of clients, a last look at what came of them, and what to expect.

A workload runs in the driver, as a user's program would; its tasks and actors run in the cluster.
It is made from its parameters and the seed alone, so a driver that is run again submits the same.
What it expects is computed by plain Python from the same numbers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from regrow.chaos.history import Pending, Recorder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from regrow.chaos.history import Operation
    from regrow.chaos.stage import DriverSpec

#: No operation takes longer, or it counts as hung.
OPERATION_S: float = 90.0


class Client:
    """One thread of the driver: records what it does, and knows when to stop."""

    def __init__(self, recorder: Recorder, process: str, number: int, spec: DriverSpec) -> None:
        self._recorder = recorder
        self._ends_at_s = spec.ends_at_s
        self.process = process
        #: From 1; 0 sets the workload up and finishes it.
        self.number = number
        #: Whether the job has a name and is resumed when the driver was killed.
        self.resumes = bool(spec.job)

    def rounds(self) -> Iterator[int]:
        """0, 1, 2 and so on, until the time is up."""
        number = 0
        while time.monotonic() < self._ends_at_s:
            yield number
            number += 1

    def operation(self, name: str, value: Any = None) -> AbstractContextManager[Pending]:
        """See `Recorder.operation`."""
        return self._recorder.operation(self.process, name, value)

    def note(self, name: str, value: Any = None) -> None:
        """See `Recorder.note`."""
        self._recorder.note(name, value)


class Workload:
    """The base: subclasses have a struct of parameters, and the four methods below."""

    #: As scenarios name it.
    name: ClassVar[str]
    #: What looks at it besides the checkers that always look.
    checkers: ClassVar[tuple[str, ...]] = ("answers",)
    #: Of errors that it brings about itself.
    expected_errors: ClassVar[frozenset[str]] = frozenset()
    #: Whether its driver may be killed: it has a job of a name then, and is run again.
    resumable: ClassVar[bool] = True

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """None, unless a subclass has some."""

    def __init__(self, parameters: Any, seed: int, clients: int) -> None:
        self.parameters = parameters
        self.seed = seed
        self.clients = clients

    @classmethod
    def made_from(cls, parameters: dict[str, Any], seed: int, clients: int) -> Self:
        """A workload. Raises ScenarioError for parameters that it does not know."""
        return cls(cls.check_parameters(parameters), seed, clients)

    @classmethod
    def check_parameters(cls, parameters: dict[str, Any]) -> Any:
        """The parameters, with defaults. Raises ScenarioError."""
        from regrow.chaos.scenario import ScenarioError

        try:
            return msgspec.convert(parameters, cls.Parameters)
        except msgspec.ValidationError as error:
            raise ScenarioError(f"workload {cls.name}: parameters: {error}") from None

    def random(self, *numbers: int) -> random.Random:
        """A source for one client and round, the same whenever that runs."""
        return random.Random(f"{self.seed} {self.name} {numbers}")

    # What a subclass says

    def set_up(self, client: Client) -> None:
        """Before the clients begin."""

    def run_client(self, client: Client) -> None:
        """One client's operations, until its rounds are over."""
        raise NotImplementedError

    def finish(self, client: Client) -> None:
        """After all clients have ended and the faults have stopped: the last look."""

    def expected(self, operation: Operation) -> Any:
        """What an acknowledged operation has to have returned. Raises NotImplementedError where
        only the whole history tells; then a checker of the workload's own judges it."""
        raise NotImplementedError
