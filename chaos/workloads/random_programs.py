"""The simulator's own random programs, carried out through the API.

`regrow.chaos.simulation.programs` draws a program from a seed and computes what every object in it
has to be. The simulator runs it on simulated workers; here each of its steps is a call of the API:
submissions, nested and returned references, puts, waits, drops, actors, errors. Tasks draw the
programs themselves, so that nothing but the seed and a number (the *site*) is in their arguments.
"""

from __future__ import annotations

import os
import random
import time
from functools import lru_cache
from typing import Any, ClassVar

import msgspec

import regrow as ray
from regrow.chaos.history import Operation
from regrow.chaos.simulation.programs import (
    TAINTED,
    Content,
    Evaluation,
    Golden,
    Profile,
    Program,
    ProgramMaker,
    Result,
    execute,
)
from regrow.chaos.workloads.workload import OPERATION_S, Client, Workload
from regrow.exceptions import RayError, RayTaskError
from regrow.messages import ACTOR_CREATION, OK, SYSTEM_ERROR, TASK_ERROR

#: How often a flaky program raises something that is worth another try.
FLAKES = 0.3


class Made:
    """The value of an object: what it says, what it refers to, and bytes that make it large."""

    def __init__(self, content: bytes, refs: list[Any], size: int) -> None:
        self.content = content
        self.refs = refs
        self.filling = bytes(max(0, size - len(content)))


class ProgramRaisedError(Exception):
    """What a program raises."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.content = content


class FlakyError(Exception):
    """Worth another try."""


@lru_cache(maxsize=64)
def drawn(seed: str, operations: int) -> tuple[list[Program], Evaluation]:
    """The programs of a seed, and what must come of them. The driver's is the first."""
    rng = random.Random(seed)
    profile = Profile(
        large=rng.choice([0.0, 0.2, 0.6]),
        actors=rng.choice([0, 1, 2]),
        depth=rng.choice([1, 2, 3]),
        refs=rng.choice([0.0, 0.3, 0.6]),
        compute_ms=rng.choice([0.5, 5.0]),
    )
    programs: list[Program] = []
    driver = ProgramMaker(rng, profile, programs).driver(operations)
    golden = Evaluation(programs)
    golden.run(driver.site, [], [])
    return programs, golden


class Handle:
    """A reference or an actor, with what it has to be."""

    def __init__(self, thing: Any, golden: Golden) -> None:
        self.thing = thing
        self.golden = golden


class Runner:
    """Carries out the steps of one program. ``client`` records for drivers; None in tasks."""

    def __init__(self, seed: str, operations: int, client: Client | None) -> None:
        self._seed = seed
        self._operations = operations
        self._client = client
        self.programs, self._golden = drawn(seed, operations)
        #: What differed from what had to be.
        self.wrong: list[str] = []
        self.read = 0
        self._puts: dict[int, int] = {}

    def run(self, site: int, deps: list[Made], nested: list[Any]) -> Result:
        """Run one program to its end."""
        program = self.programs[site]
        given, given_nested = self._golden.given[site]
        contents = [
            Content(OK, dep.content, _handles(dep.refs, golden))
            for dep, golden in zip(deps, given, strict=True)
        ]
        handles = [Handle(ref, golden) for ref, golden in zip(nested, given_nested, strict=True)]
        flake = program.flaky and int.from_bytes(os.urandom(2), "big") < FLAKES * 65536
        running = execute(program, contents, handles, flake)
        answer: Any = None
        while True:
            try:
                step = running.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result
            answer = self._step(site, step)

    def _step(self, site: int, step: tuple[Any, ...]) -> Any:
        match step:
            case ("compute", ms):
                time.sleep(ms / 1000)
            case ("submit", child, deps, nested, actor):
                return self._submit(child, deps, nested, actor)
            case ("get", handles):
                return [self._content(handle) for handle in handles]
            case ("wait", handles, count):
                refs = [handle.thing for handle in handles]
                different = list(dict.fromkeys(refs))  # two names may stand for one object
                wanted = min(count, len(different))
                ready, _ = ray.wait(different, num_returns=wanted, timeout=OPERATION_S)
                return [index for index, ref in enumerate(refs) if ref in ready]
            case ("put", number, size, digest, handles):
                ref = ray.put(Made(digest, [handle.thing for handle in handles], size))
                return Handle(ref, self._golden.puts[site, number])
            case ("drop", handle):
                handle.thing = None
            case _:
                raise AssertionError(f"no such step: {step}")
        return None

    def _submit(
        self, site: int, deps: list[Handle], nested: list[Handle], actor: Handle | None
    ) -> list[Handle]:
        program = self.programs[site]
        arguments = [
            self._seed, self._operations, site, [handle.thing for handle in nested],
            *(handle.thing for handle in deps),
        ]  # fmt: skip
        count = max(1, len(program.returns))
        target: Any
        if program.kind == ACTOR_CREATION:
            target = ray.remote(
                max_restarts=-1 if program.recoverable else 0,
                checkpoint_every=program.checkpoint_every or None,
                num_cpus=0,
            )(ProgramActor)
        elif actor is not None:
            target = actor.thing.call.options(num_returns=count)
        else:
            cpus = 1.0 if program.resources is None else 0.5 if program.resources else 0.0
            target = ray.remote(
                num_returns=count,
                max_retries=program.max_retries,
                retry_exceptions=[FlakyError],
                num_cpus=cpus,
                scheduling_strategy=program.strategy or "DEFAULT",
            )(run_program)
        made = self._client.call(target, *arguments) if self._client else target.remote(*arguments)
        things = made if isinstance(made, list) else [made]
        return [
            Handle(thing, golden)
            for thing, golden in zip(things, self._golden.values[site], strict=True)
        ]

    def _content(self, handle: Handle) -> Content:
        """What a reference stands for, beside what it has to."""
        golden = handle.golden
        try:
            made: Made = ray.get(handle.thing, timeout=OPERATION_S)
            content = Content(OK, made.content, _handles(made.refs, golden))
        except RayTaskError as error:
            cause = error.cause
            told = cause.content if isinstance(cause, ProgramRaisedError) else TAINTED
            content = Content(TASK_ERROR, told, [])
        except RayError as error:
            content = Content(SYSTEM_ERROR, TAINTED, [])
            if golden.sure:
                self.wrong.append(f"{type(error).__name__}: {error}"[:300])
                return content
        self.read += 1
        excused = not golden.sure and (content.status == SYSTEM_ERROR or content.hash == TAINTED)
        if not excused and (content.status, content.hash) != (golden.status, golden.hash):
            self.wrong.append(
                f"status {content.status}, content {content.hash.hex()}; expected "
                f"{golden.status}, {golden.hash.hex()}"
            )
        return content


def _handles(refs: list[Any], golden: Golden) -> list[Handle]:
    return [Handle(ref, one) for ref, one in zip(refs, golden.refs, strict=True)]


def _returned(result: Result) -> Any:
    if result.retry:
        raise FlakyError
    if result.status != OK:
        raise ProgramRaisedError(result.returns[0][1])
    values = [
        Made(content, [handle.thing for handle in handles], size)
        for size, content, handles in result.returns
    ]
    return values[0] if len(values) == 1 else values or None


def run_program(seed: str, operations: int, site: int, nested: list[Any], *deps: Made) -> Any:
    """A task: the program of this number."""
    runner = Runner(seed, operations, None)
    result = runner.run(site, list(deps), nested)
    if runner.wrong:
        raise AssertionError(f"program {site} of {seed} read: " + "; ".join(runner.wrong))
    return _returned(result)


class ProgramActor:
    """An actor: it knows which calls have made its state."""

    def __init__(
        self, seed: str, operations: int, site: int, nested: list[Any], *deps: Made
    ) -> None:
        Runner(seed, operations, None).run(site, list(deps), nested)
        self.sites: list[int] = []

    def call(self, seed: str, operations: int, site: int, nested: list[Any], *deps: Made) -> Any:
        """A call: the program of this number."""
        self.sites.append(site)
        return run_program(seed, operations, site, nested, *deps)


class RandomProgramsWorkload(Workload):
    """See the module."""

    name: ClassVar[str] = "random_programs"

    class Parameters(msgspec.Struct, forbid_unknown_fields=True):
        """About so many operations in each program."""

        operations: int = 40

    def run_client(self, client: Client) -> None:
        """One program after the other; what was read and was not as it has to be."""
        for number in client.rounds():
            seed = f"{self.seed} {client.number} {number}"
            with client.operation("program", seed) as pending:
                runner = Runner(seed, self.parameters.operations, client)
                runner.run(0, [], [])
                pending.ok(runner.wrong)

    def expected(self, operation: Operation) -> Any:
        """Nothing was wrong."""
        return []
