"""A network of its own for each node: namespaces of the kernel, joined by a bridge. Needs root.

Makes and removes them, starts processes inside, and cuts ways between them. Each node has an
address of its own; the control store and the first node are at the bridge's, outside. A way is cut
by giving the sender a wrong link address of the receiver: packets go nowhere, and nobody is told,
as with a broken switch. So a way has a direction.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

#: The addresses are of RFC 2544 (benchmarks of devices), in which no host of anybody is.
PREFIX: Final = "198.18"
NOWHERE: Final = "02:00:00:00:de:ad"
CLONE_NEWNET: Final = 0x40000000


class NamespacesUnavailableError(RuntimeError):
    """Namespaces of the network cannot be made here; the message says why."""


def why_not() -> str:
    """Why namespaces cannot be used here; "" if they can, as far as one can see."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the command ip (Debian: iproute2)"
    return ""


class Network:
    """See the module. ``close`` removes all of it."""

    def __init__(self) -> None:
        reason = why_not()
        if reason:
            raise NamespacesUnavailableError(reason)
        self._name = f"rg{secrets.token_hex(3)}"
        self._net = f"{PREFIX}.{secrets.randbelow(254) + 1}"
        self._count = 1
        #: Namespaces by the addresses in them; "" is the machine's own.
        self._names: dict[str, str] = {}
        self._cut: set[tuple[str, str]] = set()
        self.bridge = f"{self._net}.1"
        try:
            _ip("link", "add", self._name, "type", "bridge")
            _ip("addr", "add", f"{self.bridge}/24", "dev", self._name)
            _ip("link", "set", self._name, "up")
        except NamespacesUnavailableError:
            self.close()
            raise
        self._names[self.bridge] = ""

    def add(self) -> str:
        """One more namespace; its address."""
        self._count += 1
        number = self._count
        name, address = f"{self._name}-{number}", f"{self._net}.{number}"
        _ip("netns", "add", name)
        self._names[address] = name
        outside, inside = f"{self._name}o{number}", f"{self._name}i{number}"
        _ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _ip("link", "set", outside, "master", self._name, "up")
        _ip("addr", "add", f"{address}/24", "dev", inside, namespace=name)
        _ip("link", "set", inside, "up", namespace=name)
        _ip("link", "set", "lo", "up", namespace=name)
        return address

    @contextlib.contextmanager
    def inside(self, address: str) -> Iterator[None]:
        """Processes that this thread starts meanwhile are in the namespace with this address."""
        name = self._names[address]
        if not name:
            yield
            return
        here = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        there = os.open(Path("/var/run/netns") / name, os.O_RDONLY)
        try:
            _enter(there)
            yield
        finally:
            _enter(here)
            os.close(there)
            os.close(here)

    def cut(self, source: str, target: str) -> None:
        """Nothing that is sent from one address to the other arrives."""
        neighbour = [target, "lladdr", NOWHERE, "nud", "permanent", "dev", self._device(source)]
        _ip("neigh", "replace", *neighbour, namespace=self._names[source])
        self._cut.add((source, target))

    def mend(self) -> None:
        """Everything arrives again."""
        for source, target in self._cut:
            with contextlib.suppress(NamespacesUnavailableError):  # it is gone with its namespace
                where = self._names[source]
                _ip("neigh", "del", target, "dev", self._device(source), namespace=where)
        self._cut.clear()

    def _device(self, address: str) -> str:
        if not self._names[address]:
            return self._name
        return f"{self._name}i{address.rpartition('.')[2]}"

    def close(self) -> None:
        """Remove the namespaces and the bridge. What ran inside has to have ended."""
        for name in self._names.values():
            if name:
                with contextlib.suppress(NamespacesUnavailableError):
                    _ip("netns", "del", name)
        with contextlib.suppress(NamespacesUnavailableError):
            _ip("link", "del", self._name)
        self._names.clear()


def _ip(*words: str, namespace: str = "") -> None:
    command = ["ip", *(["-n", namespace] if namespace else []), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespacesUnavailableError(f"{' '.join(command)}: {done.stderr.strip()}")


def _enter(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        error = ctypes.get_errno()
        raise NamespacesUnavailableError(f"setns: {os.strerror(error)}")
