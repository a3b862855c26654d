"""The arena's shell: memory, descriptors, closing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from regrow.objectstore.arena import Arena, receive_fd, send_fd


def allocated_bytes(arena: Arena) -> int:
    return os.fstat(arena.fd).st_blocks * 512


def test_an_arena_costs_no_memory_before_it_is_written() -> None:
    with Arena.create(1 << 30) as arena:
        assert allocated_bytes(arena) == 0
        arena.view(0, 10)[:] = b"0123456789"
        assert 0 < allocated_bytes(arena) < 1 << 22


def test_capacity_is_rounded_up_to_pages_and_must_be_positive() -> None:
    with Arena.create(1) as arena:
        assert arena.capacity == os.sysconf("SC_PAGESIZE")
    with pytest.raises(ValueError, match="positive"):
        Arena.create(0)


def test_nobody_can_resize_the_arena_under_a_reader() -> None:
    with Arena.create(4096) as arena:
        for size in (0, 8192):
            with pytest.raises(PermissionError):
                os.ftruncate(arena.fd, size)


def test_what_one_mapping_writes_another_reads() -> None:
    with Arena.create(4096) as arena, Arena.attach(os.dup(arena.fd), writable=False) as reader:
        arena.view(100, 5)[:] = b"bytes"
        assert bytes(reader.view(100, 5)) == b"bytes"


def test_a_read_only_mapping_cannot_be_written() -> None:
    with Arena.create(4096) as arena, Arena.attach(os.dup(arena.fd), writable=False) as reader:
        view = reader.view(0, 10)
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 1


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, 4097), (4096, 1), (0, -1)])
def test_a_view_past_the_arena_is_refused(offset: int, size: int) -> None:
    with Arena.create(4096) as arena, pytest.raises(ValueError, match="not inside"):
        arena.view(offset, size)


def test_a_view_outlives_a_closed_arena() -> None:
    arena = Arena.create(4096)
    view = arena.view(0, 4)
    view[:] = b"live"
    arena.close()
    arena.close()
    assert bytes(view) == b"live"
    with pytest.raises(ValueError, match="closed"):
        arena.view(0, 4)


def test_closing_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        arena = Arena.create(4096)
        view = arena.view(0, 4)
        arena.close()
        del view
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_exits_with_views_prints_no_traceback() -> None:
    program = (
        "from regrow.objectstore.arena import Arena\n"
        "from regrow.objectstore.pins import pinned_view\n"
        "import numpy\n"
        "arena = Arena.create(4096)\n"
        "kept = arena.view(0, 10)\n"
        "array = numpy.frombuffer(pinned_view(arena, 0, 64, lambda: None), 'u1')\n"
        "arena.close()\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_a_descriptor_travels_over_a_socket_with_its_message() -> None:
    left, right = socket.socketpair()
    with left, right, Arena.create(4096) as arena:
        arena.view(0, 4)[:] = b"sent"
        send_fd(left, arena.fd, b"hello")
        message, fd = receive_fd(right)
        assert message == b"hello"
        assert not os.get_inheritable(fd), "a child process would keep the arena alive"
        with Arena.attach(fd, writable=True) as received:
            assert bytes(received.view(0, 4)) == b"sent"


def test_a_message_without_a_descriptor_is_an_error() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.sendall(b"no descriptor")
        with pytest.raises(ConnectionError):
            receive_fd(right)
        left.close()
        with pytest.raises(ConnectionError):
            receive_fd(right)


def test_an_arena_dies_with_its_last_process() -> None:
    """No name in any file system: nothing is left for anyone to clean up."""
    with Arena.create(4096) as arena:
        assert os.readlink(f"/proc/self/fd/{arena.fd}").startswith("/memfd:")
        assert os.fstat(arena.fd).st_nlink == 0
