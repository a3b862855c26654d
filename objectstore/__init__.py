"""The object store: large values in shared memory, read without copying.

One node has one *arena*, a memfd that the node daemon creates and every client process of the
node maps. The daemon decides which bytes of it belong to which object; clients write and read
those bytes themselves, so a value moves from one process to another without passing a socket.

A value's way through the modules:

1. ``serialization``  value -> pickle and out-of-band buffers, and the references inside it.
2. ``layout``         these as one run of bytes with a header; copied and digested in one pass.
3. ``core``           the node's decisions: where an object goes, what is spilled to make room,
                      who pins what. No I/O; ``extents`` is the allocator under it.
4. ``arena``          the memfd: creating, mapping, handing it over a Unix socket.
5. ``pins``           the client's read-only views, which say when the last of them has died.
6. ``spill``          copies on disk or in object storage; a corrupt copy is a lost copy.
7. ``transfer``       bytes between two nodes' arenas.

Small results (<= 8 KiB) use ``serialization`` and ``layout.to_bytes`` only and travel in messages.

Objects are keyed by (object id, attempt). This package knows bytes and processes; it knows no
messages, no database and no tasks. Nothing is imported here, so that a process pays only for the
modules it uses: none of them imports numpy or pyarrow before a value needs it.
"""
