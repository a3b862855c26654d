"""What a workload is: operations of clients, a last look at what came of them, and what to expect.

A workload runs in the driver, as a user's program would; its tasks and actors run in the cluster.
It is made from its parameters and the seed alone, so a driver that is run again submits the same.
What it expects is computed by plain Python from the same numbers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

import regrow as ray
from regrow.chaos.history import History, Pending, Recorder
from regrow.ids import is_put

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from regrow.chaos.history import Operation
    from regrow.chaos.stage import DriverSpec

#: No operation takes longer, or it counts as hung.
OPERATION_S: float = 90.0
#: Notes of the ids of tasks that a client has submitted, and of those whose result it has seen.
SUBMITTED, ACKNOWLEDGED = "submitted", "acknowledged"
#: A note by a task that it begins: its token.
RAN = "ran"
#: A note of a round that a client begins: [client, round].
ROUND = "round"


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
        #: Counts the drivers of the run.
        self.life = spec.life
        #: The file in which the run is recorded; tasks may append to it.
        self.history = Path(spec.history)

    def rounds(self) -> Iterator[int]:
        """0, 1, 2 and so on, until the time is up. A driver that was run again does at least the
        rounds that its earlier lives had begun: what they left unanswered gets its answer."""
        begun = self._rounds_begun() if self.life > 1 else 0
        number = 0
        while number < begun or time.monotonic() < self._ends_at_s:
            if self.resumes:
                self.note(ROUND, [self.number, number])
            yield number
            number += 1

    def _rounds_begun(self) -> int:
        notes = History.read(self.history).notes(ROUND)
        return max((line.value[1] + 1 for line in notes if line.value[0] == self.number), default=0)

    def operation(self, name: str, value: Any = None) -> AbstractContextManager[Pending]:
        """See `Recorder.operation`."""
        return self._recorder.operation(self.process, name, value)

    def operations(self, stack: ExitStack, name: str, values: list[Any]) -> list[Pending]:
        """Several that overlap: all begin now, in this order, and end with the stack."""
        return [stack.enter_context(self.operation(name, value)) for value in values]

    def note(self, name: str, value: Any = None) -> None:
        """See `Recorder.note`."""
        self._recorder.note(name, value)

    def call(self, target: Any, *arguments: Any) -> Any:
        """Submit a task, a call or an actor, and write its id down: `total_queue` looks for it."""
        made = target.remote(*arguments)
        first = made[0] if isinstance(made, list) else made
        task = first.task_id() if isinstance(first, ray.ObjectRef) else first._ray_actor_id
        self.note(SUBMITTED, task.hex())
        return made

    def get(self, refs: Any) -> Any:
        """The values; what has been seen is written down."""
        values = ray.get(refs, timeout=OPERATION_S)
        for ref in refs if isinstance(refs, list) else [refs]:
            if not is_put(ref.binary()):
                self.note(ACKNOWLEDGED, ref.task_id().hex())
        return values


class Workload:
    """The base: subclasses have a struct of parameters, and the four methods below."""

    #: As scenarios name it.
    name: ClassVar[str]
    #: What looks at it besides the checkers that always look.
    checkers: ClassVar[tuple[str, ...]] = ("answers",)
    #: Of errors that it brings about itself.
    expected_errors: ClassVar[frozenset[str]] = frozenset()
    #: Names of tasks that may make something else when they run again.
    nondeterministic: ClassVar[frozenset[str]] = frozenset()
    #: Of the objects that `linearizable` looks at.
    model: ClassVar[str] = ""
    #: Whether its driver joins the cluster before it begins.
    joins: ClassVar[bool] = True
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
