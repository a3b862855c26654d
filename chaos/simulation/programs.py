"""What drivers and tasks do in a simulation: random programs, and what must come of them.

A program is a list of steps. Each program of a seed has a number, its *site*, which is all that the
arguments of a spec say; so a call's result is known whatever its id. ``execute`` runs a program;
whoever drives that generator carries its steps out: ``golden_results`` in its head, one after the
other and without faults, simulated clients over the cluster.

The content of a value is 8 bytes that hash the site and everything the program read, then the ids
of the references that it contains. What depends on the order in which things get ready is never in
it.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from hashlib import blake2b
from typing import Any, Final

from msgspec import Struct

from regrow.messages import ACTOR_CALL, ACTOR_CREATION, OK, SYSTEM_ERROR, TASK, TASK_ERROR

HASH_SIZE: Final = 8
#: The content of an error that was caused by a failure of the system.
TAINTED: Final = b"\xff" * HASH_SIZE


def mix(*parts: bytes | int) -> bytes:
    """8 bytes that stand for all of ``parts``."""
    hasher = blake2b(digest_size=HASH_SIZE)
    for part in parts:
        hasher.update(part if isinstance(part, bytes) else part.to_bytes(8, "big"))
    return hasher.digest()


class ReturnPlan(Struct):
    """A return value: its size (small ones travel in messages), and the variables it refers to."""

    size: int
    refs: list[str]


class Program(Struct):
    """``steps`` are tuples: see ``execute``."""

    site: int
    kind: int
    steps: list[tuple[Any, ...]]
    returns: list[ReturnPlan]
    #: Variables of the parent: top-level arguments, and references inside the arguments.
    deps: list[str]
    nested: list[str]
    #: Names under which the program itself knows its nested references.
    nested_as: list[str]
    max_retries: int = -1
    resources: dict[str, int] | None = None
    strategy: str = ""
    raises: bool = False
    #: It may raise something that is worth another try.
    flaky: bool = False
    #: Of a call: the variable of the actor in the parent.
    actor: str = ""
    #: Of a call: its place among those of its parent on that actor.
    order: int = 0
    #: Of the creation or a call of an actor that restarts.
    recoverable: bool = False
    #: Of a creation: its state is saved after so many calls; 0: never.
    checkpoint_every: int = 0
    #: Nothing but a bug can make it fail.
    sure: bool = True
    #: Its own site, if it is a driver: an error does not end it.
    driver_site: int = -1


class Content(Struct):
    """What a value says. ``refs`` are handles, as of whoever carries the steps out."""

    status: int
    hash: bytes
    refs: list[Any]


class Result(Struct):
    """How a program ended."""

    status: int
    #: On an error one, else for each return value: (size, hash, handles).
    returns: list[tuple[int, bytes, list[Any]]]
    retry: bool = False


Step = tuple[Any, ...]


def execute(  # noqa: C901 - one arm per step
    program: Program, deps: list[Content], nested: list[Any], flake: bool
) -> Generator[Step, Any, Result]:
    """Runs a program. Yields what is to be done, is sent what came of it, returns the result.

    ("submit", site, [dep handles], [nested handles], actor handle) -> [handles]
    ("get", [handles]) -> [Content];  ("wait", [handles], count) -> [indices that are ready]
    ("put", number, size, hash, [handles]) -> handle;  ("drop", handle);  ("compute", ms)
    """
    env: dict[str, Any] = dict(zip(program.nested_as, nested, strict=True))
    seen: dict[str, Content] = {f"arg{i}": content for i, content in enumerate(deps)}
    state = mix(program.site, *(content.hash for content in deps))
    for step in program.steps:
        if program.site == program.driver_site and not _possible(step, env, seen):
            continue
        match step:
            case ("compute", ms):
                yield ("compute", ms)
            case ("submit", names, child):
                handles = yield (
                    "submit",
                    child.site,
                    [env[name] for name in child.deps],
                    [env[name] for name in child.nested],
                    env[child.actor] if child.actor else None,
                )
                env.update(zip(names, handles, strict=True))
            case ("get", names):
                contents = yield ("get", [env[name] for name in names])
                for name, content in zip(names, contents, strict=True):
                    if content.status != OK and program.driver_site >= 0:
                        continue
                    if content.status != OK:
                        bad = content.hash == TAINTED or content.status == SYSTEM_ERROR
                        return Result(
                            TASK_ERROR, [(8, TAINTED if bad else mix(program.site, 13), [])]
                        )
                    state = mix(state, content.hash)
                    seen[name] = content
            case ("bind", name, source, index):
                env[name] = seen[source].refs[index]
            case ("wait", names, count):
                yield ("wait", [env[name] for name in names], count)
            case ("each", names, children):
                # Submits one child per value, in the order in which the values get ready.
                left = list(range(len(names)))
                while left:
                    ready = yield ("wait", [env[names[i]] for i in left], 1)
                    chosen = [left[i] for i in ready]
                    for i in chosen:
                        left.remove(i)
                        out, child = children[i]
                        handles = yield ("submit", child.site, [env[names[i]]], [], None)
                        env.update(zip(out, handles, strict=True))
            case ("put", name, number, size, refs):
                digest = mix(program.site, number, 7)
                env[name] = yield ("put", number, size, digest, [env[ref] for ref in refs])
            case ("drop", name):
                yield ("drop", env.pop(name))
            case _:
                raise AssertionError(f"no such step: {step}")
    if flake:
        return Result(TASK_ERROR, [(8, TAINTED, [])], retry=True)
    if program.raises:
        return Result(TASK_ERROR, [(8, mix(program.site, 17), [])])
    return Result(
        OK,
        [
            (plan.size, mix(state, index), [env[ref] for ref in plan.refs])
            for index, plan in enumerate(program.returns)
        ],
    )


def _possible(step: Step, env: dict[str, Any], seen: dict[str, Content]) -> bool:
    """Whether a driver has what the step needs: values that are errors refer to nothing."""
    match step:
        case ("submit", _, child):
            needed = [*child.deps, *child.nested, *([child.actor] if child.actor else [])]
        case ("get" | "each", names, *_) | ("wait", names, _):
            needed = names
        case ("bind", _, source, _):
            return source in seen
        case ("put", _, _, _, refs):
            needed = refs
        case ("drop", name):
            needed = [name]
        case _:
            return True
    return all(name in env for name in needed)


# --- golden results -------------------------------------------------------------------------------


class Golden(Struct):
    """What an object has to be, with what it refers to. ``sure``: no fault excuses an error."""

    status: int
    hash: bytes
    refs: list[Golden]
    sure: bool = True


class Evaluation:
    """Runs a seed's programs in its head: ``values[site]`` are the goldens of each return."""

    def __init__(self, programs: list[Program]) -> None:
        self._programs = programs
        #: Steps that programs made.
        self.operations = 0
        self.values: dict[int, list[Golden]] = {}
        #: What each call is given: (arguments, nested references).
        self.given: dict[int, tuple[list[Golden], list[Golden]]] = {}
        self.puts: dict[tuple[int, int], Golden] = {}

    def run(self, site: int, deps: list[Golden], nested: list[Golden]) -> list[Golden]:
        """The return values of a call, evaluating what it submits first."""
        self.given[site] = deps, nested
        program = self._programs[site]
        count = max(1, len(program.returns))
        bad = next((dep for dep in deps if dep.status != OK), None)
        sure = program.sure and all(given.sure for given in [*deps, *nested])
        if bad is not None:
            values = [Golden(bad.status, bad.hash, [], sure)] * count
        else:
            contents = [Content(dep.status, dep.hash, list(dep.refs)) for dep in deps]
            result, inner_sure = self._drive(program, contents, nested, sure)
            sure = sure and inner_sure
            if result.status == OK:
                values = [Golden(OK, h, refs, sure) for _, h, refs in result.returns]
                values = values or [Golden(OK, b"", [], sure)]
            else:
                values = [Golden(result.status, result.returns[0][1], [], sure)] * count
        self.values[site] = values
        return values

    def _drive(
        self, program: Program, deps: list[Content], nested: list[Golden], again: bool
    ) -> tuple[Result, bool]:
        """``again``: the program, too, can be run again."""
        running = execute(program, deps, nested, flake=False)
        answer: Any = None
        sure = True
        while True:
            try:
                step = running.send(answer)
            except StopIteration as stop:
                result: Result = stop.value
                return result, sure
            self.operations += 1
            answer = None
            match step:
                case ("submit", site, child_deps, child_nested, actor):
                    answer = self.run(site, child_deps, child_nested)
                    if actor is not None:
                        for value in answer:
                            value.sure = value.sure and actor.sure
                case ("get", handles):
                    answer = [Content(g.status, g.hash, list(g.refs)) for g in handles]
                    sure = sure and all(g.sure for g in handles)
                case ("wait", handles, count):
                    answer = list(range(count))
                case ("put", number, size, digest, refs):
                    # What a task put that then raised cannot be made again.
                    again = again and program.driver_site < 0 and not program.raises
                    put_sure = size <= SMALL or (again and sure)
                    answer = Golden(OK, digest, refs, put_sure)
                    self.puts[program.site, number] = answer


# --- generation -----------------------------------------------------------------------------------

SMALL: Final = 64
LARGE_MIN: Final = 10_000


class Profile(Struct):
    """How the programs of a seed look; drawn from the seed too."""

    #: Operations of drivers and tasks together, about.
    operations: int = 200
    depth: int = 3
    large: float = 0.3
    large_max: int = 120_000
    actors: int = 2
    #: Of the actors, those that restart.
    recoverable: float = 0.5
    raising: float = 0.03
    flaky: float = 0.05
    #: Of tasks that may not be run again for ever.
    limited: float = 0.2
    special: float = 0.1
    refs: float = 0.3
    compute_ms: float = 6.0


class _Var(Struct):
    """A variable of a program being made."""

    name: str
    returns: int = 1
    #: What its value refers to.
    inner: list[_Var] = []
    is_actor: bool = False
    recoverable: bool = False


class ProgramMaker:
    """Makes the programs of one driver."""

    def __init__(self, rng: random.Random, profile: Profile, programs: list[Program]) -> None:
        self._rng = rng
        self._profile = profile
        self._programs = programs
        self._names = 0
        self._puts = 0
        self.operations = 0

    def driver(self, operations: int) -> Program:
        """The driver's own program: it submits until there are enough operations."""
        rng = self._rng
        program = self._new(TASK)
        program.returns = []
        program.driver_site = program.site
        scope: list[_Var] = []
        actors: list[_Var] = []
        orders: dict[str, int] = {}
        until = self.operations + operations
        for _ in range(rng.randint(0, self._profile.actors)):
            actors.append(self._actor(program, scope))
        while self.operations < until:
            roll = rng.random()
            if roll < 0.50 or not scope:
                self._submit(program, scope, actors, 1)
            elif roll < 0.58 and actors:
                self._call(program, scope, rng.choice(actors), orders)
            elif roll < 0.66:
                self._put(program, scope)
            elif roll < 0.80:
                self._get(program, scope)
            elif roll < 0.84:
                self._wait(program, scope)
            elif roll < 0.94 and len(scope) > 3:
                self._drop(program, scope)
            elif roll < 0.97:
                self._each(program, scope, 1)
            else:
                self._compute(program)
        rng.shuffle(scope)
        program.steps += [("get", [var.name]) for var in scope]
        return program

    # pieces

    def _new(self, kind: int) -> Program:
        rng, profile = self._rng, self._profile
        program = Program(len(self._programs), kind, [], [ReturnPlan(8, [])], [], [], [])
        self._programs.append(program)
        if kind == TASK and rng.random() < profile.limited:
            program.max_retries = rng.choice([0, 1, 3])
        program.sure = kind == TASK and program.max_retries == -1
        if kind == TASK:
            roll = rng.random()
            if roll < profile.special:
                program.resources = {"special": 10_000}
            elif roll < profile.special + 0.1:
                program.resources = {"CPU": 5_000}
            elif roll < profile.special + 0.15:
                program.resources = {}
            if rng.random() < 0.1:
                program.strategy = "SPREAD"
        return program

    def _name(self) -> str:
        self._names += 1
        return f"v{self._names}"

    def _size(self) -> int:
        if self._rng.random() < self._profile.large:
            return self._rng.randint(LARGE_MIN, self._profile.large_max)
        return SMALL

    def _pick(self, scope: list[_Var], most: int) -> list[_Var]:
        values = [var for var in scope if not var.is_actor]
        if not values:
            return []
        # New ones are likelier: chains get deep.
        recent = values[-6:] if self._rng.random() < 0.7 else values
        count = min(self._rng.randint(0, most), len(recent))
        return self._rng.sample(recent, count)

    def _submit(self, parent: Program, scope: list[_Var], actors: list[_Var], depth: int) -> None:
        rng = self._rng
        self.operations += 1
        child = self._new(TASK)
        deps = self._pick(scope, 3)
        nested = self._pick(scope, 2) if rng.random() < 0.4 else []
        if actors and rng.random() < 0.15:
            nested = [*nested, rng.choice(actors)]
        outs = self._body(child, deps, nested, depth)
        names = [self._name() for _ in outs]
        for name, var in zip(names, outs, strict=True):
            scope.append(_Var(name, 1, var))
        parent.steps.append(("submit", names, child))
        if not names:  # a task without return values still has an object that says it ended
            parent.steps[-1] = ("submit", [self._name()], child)
        if rng.random() < 0.02 and depth == 1:
            again = [self._name() for _ in (names or [""])]
            parent.steps.append(("submit", again, child))

    def _body(
        self, child: Program, deps: list[_Var], nested: list[_Var], depth: int
    ) -> list[list[_Var]]:
        """Fills ``child``; returns, for each of its return values, what that refers to."""
        rng, profile = self._rng, self._profile
        child.deps = [var.name for var in deps]
        child.nested = [var.name for var in nested]
        own: list[_Var] = []
        actors: list[_Var] = []
        for var in nested:
            mine = _Var(self._name(), 1, var.inner, var.is_actor, var.recoverable)
            child.nested_as.append(mine.name)
            (actors if var.is_actor else own).append(mine)
        for number, var in enumerate(deps):
            for index, inner in enumerate(var.inner):
                if rng.random() < 0.6:
                    own.append(_Var(self._name(), 1, inner.inner))
                    child.steps.append(("bind", own[-1].name, f"arg{number}", index))
        child.raises = rng.random() < profile.raising
        child.flaky = child.max_retries == -1 and rng.random() < profile.flaky
        self._compute(child)
        if depth < profile.depth and rng.random() < 0.45 / depth:
            if child.resources and "special" in child.resources:
                child.resources = None  # who waits gives back CPUs only
            self._children(child, own, actors, depth)
        elif own and rng.random() < 0.5 and not (child.resources and "special" in child.resources):
            self._get(child, own)
        outs: list[list[_Var]] = []
        child.returns = []
        for _ in range(rng.choice([1, 1, 1, 1, 1, 2, 3])):
            refs = self._pick(own, 2) if rng.random() < profile.refs else []
            child.returns.append(ReturnPlan(self._size(), [var.name for var in refs]))
            outs.append([_Var("", 1, var.inner) for var in refs])
        return outs

    def _children(self, child: Program, own: list[_Var], actors: list[_Var], depth: int) -> None:
        rng = self._rng
        orders: dict[str, int] = {}
        for _ in range(rng.randint(1, 4)):
            roll = rng.random()
            if roll < 0.6 or not own:
                self._submit(child, own, actors, depth + 1)
            elif roll < 0.7:
                self._put(child, own)
            elif roll < 0.8 and actors:
                self._call(child, own, rng.choice(actors), orders)
            elif roll < 0.88:
                self._wait(child, own)
            elif roll < 0.94:
                self._each(child, own, depth + 1)
            else:
                self._get(child, own)
        if rng.random() < 0.7:
            self._get(child, own)
        if rng.random() < 0.3 and len(own) > 1:
            self._drop(child, own)

    def _each(self, parent: Program, scope: list[_Var], depth: int) -> None:
        names = [var.name for var in self._pick(scope, 4)]
        if len(names) < 2:
            return
        children = []
        for name in names:
            self.operations += 1
            child = self._new(TASK)
            child.deps = [name]
            self._compute(child)
            child.returns = [ReturnPlan(self._size(), [])]
            out = self._name()
            children.append(([out], child))
            scope.append(_Var(out))
        parent.steps.append(("each", names, children))

    def _actor(self, parent: Program, scope: list[_Var]) -> _Var:
        self.operations += 1
        child = self._new(ACTOR_CREATION)
        child.resources = {}
        child.max_retries = 0
        child.recoverable = self._rng.random() < self._profile.recoverable
        if child.recoverable:
            child.max_retries, child.sure = -1, True
            child.checkpoint_every = self._rng.choice([0, 1, 2, 5])
        deps = self._pick(scope, 1)
        child.deps = [var.name for var in deps]
        self._compute(child)
        name = self._name()
        parent.steps.append(("submit", [name], child))
        return _Var(name, is_actor=True, recoverable=child.recoverable)

    def _call(
        self, parent: Program, scope: list[_Var], actor: _Var, orders: dict[str, int]
    ) -> None:
        self.operations += 1
        child = self._new(ACTOR_CALL)
        child.recoverable = child.sure = actor.recoverable
        child.max_retries = -1 if actor.recoverable else 0
        child.resources = {}
        child.actor = actor.name
        child.order = orders[actor.name] = orders.get(actor.name, 0) + 1
        child.deps = [var.name for var in self._pick(scope, 2)]
        self._compute(child)
        child.returns = [ReturnPlan(self._size(), [])]
        name = self._name()
        parent.steps.append(("submit", [name], child))
        scope.append(_Var(name))

    def _put(self, parent: Program, scope: list[_Var]) -> None:
        self.operations += 1
        self._puts += 1
        refs = self._pick(scope, 1) if self._rng.random() < 0.3 else []
        name = self._name()
        parent.steps.append(("put", name, self._puts, self._size(), [r.name for r in refs]))
        scope.append(_Var(name, 1, [_Var("", 1, ref.inner) for ref in refs]))

    def _get(self, parent: Program, scope: list[_Var]) -> None:
        chosen = self._pick(scope, 3)
        if not chosen:
            return
        self.operations += 1
        parent.steps.append(("get", [var.name for var in chosen]))
        for var in chosen:
            for index, inner in enumerate(var.inner):
                if self._rng.random() < 0.4:
                    scope.append(_Var(self._name(), 1, inner.inner))
                    parent.steps.append(("bind", scope[-1].name, var.name, index))

    def _wait(self, parent: Program, scope: list[_Var]) -> None:
        chosen = self._pick(scope, 4)
        if chosen:
            self.operations += 1
            count = self._rng.randint(1, len(chosen))
            parent.steps.append(("wait", [var.name for var in chosen], count))

    def _drop(self, parent: Program, scope: list[_Var]) -> None:
        self.operations += 1
        var = scope.pop(self._rng.randrange(len(scope)))
        parent.steps.append(("drop", var.name))

    def _compute(self, parent: Program) -> None:
        if self._rng.random() < 0.7:
            parent.steps.append(("compute", self._rng.expovariate(1 / self._profile.compute_ms)))
