"""The arena: one memfd per node, mapped by the daemon and by every client process.

The shell around the memory. It decides nothing about what lies where (``core`` does) and never
touches pages by itself: an arena that holds nothing costs no memory. A memfd has no name in any
file system, so a killed daemon leaves nothing behind, and a container's small ``/dev/shm`` does
not limit it.
"""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
from types import TracebackType
from typing import Self


class Arena:
    """A mapping of the arena's memory in this process. Owns its file descriptor ``fd``."""

    def __init__(self, fd: int, mapping: mmap.mmap, writable: bool) -> None:
        self.fd = fd
        self.capacity = len(mapping)
        self.writable = writable
        self._mapping: mmap.mmap | None = mapping
        self._whole: memoryview | None = memoryview(mapping)

    @classmethod
    def create(cls, capacity: int) -> Self:
        """Make an arena of ``capacity`` bytes (rounded up to whole pages), mapped writable.

        Its size is sealed, so no process can shrink it under another's views (SIGBUS).
        Raises OSError when the kernel refuses.
        """
        if capacity <= 0:
            raise ValueError(f"arena capacity must be positive, got {capacity}")
        capacity += -capacity % mmap.PAGESIZE
        fd = os.memfd_create("regrow-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, capacity)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            return cls.attach(fd, writable=True)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def attach(cls, fd: int, writable: bool) -> Self:
        """Map the arena behind ``fd`` and take ownership of ``fd``; its size is the capacity.

        A read-only mapping makes a stray write a SIGSEGV instead of a corrupted object.
        """
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        size = os.fstat(fd).st_size
        return cls(fd, mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=protection), writable)

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes at ``[offset, offset + size)``, writable if the mapping is. Not pinned."""
        if self._whole is None:
            raise ValueError("the arena is closed")
        if offset < 0 or size < 0 or offset + size > self.capacity:
            raise ValueError(f"[{offset}, {offset + size}) is not inside {self.capacity} bytes")
        return self._whole[offset : offset + size]

    def close(self) -> None:
        """Close the descriptor and unmap. Memory under living views is unmapped with the last."""
        if self._mapping is None:
            return
        mapping, self._mapping = self._mapping, None
        whole, self._whole = self._whole, None
        os.close(self.fd)
        try:
            if whole is not None:
                whole.release()
            mapping.close()
        except BufferError:
            # Views are alive. They hold the mapping, which unmaps itself when they are gone.
            return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def send_fd(sock: socket.socket, fd: int, message: bytes = b"\0") -> None:
    """Send ``fd`` with ``message`` (at least 1 byte) over a connected Unix socket.

    ``fd`` stays open here. Raises BlockingIOError on a full non-blocking socket, and
    ConnectionError where fewer bytes than the message went out.
    """
    assert message, "a descriptor needs at least one byte to travel with"
    sent = socket.send_fds(sock, [message], [fd])
    if sent != len(message):
        raise ConnectionError(f"sent {sent} of {len(message)} bytes with a descriptor")


def receive_fd(sock: socket.socket, max_message: int = 4096) -> tuple[bytes, int]:
    """Receive what ``send_fd`` sent: the message and a new descriptor, closed on exec.

    Reads at most ``max_message`` bytes. Raises ConnectionError on a closed connection or where
    the bytes came without exactly one descriptor.
    """
    # Not socket.recv_fds: it drops its flags, so the descriptor could leak into a child.
    room = socket.CMSG_LEN(array.array("i").itemsize)
    message, ancillary, _flags, _address = sock.recvmsg(max_message, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not message or len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise ConnectionError(f"expected one descriptor, got {len(fds)} with {len(message)} bytes")
    return message, fds[0]
