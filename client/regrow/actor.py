"""What Ray's users import from ``ray.actor``."""

from __future__ import annotations

from regrow._actor import ActorClass, ActorHandle, ActorMethod, exit_actor

__all__ = ["ActorClass", "ActorHandle", "ActorMethod", "exit_actor"]
