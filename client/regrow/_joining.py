"""Becoming a driver of a cluster whose nodes may die just then. Decides when to try again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from regrow._bootstrap import Session
from regrow._driver import Driver
from regrow.exceptions import ClusterConnectionError

_RETRY_INTERVAL_S: Final = 0.05


def join(
    attach: Callable[[], Session], connect: Callable[[Session], Driver], patience_s: float
) -> tuple[Session, Driver]:
    """A session, and the driver that connects to its node.

    A node that accepted a moment ago may die, or begin its next incarnation, before it answers: for
    ``patience_s`` another is looked for. What a node answers is not asked again.
    """
    deadline = time.monotonic() + patience_s
    while True:
        session = attach()
        try:
            return session, connect(session)
        except ClusterConnectionError as error:
            session.close()
            # Only what was read from the socket has a cause; a refusal is its own.
            gone = isinstance(error.__cause__, OSError)
            if not gone or session.started or time.monotonic() > deadline:
                raise
        except BaseException:
            session.close()
            raise
        time.sleep(_RETRY_INTERVAL_S)
