"""Detached actors: each is alone in a job of its own, which lasts as long as it lives.

The actor is made over a connection of its own, by the driver of that job, which leaves at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from regrow._client import Client
from regrow._refs import ObjectRef, ref_from_id
from regrow.exceptions import (
    ClusterConnectionError,
    JobAlreadyRunningError,
    RayError,
    RaySystemError,
)
from regrow.messages import Bye

#: Before the namespace and name of the actor: its job.
JOB: Final = "actor:"
#: How often one is tried to be made, if its job is lost meanwhile.
TRIES: Final = 3


class NameTakenError(ValueError):
    """A detached actor has the name, or somebody is just about to make one."""


def create_detached(
    client: Client, place: str, create: Callable[[Client], ObjectRef[Any]]
) -> ObjectRef[Any]:
    """``create(maker)`` in a job named by ``place``, "NAMESPACE/NAME"; the actor's object.

    Raises NameTakenError if an actor has the name, and what ``create`` raises.
    """
    for _ in range(TRIES - 1):
        try:
            return _create(client, place, create)
        except _JobLostError:
            continue
    return _create(client, place, create)


class _JobLostError(RaySystemError):
    """The control store died meanwhile, and its successor does not give the maker its job again:
    it has ended, or another has it."""


def _create(
    client: Client, place: str, create: Callable[[Client], ObjectRef[Any]]
) -> ObjectRef[Any]:
    from regrow._driver import Driver

    client.link.flush()  # what the arguments refer to comes first
    path = client.link.path

    def here() -> list[str]:
        if client.link.closed:
            raise ClusterConnectionError("the connection to the cluster ended")
        return [path]

    try:
        maker = Driver(
            path, client.token, here, durability="commit", namespace="", log_to_driver=False,
            reconnect_timeout_s=30.0, job=JOB + place, on_changed_code="keep", detached=True,
            entrypoint=f"detached actor {place}",
        )  # fmt: skip
    except JobAlreadyRunningError:
        namespace, _, name = place.partition("/")
        raise NameTakenError(
            f"the name {name!r} is taken in namespace {namespace!r} by a detached actor; choose "
            "another, or get that one with get_actor"
        ) from None
    try:
        created = create(maker)
        oid = created._id
    except RayError as error:
        maker.close(Bye(failed=True))
        if maker.refused:
            raise _JobLostError(f"detached actor {place}: {error}") from error
        raise
    except BaseException:
        maker.close(Bye(failed=True))
        raise
    ref = ref_from_id(oid)
    client.link.flush()
    maker.close(Bye())
    return ref


def runs_again(client: Client) -> bool:
    """Whether the code that runs here may have made what it makes before."""
    task = client.running.current()
    return task.driver > 1 or task.attempt > 1
