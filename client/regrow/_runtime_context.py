"""``get_runtime_context()``: what the running code can learn of itself."""

from __future__ import annotations

import os

from regrow._actor import ActorHandle
from regrow._client import Client, current
from regrow.config import RESOURCE_UNIT
from regrow.ids import object_id


class RuntimeContext:
    """The surroundings of a driver, task or actor; under Ray's names. Ids are hexadecimal, but
    those of nodes and jobs are numbers."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def get_job_id(self) -> str:
        """The number of the job."""
        return str(self._client.running.current().job)

    def get_node_id(self) -> str:
        """The number of the node."""
        return str(self._client.welcome.node_id)

    def get_worker_id(self) -> str:
        """The number of the process."""
        return str(os.getpid())

    def get_task_id(self) -> str | None:
        """The task's id; None in a driver."""
        if self._client.role == "driver":
            return None
        return self._client.running.current().task_id.hex()

    def get_task_name(self) -> str | None:
        """The task's name; None in a driver."""
        return None if self._client.role == "driver" else self._client.running.current().name

    def get_task_function_name(self) -> str | None:
        """The same, as Ray calls it."""
        return self.get_task_name()

    def get_actor_id(self) -> str | None:
        """The actor's id; None outside of an actor."""
        return self._client.running.current().actor_id.hex() or None

    def get_actor_name(self) -> str | None:
        """The name that the actor was given, "" where it has none; None outside of an actor."""
        running = self._client.running
        return running.actor_name if running.current().actor_id else None

    @property
    def namespace(self) -> str:
        """Where names of actors are looked up by default."""
        return self._client.running.current().namespace

    @property
    def current_actor(self) -> ActorHandle[object]:
        """A handle of the actor that runs this. Raises RuntimeError outside of one."""
        task = self._client.running.current()
        if not task.actor_id:
            raise RuntimeError("This method is only available in an actor.")
        created = self._client.refs.borrowed(object_id(task.actor_id, 0))
        name = task.name.rpartition(".")[0]
        methods = self._client.running.actor_methods
        return ActorHandle(created, task.function_id, name, methods)

    @property
    def was_current_actor_reconstructed(self) -> bool:
        """Whether this actor was restarted; this version restarts none."""
        if self.get_actor_id() is None:
            raise RuntimeError("This method is only available in an actor.")
        return False

    def get_assigned_resources(self) -> dict[str, float]:
        """What the task or actor holds."""
        if self._client.role == "driver":
            raise RuntimeError("a driver holds no resources")
        resources = self._client.running.current().resources
        if resources is None:
            return {"CPU": 1.0}
        return {name: amount / RESOURCE_UNIT for name, amount in resources.items()}


def get_runtime_context() -> RuntimeContext:
    """The context of the calling code."""
    return RuntimeContext(current())
