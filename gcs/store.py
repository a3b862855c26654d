"""The control store's Postgres: carries out every operation of ``regrow.gcs.operations``.

``execute`` blocks and may be called from several threads; each operation is one transaction. A
write first locks the leadership row against a successor, and is refused (``NotLeader``) if its
epoch is over. Operations that may be repeated are tried again for a short while when the connection
breaks; others, and what fails for longer, raise ``StoreUnavailableError``: whether a write was
carried out is then unknown.

The log of a node does not pass here: see ``regrow.gcs.log``.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, Final

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from regrow.gcs import operations as ops
from regrow.gcs import (
    store_actors,
    store_fencing,
    store_jobs,
    store_nodes,
    store_recovery,
    store_resume,
)
from regrow.gcs.postgres_url import libpq_url
from regrow.gcs.store_session import Handler

#: A host that vanished is noticed within about ten seconds.
CONNECTION_DEFAULTS: Final = {
    "connect_timeout": 5,
    "keepalives_idle": 3,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
RETRY_FOR_S: Final = 5.0
#: The application_name of this process's connections, by which a successor finds and ends them.
SESSION: Final = f"regrow-gcs-{secrets.token_hex(8)}"
#: Serialization failure, deadlock: nothing was written.
_ROLLED_BACK: Final = ("40001", "40P01")


class StoreUnavailableError(Exception):
    """Postgres could not be reached, or broke off; what a write did is unknown."""


_READS: Final[dict[type, Handler]] = {
    ops.ReadLeases: store_nodes.read_leases,
    ops.ReadNodes: store_nodes.read_nodes,
    ops.ReadGiven: store_fencing.read_given,
    ops.ReadJob: store_jobs.read_job,
    ops.ReadJobCode: store_resume.read_job_code,
    ops.ReadJobs: store_jobs.read_jobs,
    ops.ReadActor: store_jobs.read_actor,
    ops.ReadFunctions: store_jobs.read_functions,
    ops.ReadTasks: store_recovery.read_tasks,
    ops.ReadObjects: store_recovery.read_objects,
    ops.ReadLineage: store_recovery.read_lineage,
}
#: Writes that leave the same behind when they are carried out twice.
_REPEATABLE: Final[dict[type, Handler]] = {
    ops.CreateJob: store_jobs.create_job,
    ops.ResumeJob: store_resume.resume_job,
    ops.EndJob: store_jobs.end_job,
    ops.EndIdleJobs: store_jobs.end_idle_jobs,
    ops.ReserveActorName: store_jobs.reserve_actor_name,
    ops.GrantRebuilds: store_recovery.grant_rebuilds,
    ops.RestoreActor: store_actors.restore_actor,
    ops.TrimCalls: store_actors.trim_calls,
    ops.UpdateResources: store_nodes.update_resources,
    ops.NodeDrains: store_nodes.node_drains,
}
_ONCE: Final[dict[type, Handler]] = {
    ops.RegisterNode: store_nodes.register_node,
    ops.WriteEvent: store_nodes.write_event,
}
#: Give tasks away; repeatable under the same stamp.
_STAMPED: Final[dict[type, Callable[..., ops.NodeFenced]]] = {
    ops.Fence: store_fencing.fence,
    ops.Sweep: store_fencing.sweep,
    ops.NodeLeft: store_fencing.node_left,
}


class PostgresStore:
    """See the module. ``url`` as libpq or SQLAlchemy takes it."""

    def __init__(self, url: str, connections: int = 4, session: str = SESSION) -> None:
        place = libpq_url(url)
        self.session = session
        given = conninfo_to_dict(place)
        settings = {k: v for k, v in CONNECTION_DEFAULTS.items() if k not in given}
        self._conninfo = make_conninfo(place, **settings, application_name=self.session)
        self._engine = sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            isolation_level="READ COMMITTED",
            pool_size=connections,
            max_overflow=0,
            pool_pre_ping=True,
        )
        self._again = Retrying(
            retry=retry_if_exception(_is_transient),
            stop=stop_after_delay(RETRY_FOR_S),
            wait=wait_exponential(multiplier=0.05, max=1),
            reraise=True,
        )

    def _connect(self) -> psycopg.Connection[Any]:
        # Statements are planned each time: the best plan changes while partitions fill.
        connection = psycopg.connect(self._conninfo, prepare_threshold=None)
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false) "
            "WHERE current_setting('synchronous_commit') = 'off'"
        )
        connection.commit()
        return connection

    def execute(self, op: ops.Operation) -> ops.Result:
        """Carries an operation out. Raises StoreUnavailableError."""
        try:
            return self._dispatch(op)
        except (sa.exc.OperationalError, sa.exc.InterfaceError, psycopg.OperationalError) as error:
            raise StoreUnavailableError(_reason(error)) from error

    def _dispatch(self, op: ops.Operation) -> ops.Result:
        kind = type(op)
        if isinstance(op, ops.Lead):
            with self._engine.begin() as connection:
                return store_nodes.lead(connection, op, self.session)
        if kind in _READS:
            return self._again(self._read, op)
        if kind in _STAMPED:
            with self._engine.connect() as connection:
                at = store_fencing.now(connection)
            stamped = _STAMPED[kind]
            return self._again(self._write, op, lambda c, o: stamped(c, o, at))
        if kind in _REPEATABLE:
            return self._again(self._write, op, _REPEATABLE[kind])
        return self._write(op, _ONCE[kind])

    def _read(self, op: Any) -> ops.Result:
        """In one snapshot, so that the rows of several statements fit together."""
        with self._engine.connect() as connection:
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                return _READS[type(op)](connection, op)

    def _write(self, op: Any, handler: Handler) -> ops.Result:
        with self._engine.begin() as connection:
            if not store_nodes.is_leader(connection, op.epoch):
                return ops.NotLeader()
            return handler(connection, op)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()


def _is_transient(error: BaseException) -> bool:
    """Whether the connection broke, or Postgres undid the transaction because of others."""
    if isinstance(error, psycopg.OperationalError):
        return True
    if not isinstance(error, sa.exc.DBAPIError):
        return False
    original = error.orig
    if isinstance(original, psycopg.Error) and original.sqlstate in _ROLLED_BACK:
        return True
    return error.connection_invalidated or isinstance(
        error, sa.exc.OperationalError | sa.exc.InterfaceError
    )


def _reason(error: Exception) -> str:
    """The server's words, without SQL and parameters."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    return str(original).strip() or type(error).__name__
