"""``regrow start`` and ``regrow stop``."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from regrow import _bootstrap, _daemons, _home, config
from regrow._daemons import NodeDaemon, NodeOptions
from regrow._options import check_node
from regrow.exceptions import ClusterConnectionError

SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kKMGTP])(i?)B?|B)?")
POWERS = {"k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
GRACE_S = 10.0


@dataclass(frozen=True)
class Asked:
    """The options of ``regrow start``."""

    head: bool
    address: str | None
    postgres: str | None
    postgres_file: Path | None
    storage: str | None
    options: NodeOptions
    port: int
    block: bool
    gcs_standby: bool = False


def node_options(
    num_cpus: float | None,
    num_gpus: float | None,
    memory: str | None,
    resources: str | None,
    object_store_memory: str | None,
    labels: str | None,
    host: str,
) -> NodeOptions:
    """What the node offers, read from the options' texts. Raises typer.BadParameter."""
    given: dict[str, Any] = {
        "num_cpus": num_cpus,
        "num_gpus": num_gpus,
        "memory": None if memory is None else parse_size(memory, "--memory"),
        "resources": _object(resources, "--resources", """'{"disk": 2}'"""),
        "object_store_memory": None
        if object_store_memory is None
        else parse_size(object_store_memory, "--object-store-memory"),
    }
    try:
        check_node(given, "regrow start")
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error), param_hint="start") from None
    return NodeOptions(**given, labels=_labels(labels), host=host)


def parse_size(text: str, option: str) -> int:
    """Bytes, of 1000000, 500MB or 2GiB. Raises typer.BadParameter."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size like 500MB or 2GiB", param_hint=option)
    number, unit, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** POWERS.get(unit or "", 0))


def _labels(text: str | None) -> dict[str, str]:
    found = _object(text, "--labels", """'{"zone": "a"}'""")
    return {name: str(value) for name, value in found.items()}


def _object(text: str | None, option: str, example: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise typer.BadParameter(f"it must be a JSON object like {example}", param_hint=option)
    return found


def start(asked: Asked) -> None:
    """Start the node and say where it is; with ``block`` return when it has ended.

    Raises typer.BadParameter, ClusterConnectionError.
    """
    if asked.gcs_standby:
        if asked.head or asked.address is not None or asked.block:
            raise typer.BadParameter(
                "it goes alone, in the home of a cluster that runs", param_hint="--gcs-standby"
            )
        _start_standby(_postgres(asked))
        return
    if asked.head == (asked.address is not None):
        raise typer.BadParameter(
            "give either --head, for a new cluster, or --address, to join one", param_hint="start"
        )
    postgres = _postgres(asked)
    for number in (signal.SIGTERM, signal.SIGHUP):  # as SIGINT: end what was started so far
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    if asked.head:
        _start_head(asked, postgres)
    else:
        _join(asked, postgres)


def _postgres(asked: Asked) -> str | None:
    if asked.postgres is not None and not asked.postgres.strip():
        raise typer.BadParameter(
            "it is empty; leave it out for the embedded server", param_hint="--postgres"
        )
    if asked.postgres_file is None:
        return asked.postgres or os.environ.get("REGROW_POSTGRES") or None
    if asked.postgres is not None:
        raise typer.BadParameter("give one of --postgres and --postgres-file", param_hint="start")
    try:
        with asked.postgres_file.open() as file:
            private = not os.fstat(file.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO)
            url = file.readline().strip()
    except OSError as error:
        raise typer.BadParameter(
            f"cannot read {asked.postgres_file}: {error.strerror}", param_hint="--postgres-file"
        ) from None
    if not private:
        raise typer.BadParameter(
            f"{asked.postgres_file} may be read by others; run `chmod 600 {asked.postgres_file}`",
            param_hint="--postgres-file",
        )
    if not url:
        raise typer.BadParameter(f"{asked.postgres_file} is empty", param_hint="--postgres-file")
    return url


def _start_head(asked: Asked, postgres: str | None) -> None:
    home = Path(os.path.realpath(config.home()))
    session = _bootstrap.start_head(
        home,
        postgres=postgres,
        storage=asked.storage,
        options=asked.options,
        port=asked.port,
    )
    stopping = _asked_to_stop() if asked.block else None
    kind = "the server you named" if postgres else "embedded Postgres"
    print(f"A cluster runs in {home}, its log in {kind}.")
    print("  use it:      regrow.init() in a program; regrow status, list, sql here")
    print(f"  add a node:  regrow start --address {home}")
    print("  stop it:     regrow stop", flush=True)
    if stopping is not None and session.daemon is not None:
        _block(session.daemon, stopping)
        _bootstrap.stop(home)


def _start_standby(postgres: str | None) -> None:
    home = Path(os.path.realpath(config.home()))
    standby = _bootstrap.start_standby(home, postgres)
    print(f"A standby of the control store of the cluster in {home} runs (pid {standby.pid}).")


def _join(asked: Asked, postgres: str | None) -> None:
    assert asked.address is not None
    if asked.storage is not None:
        raise typer.BadParameter("storage is chosen with --head", param_hint="--storage")
    home, gcs_address = _bootstrap.resolve(asked.address, None)
    if gcs_address:
        if postgres is None:
            raise typer.BadParameter(
                "a node of another machine's cluster needs its database: REGROW_POSTGRES",
                param_hint="--address",
            )
        if not os.environ.get("REGROW_TOKEN") and not (home / "token").exists():
            raise ClusterConnectionError(
                f"a node of the cluster at {gcs_address} needs its token: set REGROW_TOKEN to what "
                "the file `token` in that cluster's home holds"
            )
        _bootstrap.connect_remote(home, gcs_address, postgres)
    daemon = _bootstrap.start_node(home, asked.options, postgres=postgres)
    node = _bootstrap.await_node(home, daemon)
    stopping = _asked_to_stop() if asked.block else None
    print(f"Node {node.node_id} has joined the cluster in {home}.", flush=True)
    if stopping is not None:
        _block(daemon, stopping)
        _daemons.end([daemon.pid], GRACE_S)


def _asked_to_stop() -> threading.Event:
    """From now on a signal to stop sets this."""
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.set())
    return asked


def _block(daemon: NodeDaemon, asked_to_stop: threading.Event) -> None:
    """Until the node ends or this process is asked to."""
    while not asked_to_stop.wait(0.2):
        if daemon.process.poll() is not None:
            print(f"The node has ended; its log is {daemon.log}.", flush=True)
            return


def stop(*, force: bool) -> None:
    """Stop everything of the home and say what it was. Raises RaySystemError if it does not end."""
    home = Path(os.path.realpath(config.home()))
    stopped = _bootstrap.stop(home, force=force)
    if not stopped.anything:
        print(f"Nothing runs in {home}.")
        return
    parts = [f"{stopped.nodes} node{'' if stopped.nodes == 1 else 's'}"]
    parts += ["the control store"] * stopped.gcs + ["Postgres"] * stopped.postgres
    kept = "; its data is kept" if _home.postgres_directory(home).exists() else ""
    print(f"Stopped {', '.join(parts)} of the cluster in {home}{kept}.")
