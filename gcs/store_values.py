"""What every store writes or answers in the same words, whatever it is made of."""

from __future__ import annotations

from typing import Final

from regrow.messages import SYSTEM_ERROR, SystemFailure, Value, encode

#: The status of a cancelled task in the log; elsewhere it counts as a SYSTEM_ERROR.
CANCELLED: Final = 4
#: Why a node's incarnation ended ...
CAME_BACK: Final = "it came back as a new incarnation"
LEFT: Final = "it stopped in good order"
#: Begins the reason of a node that is alive, and about to go.
DRAINING: Final = "draining: "
#: ... and why an actor did.
JOB_ENDED: Final = SystemFailure("actor_died", "the actor's job has ended")
NO_RESTART_LEFT: Final = SystemFailure(
    "actor_died", "the actor's process died, and max_restarts allows no other"
)
ACTOR_LOST: Final = SystemFailure("actor_died", "the actor died with its node")

#: Of an actor whose saved states were lost, all of them.
STATE_LOST: Final = SystemFailure(
    "actor_state_lost",
    "no saved state of the actor can be read, and the log has only those of its calls that came "
    "after them (it is trimmed behind the two newest): the actor cannot be brought back. Make it "
    "anew, and look after the storage of the cluster: regrow.events has a checkpoint_unreadable",
)

_CANCELLED: Final = encode(SystemFailure("cancelled", "the task was cancelled: its job ended"))


def cancelled_value(object_id: bytes) -> Value:
    """The value of an object of a cancelled task."""
    return Value(object_id, SYSTEM_ERROR, len(_CANCELLED), _CANCELLED)


def outward(status: int) -> int:
    """A status of the log as messages have it."""
    return SYSTEM_ERROR if status == CANCELLED else status


def constructor_raised(error: str) -> SystemFailure:
    """Why an actor is dead whose creation failed; ``error`` is the exception's type."""
    return SystemFailure("actor_died", f"the actor's constructor raised {error or 'an exception'}")
