"""The control store's process: ``python -m regrow.gcs.main --home DIR [...]``.

Starts Postgres (unless ``REGROW_POSTGRES`` names a server), brings the schema up to date, serves,
and writes ``<home>/gcs.json`` when nodes can register. Ends on SIGTERM or SIGINT, and with its last
job where ``--ephemeral``, together with the embedded server then. Exit status 2: Postgres cannot be
used, in one sentence.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from regrow.config import Config
from regrow.gcs import embedded, schema
from regrow.gcs.embedded import EmbeddedPostgresError
from regrow.gcs.postgres_url import PostgresUnavailableError, libpq_url
from regrow.gcs.schema import SchemaError

if TYPE_CHECKING:
    from regrow.gcs.service import ControlStore

logger = logging.getLogger("regrow.gcs")

TOKEN_BYTES: Final = 32
#: After operations on Postgres failed, it is looked after this often.
POSTGRES_CHECK_S: Final = 0.5


class GcsFile(msgspec.Struct, frozen=True):
    """``<home>/gcs.json``."""

    #: "host:port" of the gRPC service.
    address: str
    pid: int
    #: May hold a password: the file is readable by its owner only.
    postgres_url: str
    cluster_id: str
    storage: str


class Options(msgspec.Struct, frozen=True):
    """The command line."""

    home: Path
    host: str
    #: 0: the same as last time if it is free, else any.
    port: int
    ephemeral: bool
    storage: str
    #: Empty: the embedded server.
    postgres_url: str
    #: Another leads, and may go on for long.
    standby: bool = False


def parse_options(arguments: list[str]) -> Options:
    """Ends the process with status 2 if the command line is wrong."""
    parser = argparse.ArgumentParser(prog="python -m regrow.gcs.main")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--ephemeral", action="store_true", help="end with the last job")
    parser.add_argument("--storage", default="", metavar="URI", help="default: HOME/storage")
    parser.add_argument("--standby", action="store_true", help="take over when the leader is gone")
    given = parser.parse_args(arguments)
    host, colon, port = given.listen.rpartition(":")
    if not colon or not port.isdigit():
        parser.error(f"--listen {given.listen}: HOST:PORT is expected")
    home = Path(os.path.abspath(given.home))
    return Options(
        home,
        host.strip("[]") or "127.0.0.1",
        int(port),
        given.ephemeral,
        given.storage or str(home / "storage"),
        libpq_url(os.environ.get("REGROW_POSTGRES", "")),
        given.standby,
    )


class _Imports(threading.Thread):
    """Imports what takes long while Postgres starts."""

    def __init__(self) -> None:
        super().__init__(name="imports", daemon=True)

    def run(self) -> None:
        with contextlib.suppress(ImportError):  # raised again where it is needed
            import regrow.gcs.service
            import regrow.gcs.store  # noqa: F401


def start_postgres(options: Options) -> str:
    """The libpq URL of a server whose schema is up to date. Raises EmbeddedPostgresError,
    PostgresUnavailableError or SchemaError."""
    imports = _Imports()
    imports.start()
    server = None if options.postgres_url else embedded.start(options.home / "postgres")
    imports.join()
    url = options.postgres_url if server is None else server.url
    try:
        upgraded = schema.upgrade(url)
    except PostgresUnavailableError:
        if server is None or embedded.status(options.home / "postgres") == server:
            raise
        # What was found running was about to end: it had been killed a moment before.
        url = embedded.start(options.home / "postgres").url
        upgraded = schema.upgrade(url)
    if upgraded:
        logger.info("the schema of the database was brought up to date")
    return url


def read_token(home: Path) -> str:
    """``REGROW_TOKEN``, else the cluster's token, which is made if there is none."""
    given = os.environ.get("REGROW_TOKEN", "").strip()
    if given:
        return given
    path = home / "token"
    with contextlib.suppress(FileExistsError):
        _write_private(path, secrets.token_urlsafe(TOKEN_BYTES) + "\n", new=True)
    return path.read_text().strip()


def _write_private(path: Path, text: str, *, new: bool = False) -> None:
    """A file of mode 0600 that is there whole or not at all. ``new``: raises FileExistsError."""
    unfinished = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        if new:
            os.link(unfinished, path)
        else:
            unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


async def serve(options: Options, config: Config, url: str) -> str:
    """Serves until a signal or the end of the cluster; the reason."""
    from regrow.gcs.core_events import Settings
    from regrow.gcs.service import ControlStore
    from regrow.gcs.store import PostgresStore

    settings = Settings(
        holder=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
        storage=options.storage,
        lease_ttl_s=config.lease_ttl_s,
        driver_grace_s=config.driver_grace_s,
        ephemeral=options.ephemeral,
    )
    store = PostgresStore(url)
    service = ControlStore(settings, read_token(options.home), store)
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signalled.set)
    keeping = asyncio.ensure_future(_keep_postgres(options, service))
    try:
        address = await _listen(service, options)
        service.on_leading = lambda: _announce(options, address, url, service.core.cluster_id.hex())
        stopping = asyncio.ensure_future(signalled.wait())
        stopped = asyncio.ensure_future(service.wait_stopped())
        await asyncio.wait({stopping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return stopped.result() if stopped.done() else "it was asked to"
    finally:
        keeping.cancel()
        _retract(options)
        await service.close()
        store.close()


async def _keep_postgres(options: Options, service: ControlStore) -> None:
    """Starts the embedded server again where operations fail because it was killed."""
    if options.postgres_url:
        return
    seen = 0
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(POSTGRES_CHECK_S)
        if service.failures == seen:
            continue
        seen = service.failures
        try:
            await loop.run_in_executor(None, embedded.start, options.home / "postgres")
        except EmbeddedPostgresError as error:
            logger.error("Postgres cannot be started again: %s", error)


async def _listen(service: ControlStore, options: Options) -> str:
    """On the port of last time if that is free: nodes that outlived a control store look there."""
    if options.standby:  # the port of last time is the leader's
        return await service.start(options.host, 0)
    ports = [options.port] if options.port else [_last_port(options.home), 0]
    for port in ports[:-1]:
        with contextlib.suppress(OSError):
            return await service.start(options.host, port)
    return await service.start(options.host, ports[-1])


def _last_port(home: Path) -> int:
    try:
        return int((home / "gcs.port").read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _announce(options: Options, address: str, url: str, cluster_id: str) -> None:
    """Says where this process is, unless it is said already."""
    home = options.home
    note = GcsFile(address, os.getpid(), url, cluster_id, options.storage)
    said = msgspec.json.encode(note).decode() + "\n"
    with contextlib.suppress(FileNotFoundError):
        if (home / "gcs.json").read_text() == said:
            return
    _write_private(home / "gcs.port", address.rpartition(":")[2] + "\n")
    _write_private(home / "gcs.json", said)
    logger.info("the control store serves on %s", address)


def _retract(options: Options) -> None:
    """Remove what ``_announce`` wrote, unless another has taken over."""
    path = options.home / "gcs.json"
    with contextlib.suppress(FileNotFoundError, msgspec.MsgspecError):
        if msgspec.json.decode(path.read_bytes(), type=GcsFile).pid == os.getpid():
            path.unlink()


def main(argv: list[str] | None = None) -> int:
    """Runs the control store until it is stopped. Returns the exit status."""
    options = parse_options(list(sys.argv[1:] if argv is None else argv))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    options.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        config = Config.from_environment()
        url = start_postgres(options)
    except (EmbeddedPostgresError, PostgresUnavailableError, SchemaError, ValueError) as error:
        logger.error("%s", error)
        return 2
    reason = asyncio.run(serve(options, config, url))
    logger.info("the control store ends: %s", reason)
    if options.ephemeral and not options.postgres_url:
        embedded.stop(options.home / "postgres")
    return 0


if __name__ == "__main__":
    sys.exit(main())
