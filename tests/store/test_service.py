"""The control store as nodes meet it: over gRPC, on real Postgres."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import psycopg
import pytest

from regrow.gcs import operations as ops
from regrow.gcs.client import ControlStoreLink
from regrow.gcs.core_events import Settings
from regrow.gcs.operations import Append, Batch, Outcome, Submitted
from regrow.gcs.service import ControlStore
from regrow.gcs.session import METHOD, grpc, pack
from regrow.gcs.store import PostgresStore
from regrow.ids import CountedIds, object_id
from regrow.messages import (
    OK,
    PROTOCOL_VERSION,
    TASK,
    CloseJob,
    FromStore,
    FunctionDef,
    JobClosed,
    JobOpened,
    Leave,
    Locate,
    Locations,
    NodeDied,
    Nodes,
    NodeView,
    ObjectsHere,
    OpenJob,
    Reassigned,
    Rebuild,
    Register,
    Registered,
    RegisterRefused,
    Return,
    Stop,
    TaskHeader,
    TaskSpec,
    ToStore,
    Value,
    Whereabouts,
    encode,
    failure_decoder,
    header_decoder,
)
from tests.store.worlds import PostgresWorld

TOKEN = "the cluster's token"
TIMEOUT_S = 30.0
FUNCTION = FunctionDef(b"f" * 16, "step", b"pickled step")
M = TypeVar("M", bound=FromStore)


class Node:
    """A node as the control store sees it: a session, and a TCP port that answers probes."""

    def __init__(self, address: str, token: str = TOKEN) -> None:
        self.link = ControlStoreLink(address)
        self.heard: list[FromStore] = []
        self.ups = 0
        self._token = token
        self._news = asyncio.Event()
        self._run: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self.view = NodeView(0, 0, "127.0.0.1", 0, "", {"CPU": 40_000}, {}, 0, {}, True, False)

    async def join(self, node_id: int = 0) -> Registered:
        """Registers as a new node, or as a new incarnation."""
        self._server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1")
        port = self._server.sockets[0].getsockname()[1]
        self.view = NodeView(
            node_id, 0, "127.0.0.1", port, "", {"CPU": 40_000}, {"CPU": 40_000}, 0, {}, True, False
        )  # fmt: skip
        self._run = asyncio.ensure_future(self.link.run(self._hear, self._up, lambda: None))
        registered = await self.expect(Registered)
        self.view = NodeView(
            registered.node_id, registered.incarnation, "127.0.0.1", port, "", {"CPU": 40_000},
            {"CPU": 40_000}, 0, {}, True, False,
        )  # fmt: skip
        return registered

    @property
    def key(self) -> tuple[int, int]:
        return self.view.node_id, self.view.incarnation

    def _up(self) -> None:
        self.ups += 1
        self.link.send(Register(PROTOCOL_VERSION, self._token, self.view))

    def _hear(self, messages: list[FromStore]) -> None:
        self.heard += messages
        self._news.set()

    def send(self, *messages: ToStore) -> None:
        for message in messages:
            self.link.send(message)

    async def expect(self, kind: type[M], where: Callable[[M], bool] = lambda _: True) -> M:
        """The next message like this, which is then forgotten with all before it."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                for index, message in enumerate(self.heard):
                    if isinstance(message, kind) and where(message):
                        del self.heard[: index + 1]
                        return message
                self._news.clear()
                await self._news.wait()

    async def hang_up(self) -> None:
        """The session ends; the port still answers."""
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
            self._run = None

    async def die(self) -> None:
        """As if killed: port and session are gone."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None
        await self.hang_up()


class World:
    """A control store on a database, and its nodes."""

    def __init__(self, postgres: PostgresWorld, settings: Settings) -> None:
        self.postgres = postgres
        self.service = ControlStore(settings, TOKEN, postgres.store)
        self.address = ""
        self.nodes: list[Node] = []
        self._batches: dict[tuple[int, int], int] = {}

    async def join(self, node_id: int = 0) -> Node:
        """A node whose lease does not run out by itself: it appends too seldom to renew it."""
        node = Node(self.address)
        self.nodes.append(node)
        await node.join(node_id)
        self._keep_alive(node)
        return node

    def _keep_alive(self, node: Node) -> None:
        self.postgres.sql.execute(
            "UPDATE regrow.nodes SET lease_expires_at = 'infinity' WHERE node_id = %s",
            node.key[:1],
        )

    def append(self, node: Node, **records: list[object]) -> None:
        """A batch of this node's log."""
        number = self._batches[node.key] = self._batches.get(node.key, 0) + 1
        batch = Batch(**records)  # type: ignore[arg-type]
        result = self.postgres.append(Append(*node.key, number, batch))
        assert result.verdict == ops.APPLIED, result
        self._keep_alive(node)


def ids_of(job_root: bytes) -> Callable[[], bytes]:
    return CountedIds(job_root).next_id


def submitted(
    task_id: bytes,
    job: int,
    node: Node,
    needs: tuple[bytes, ...] = (),
    large: bool | None = None,
    max_retries: int = 3,
) -> Submitted:
    """A task that this node submitted and holds; ``large``: finished, with such a result."""
    fields: tuple[Any, ...] = (
        task_id, b"driver" + bytes(10), job, FUNCTION.function_id, "step", TASK, b"", list(needs),
        [], None, 1, max_retries, 0, "",
    )  # fmt: skip
    outcome = None
    if large is not None:
        returned = Return(100_000, b"d" * 16, None) if large else Return(1, b"e" * 16, b"x")
        outcome = Outcome(task_id, 1, OK, [returned])
    header = TaskHeader(*fields)
    spec = encode(TaskSpec(**msgspec.structs.asdict(header), args=b"arguments"))
    return Submitted(header, spec, node.key[0], node.key, 1, outcome)


@asynccontextmanager
async def control_store(postgres: PostgresWorld, **changes: object) -> AsyncIterator[World]:
    given: dict[str, Any] = {"lease_ttl_s": 2.0, **changes}
    settings = Settings(holder=f"test-{id(changes)}", storage="file:///nowhere", **given)
    world = World(postgres, settings)
    leading = asyncio.Event()
    world.service.on_leading = leading.set
    world.address = await world.service.start("127.0.0.1", 0)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await leading.wait()
        yield world
    finally:
        for node in world.nodes:
            await node.die()
        await world.service.close()
        world.service.core.check()


@pytest.fixture
def postgres(schema_url: str) -> Iterator[PostgresWorld]:
    world = PostgresWorld(schema_url)
    yield world
    world.close()


def run(test: Awaitable[None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(2 * TIMEOUT_S):
            await test

    asyncio.run(main())


def test_two_nodes_see_each_other_and_the_storage(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one, two = await world.join(), await world.join()
            assert (one.key, two.key) == ((1, 1), (2, 1))
            seen = await one.expect(Nodes, lambda m: len(m.nodes) == 2)
            assert [node.port for node in seen.nodes] == [one.view.port, two.view.port]

    run(test())


def test_a_silent_node_is_fenced_by_its_lease_and_its_tasks_reassigned(
    postgres: PostgresWorld,
) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one, two = await world.join(), await world.join()
            one.send(OpenJob(7, 0, "test", 1))
            job = await one.expect(JobOpened)
            task = ids_of(job.job_root)()
            world.append(two, functions=[FUNCTION], submitted=[submitted(task, job.job, two)])
            postgres.sql.execute(
                "UPDATE regrow.nodes SET lease_expires_at = regrow.now() WHERE node_id = 2"
            )
            assert (await one.expect(NodeDied)).node_id == 2
            reassigned = await one.expect(Reassigned)
            held = reassigned.tasks[0]
            assert header_decoder.decode(held.spec).task_id == task
            assert held.attempt == 2
            assert reassigned.functions == [FUNCTION]

    run(test())


def test_a_killed_node_is_fenced_at_once_by_its_refused_port(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one, two = await world.join(), await world.join()
            core = world.service.core
            while core.context.now < core.fencing.not_before:  # a lease from the start
                await asyncio.sleep(0.05)
            await two.die()
            died = await one.expect(NodeDied)
            assert (died.node_id, died.incarnation) == (2, 1)
            assert "port" in died.reason

    run(test())


def test_a_lost_chain_of_10000_is_granted_producers_first(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one = await world.join()
            one.send(OpenJob(7, 0, "test", 1))
            job = await one.expect(JobOpened)
            next_id = ids_of(job.job_root)
            chain = [next_id() for _ in range(10_000)]
            needs: list[tuple[bytes, ...]] = [()]
            needs += [(object_id(task, 0),) for task in chain[:-1]]
            for start in range(0, len(chain), 2000):
                rows = [
                    submitted(task, job.job, one, need, large=True)
                    for task, need in zip(chain[start:], needs[start : start + 2000], strict=False)
                ]
                world.append(one, functions=[] if start else [FUNCTION], submitted=list(rows))
            wanted = object_id(chain[-1], 0)
            one.send(Locate([wanted]))
            order: list[bytes] = []
            while len(order) < len(chain):
                rebuild = await one.expect(Rebuild)
                order += [header_decoder.decode(held.spec).task_id for held in rebuild.tasks]
                assert all(held.digests == [b"d" * 16] for held in rebuild.tasks)
            assert order == chain
            where = (await one.expect(Locations)).objects[0]
            assert (where.object_id, where.maker) == (wanted, 1)

    run(test())


def test_what_cannot_come_back_is_a_typed_error(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one = await world.join()
            one.send(OpenJob(7, 0, "test", 1))
            job = await one.expect(JobOpened)
            task = ids_of(job.job_root)()
            record = submitted(task, job.job, one, large=True, max_retries=0)
            world.append(one, functions=[FUNCTION], submitted=[record])
            one.send(Locate([object_id(task, 0)]))
            value = (await one.expect(Locations)).objects[0].value
            assert value is not None and value.data is not None
            assert failure_decoder.decode(value.data).code == "object_lost"

    run(test())


def test_objects_are_found_in_the_log_and_with_nodes(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one, two = await world.join(), await world.join()
            one.send(OpenJob(7, 0, "test", 1))
            job = await one.expect(JobOpened)
            next_id = ids_of(job.job_root)
            small, large, pending = next_id(), next_id(), next_id()
            records = [
                submitted(small, job.job, two, large=False),
                submitted(large, job.job, two, large=True),
                submitted(pending, job.job, two),
            ]
            world.append(two, functions=[FUNCTION], submitted=list(records))
            two.send(ObjectsHere([(object_id(large, 0), 100_000)]))
            found: dict[bytes, Whereabouts] = {}
            one.send(Locate([object_id(task, 0) for task in (small, large, pending)]))
            while len(found) < 3:
                for where in (await one.expect(Locations)).objects:
                    found[where.object_id[:16]] = where
            assert found[small].value == Value(object_id(small, 0), OK, 1, b"x", b"e" * 16)
            assert found[large].nodes == [2]
            assert found[pending].maker == 2

    run(test())


def test_nodes_outlive_their_control_store_and_keep_their_incarnations(
    postgres: PostgresWorld,
) -> None:
    async def test() -> None:
        async with control_store(postgres) as first:
            one = await first.join()
            first.nodes.clear()
        async with control_store(postgres) as second:
            assert second.address != first.address
            await one.hang_up()
            one.link = ControlStoreLink(lambda: second.address)
            one._run = asyncio.ensure_future(one.link.run(one._hear, one._up, lambda: None))
            registered = await one.expect(Registered)
            assert (registered.node_id, registered.incarnation) == (1, 1)
            assert registered.epoch == 2
            await one.die()

    run(test())


def test_a_link_finds_a_control_store_that_is_started_again_on_its_port(
    postgres: PostgresWorld,
) -> None:
    async def test() -> None:
        async with control_store(postgres) as first:
            one = await first.join()
            first.nodes.clear()
        host, _, port = first.address.rpartition(":")
        settings = Settings(holder="again")
        again = ControlStore(settings, TOKEN, postgres.store)
        await again.start(host, int(port))
        registered = await one.expect(Registered)
        assert (registered.incarnation, one.ups) == (1, 2)
        await one.die()
        await again.close()

    run(test())


def test_a_port_that_is_taken_is_an_error(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as first:
            host, _, port = first.address.rpartition(":")
            second = ControlStore(Settings(holder="b"), TOKEN, postgres.store)
            with pytest.raises(OSError, match="cannot listen"):
                await second.start(host, int(port))
            await second.close()

    run(test())


def test_a_wrong_token_is_refused_and_no_node_registered(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            stranger = Node(world.address, token="guess")
            with pytest.raises(AssertionError):
                await _expect_registered(stranger)
            await stranger.die()
            assert world.service.core.members.nodes == {}

    async def _expect_registered(stranger: Node) -> None:
        joining = asyncio.ensure_future(stranger.join())
        refused = await stranger.expect(RegisterRefused)
        joining.cancel()
        assert refused.code != "token"

    run(test())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage" * 100,
        b"\xc1",
        pack([encode(Leave())]),
        pack([]),
        b"x" * (1 << 20),
    ],
)
def test_a_stranger_who_does_not_begin_with_a_registration_is_sent_away(
    postgres: PostgresWorld, body: bytes
) -> None:
    async def test() -> None:
        async with (
            control_store(postgres) as world,
            grpc.aio.insecure_channel(world.address) as channel,
        ):
            call = channel.stream_stream(METHOD)()
            await call.write(body)
            assert await call.read() is not grpc.aio.EOF
            assert await call.read() is grpc.aio.EOF
            node = await world.join()
            assert node.key == (1, 1), "it still serves"

    run(test())


def test_garbage_on_the_port_and_from_a_node_leaves_the_service_up(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            host, _, port = world.address.rpartition(":")
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"\x00\xff" * 5000)
            writer.close()
            async with grpc.aio.insecure_channel(world.address) as channel:
                call = channel.stream_stream(METHOD)()
                view = Node(world.address).view
                await call.write(pack([encode(Register(PROTOCOL_VERSION, TOKEN, view))]))
                await call.read()
                await call.write(b"\xc1 no messages")
                while await call.read() is not grpc.aio.EOF:
                    pass
            node = await world.join()
            assert node.key[0] == 2

    run(test())


def test_leaving_is_heard_before_the_node_goes(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres) as world:
            one, two = await world.join(), await world.join()
            two.send(Leave())
            assert await two.link.drained(TIMEOUT_S)
            assert (await one.expect(NodeDied)).reason == "it stopped in good order"

    run(test())


def test_an_ephemeral_cluster_stops_when_its_last_job_has_ended(postgres: PostgresWorld) -> None:
    async def test() -> None:
        async with control_store(postgres, ephemeral=True) as world:
            one = await world.join()
            one.send(OpenJob(7, 0, "test", 1))
            job = await one.expect(JobOpened)
            one.send(CloseJob(job.job, failed=False))
            await one.expect(JobClosed)
            await one.expect(Stop)
            await one.die()
            async with asyncio.timeout(TIMEOUT_S):
                assert await world.service.wait_stopped() == "the last job ended"
            rows = postgres.sql.execute("SELECT alive FROM regrow.nodes").fetchall()
            assert rows == [(False,)], "nobody meets a ghost at the next start"

    run(test())


def test_leadership_is_renewed_while_a_long_write_runs_but_not_taken(
    postgres: PostgresWorld,
) -> None:
    lead = postgres.execute(ops.Lead("one", 0, 2.0))
    other = PostgresStore(postgres.url, session=postgres.store.session)
    view = Node("").view
    node = postgres.execute(ops.RegisterNode(lead.epoch, view, 3.0))
    fence = ops.Fence(lead.epoch, node.node_id, node.incarnation, "test", [])
    with ThreadPoolExecutor(2) as threads:
        with postgres.sql.transaction():
            postgres.sql.execute("SELECT FROM regrow.nodes FOR UPDATE")
            fencing = threads.submit(postgres.execute, fence)
            _await_lock_waiters(postgres, 1)
            assert postgres.execute(ops.Lead("one", lead.epoch, -1.0)).epoch == lead.epoch
            taking = threads.submit(other.execute, ops.Lead("two", 0, 2.0))
            _await_lock_waiters(postgres, 2)
        assert fencing.result(TIMEOUT_S).landed
        taken = taking.result(TIMEOUT_S)
    assert isinstance(taken, ops.Leadership)
    assert taken.epoch == lead.epoch + 1
    other.close()
    assert postgres.execute(fence) == ops.NotLeader()


def _await_lock_waiters(postgres: PostgresWorld, count: int) -> None:
    """Until so many sessions wait for a lock."""
    with psycopg.connect(postgres.url, autocommit=True) as sql:
        deadline = time.monotonic() + TIMEOUT_S
        query = (
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while sql.execute(query).fetchone() != (count,):
            assert time.monotonic() < deadline


def test_leadership_is_given_up_at_the_end_so_that_a_successor_need_not_wait(
    postgres: PostgresWorld,
) -> None:
    async def test() -> None:
        async with control_store(postgres):
            pass
        lead = postgres.execute(ops.Lead("next", 0, 2.0))
        assert lead.epoch == 2

    run(test())
