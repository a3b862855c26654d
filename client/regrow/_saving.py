"""Saving the state of an actor that restarts, between its calls, and loading it.

Decides when a state is due and what it is: the instance as it pickles, or what its class makes of
it with ``save_checkpoint()`` and takes back with ``load_checkpoint(state)``.  What becomes of a
saved state is its node's business (``regrow.scheduler.checkpoints``).
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from regrow import failpoints
from regrow._context import Task
from regrow._refs import ObjectRef
from regrow.messages import Checkpoint

if TYPE_CHECKING:
    from regrow._client import Client


def saves_itself(cls: type) -> bool:
    """Whether the class has both methods."""
    return hasattr(cls, "save_checkpoint") and hasattr(cls, "load_checkpoint")


class StateSaver:
    """Of the actor of this process. ``every`` calls (0: never) and ``interval_s`` seconds (0)."""

    def __init__(self, client: Client, job: int, every: int, interval_s: float) -> None:
        self._client = client
        self._job = job
        self._every = every
        self._interval_s = interval_s
        self._calls = 0
        self._saved_at = time.monotonic()
        #: The newest, until there is another: its node takes hold of it meanwhile.
        self._ref: ObjectRef[Any] | None = None
        self._failed = False
        #: Somebody asked for it.
        self.asked = False
        #: Each result is committed with the state after it.
        self.exact = every == 1

    def count(self) -> bool:
        """A call has ended. Whether the state is to be saved now."""
        self._calls += 1
        if self.asked or (self._every and self._calls >= self._every):
            return True
        return bool(self._interval_s) and time.monotonic() - self._saved_at >= self._interval_s

    def save(self, actor: Any) -> None:
        """Between two calls. A state that cannot be saved is told of, once; the actor goes on."""
        self._calls, self.asked = 0, False
        self._saved_at = time.monotonic()
        client = self._client
        # Nobody ever makes it again, so its id need not be found again.
        task = Task(os.urandom(16), self._job, client.welcome.job_root, "checkpoint")
        client.running.enter(task)
        try:
            custom = saves_itself(type(actor))
            state = actor.save_checkpoint() if custom else actor
            ref = client.put(state)
        except Exception as error:  # whatever pickling the user's state raises
            if not self._failed:
                self._failed = True
                print(
                    f"the state of {type(actor).__name__} could not be saved: "
                    f"{type(error).__name__}: {error}. Give the class save_checkpoint() and "
                    "load_checkpoint(state). Until then it restarts from its first call.",
                    file=sys.stderr,
                )
            return
        finally:
            client.running.leave(task)
        if failpoints.ON:
            failpoints.crash_point("worker.saving")
        client.link.post(Checkpoint(ref._id, custom, self.exact))
        self._ref = ref
