"""What a nemesis is: one kind of fault, which it injects and heals.

It acts on the stage only and decides whom it hits, by the random source that it is given; when it
strikes is the harness's business. An injection that found nothing to hit has not fired.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

import msgspec

from regrow.chaos.scenario import ScenarioError
from regrow.chaos.stage import Stage


class NotYetError(RuntimeError):
    """What a nemesis broke cannot be mended as long as another fault lasts; it is tried again."""


class Nemesis:
    """The base. One instance serves one entry of a scenario."""

    #: As scenarios name it; the simulator's faults of this name do the same.
    name: ClassVar[str]
    #: Whether the driver's death is among what it brings about.
    kills_driver: ClassVar[bool] = False
    #: Whether Postgres has to be behind a proxy.
    needs_proxy: ClassVar[bool] = False

    #: Whether the cluster's home has to be on a disk of its own.
    needs_disk: ClassVar[bool] = False
    #: Whether each node has to have a network of its own.
    needs_namespaces: ClassVar[bool] = False

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """None, unless a subclass has some."""

    def __init__(self, options: dict[str, Any]) -> None:
        try:
            self.options: Any = msgspec.convert(options, self.Options)
        except msgspec.ValidationError as error:
            raise ScenarioError(f"nemesis {self.name}: options: {error}") from None
        #: When it struck, where that was later than its call.
        self.struck_s = 0.0

    def set_up(self, stage: Stage) -> None:
        """Before the cluster has anything to do."""

    def inject(self, stage: Stage, rng: random.Random) -> str:
        """Break something; what was hit, in a few words, or "" if there was nothing to hit."""
        raise NotImplementedError

    def heal(self, stage: Stage) -> None:
        """Mend what is broken, if anything is. Called again at the end of the faults.

        Raises NotYetError if it has to be called again later."""
