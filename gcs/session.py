"""The wire between a node and the control store: one bidirectional gRPC stream of batches.

A gRPC message is a msgpack array of messages. Generic handlers, no generated code.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

# Neither end forks after it has started grpc.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import msgspec

from regrow.messages import FromStore, ToStore, encode

SERVICE: Final = "regrow.ControlStore"
SESSION: Final = "Session"
METHOD: Final = f"/{SERVICE}/{SESSION}"

#: A gRPC message is closed when it has so many bytes or messages.
BATCH_BYTES: Final = 1 << 20
BATCH_MESSAGES: Final = 10_000
MESSAGE_MAX: Final = 512 << 20

#: A silent end is noticed in about five seconds; a dead process at once, by its reset.
OPTIONS: Final[Sequence[tuple[str, int]]] = (
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 2_500),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
CLIENT_OPTIONS: Final = (
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS: Final = (
    *OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
)

to_store_batch: Final = msgspec.msgpack.Decoder(list[ToStore])
from_store_batch: Final = msgspec.msgpack.Decoder(list[FromStore])


def pack(bodies: Sequence[bytes]) -> bytes:
    """Encoded messages as one msgpack array."""
    return b"\xdd" + len(bodies).to_bytes(4, "big") + b"".join(bodies)


class Outbox:
    """Encoded messages on their way out, taken in batches."""

    def __init__(self) -> None:
        self._bodies: list[bytes] = []

    def __len__(self) -> int:
        return len(self._bodies)

    def add(self, body: bytes) -> None:
        self._bodies.append(body)

    def extend(self, other: Outbox) -> None:
        self._bodies += other._bodies

    def take(self) -> bytes:
        """The next batch; there must be one."""
        size = count = 0
        for body in self._bodies[:BATCH_MESSAGES]:
            size += len(body)
            count += 1
            if size >= BATCH_BYTES:
                break
        batch, self._bodies = self._bodies[:count], self._bodies[count:]
        return pack(batch)


__all__ = [
    "CLIENT_OPTIONS", "METHOD", "SERVER_OPTIONS", "SERVICE", "SESSION", "Outbox", "encode",
    "from_store_batch", "grpc", "pack", "to_store_batch",
]  # fmt: skip
