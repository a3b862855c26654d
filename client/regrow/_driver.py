"""The driver's client: outlives its node, and prints what workers print."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from regrow._client import Client
from regrow._context import Running, driver_task
from regrow._link import Connection, Message, refusal
from regrow._memory import Memory
from regrow._output import print_lines
from regrow._requests import Room
from regrow._resuming import Changes, runtime
from regrow.exceptions import (
    ClusterConnectionError,
    CodeChangedError,
    JobAlreadyRunningError,
    RayError,
)
from regrow.messages import (
    PROTOCOL_VERSION,
    Bye,
    Hello,
    Location,
    Printed,
    Refused,
    ReplayDifference,
    Seal,
    SystemFailure,
    encode,
)
from regrow.objectstore.layout import digest
from regrow.wire import frame

logger = logging.getLogger("regrow")

_RETRY_INTERVAL_S: Final = 0.05


class Driver(Client):
    """The client of a driver.

    ``local_sockets`` lists the nodes of this machine that accept; for ``reconnect_timeout_s`` after
    its own died one of them is looked for. It raises ClusterConnectionError if there will be none,
    because the cluster was stopped.
    """

    def __init__(
        self, path: str, token: str, local_sockets: Callable[[], list[str]], *,
        durability: str, namespace: str, log_to_driver: bool, reconnect_timeout_s: float,
        job: str = "", takeover: bool = False, on_changed_code: str = "error",
        detached: bool = False, entrypoint: str = "",
    ) -> None:  # fmt: skip
        self._token = token
        self._entrypoint = entrypoint or " ".join(sys.argv) or sys.executable
        self._durability = durability
        self._local_sockets = local_sockets
        self._reconnect_timeout_s = reconnect_timeout_s
        self.job_name, self._takeover, self._detached = job, takeover, detached
        self._on_changed_code = on_changed_code
        self.number = 0
        #: Whether the control store, when it was asked again, did not give it the job any more.
        self.refused = False
        connection = Connection(path, self._hello(0))
        super().__init__(connection, "driver", durability)
        self.token = token
        welcome = connection.welcome
        self.job, self.number = welcome.job, welcome.driver
        task = driver_task(self.job, welcome.job_root, namespace, welcome.driver)
        self.running = Running(task)
        task.changes = Changes(job, welcome.versions, on_changed_code)
        try:
            task.changes.check_runtime(welcome.runtime)
        except CodeChangedError:
            connection.socket.sendall(frame(encode(Bye(failed=True))))
            connection.shut_down()
            raise
        if welcome.driver > 1:
            self._epoch = b"\0driver %d" % welcome.driver
        self._log_to_driver = log_to_driver
        #: Large puts of ours: the node that dies takes them along, but not what is mapped here.
        self._puts: dict[bytes, tuple[Seal, Location]] = {}
        self._puts_held = 0
        self._lost_puts: dict[bytes, tuple[Seal, Location]] = {}
        self._helpers: list[threading.Thread] = []
        self.on(Printed, self._print)
        self.on(ReplayDifference, _warn)
        self.on(Refused, self._refuse)
        self.link.start()

    def _hello(self, job: int) -> Hello:
        return Hello(
            PROTOCOL_VERSION, self._token, "driver", os.getpid(), job, self._durability,
            self._entrypoint,
            self.job_name, self._takeover, self.number, runtime(),
            self._detached, self._on_changed_code,
        )  # fmt: skip

    def _print(self, printed: Printed) -> None:
        if self._log_to_driver:
            print_lines(printed, self.welcome.node_id)

    def _refuse(self, refused: Refused) -> None:
        """A control store that leads anew may know that the job has ended, or has been taken."""
        self.refused = True
        self.give_up(refusal(refused))

    # --- another node -----------------------------------------------------------------------------

    def disconnected(self) -> bool:
        """Look for a node on this machine; on the reading thread."""
        if self.refused:
            return False
        deadline = time.monotonic() + self._reconnect_timeout_s
        tried = ""
        while not self.link.closed:
            try:
                sockets = self._local_sockets()
            except ClusterConnectionError as stopped:
                self.give_up(stopped)
                return False
            for path in dict.fromkeys([*sockets, self.link.path]):
                try:
                    self._move_to(path)
                except JobAlreadyRunningError as fenced:
                    self.give_up(fenced)
                    return False
                except RayError as error:
                    tried = str(error)
                else:
                    return True
            if time.monotonic() > deadline:
                self.give_up(
                    ClusterConnectionError(
                        f"the node of this driver died, and no other was found on this machine "
                        f"within {self._reconnect_timeout_s:g} s (the last attempt: {tried}). "
                        f"Results that were not fetched are in the log; see `regrow list tasks`."
                    )
                )
                return False
            time.sleep(_RETRY_INTERVAL_S)
        return False

    def _move_to(self, path: str) -> None:
        connection = Connection(path, self._hello(self.job))
        try:
            memory = Memory.connect(connection.welcome.arena_path, self._on_news)
        except BaseException:
            connection.socket.close()
            raise
        old, self.memory = self.memory, memory
        self.welcome = connection.welcome
        unknown = {seal.object_id for seal in self.link.attach(connection, self.declare)}
        lost, self._lost_puts = self._lost_puts, {}
        thread = threading.Thread(
            target=self._put_again, args=(lost, unknown, old), name="regrow-put-again"
        )
        self._helpers.append(thread)
        thread.start()

    # --- large puts outlive the node's memory -----------------------------------------------------

    def sealed(self, put: Seal, room: Room) -> None:
        if len(self._puts) > 2 * self._puts_held + 64:
            held = {oid: what for oid, what in self._puts.items() if self.refs.is_held(oid)}
            self._puts, self._puts_held = held, len(held)
        self._puts[put.object_id] = (put, room.location)

    def declare(self) -> tuple[list[Message], list[Message]]:
        self._lost_puts, self._puts = self._puts, {}
        return super().declare()

    def _put_again(
        self, lost: dict[bytes, tuple[Seal, Location]], unknown: set[bytes], old: Memory
    ) -> None:
        """Write again what the dead node held in its memory, which is still mapped here.

        What it has spilled meanwhile, or given to others, does not have the digest any more: it may
        be in storage, but not if the log does not even know it (``unknown``).
        """
        for oid, (put, location) in lost.items():
            if oid in self.storing or not self.refs.is_held(oid):
                continue
            data = old.bytes_at(location)
            intact = data is not None and digest(data) == put.digest
            try:
                if intact and data is not None:
                    self.put_large(oid, put.size, _copier(data, put.digest), _always(put))
                    continue
            except RayError as error:
                logger.warning("the put %s is lost with its node: %s", oid.hex(), error)
            if oid in unknown:
                text = f"{put.size} bytes put by this driver were lost with its node"
                self.refs.fail(oid, SystemFailure("object_lost", text))
        old.close()  # what is still viewed stays mapped

    def close(self, last: Message | None) -> None:
        super().close(last)
        for thread in self._helpers:
            thread.join()

    def abandon(self) -> None:
        """In a forked child: this driver is the parent's."""
        self.link.abandon()


def _copier(data: memoryview, known_digest: bytes) -> Callable[[memoryview], bytes]:
    def write(place: memoryview) -> bytes:
        place[:] = data
        return known_digest

    return write


def _always(put: Seal) -> Callable[[bytes], Seal]:
    return lambda _: put


def _warn(difference: ReplayDifference) -> None:
    logger.warning(
        "%s made another result when it was run again (object %s): it is not deterministic",
        difference.name,
        difference.object_id.hex(),
    )
