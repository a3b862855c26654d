"""Postgres that crashes, is away, is slow, is full, is locked, or whose answers are lost."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from typing import ClassVar, Literal

import msgspec
import psycopg

from regrow.chaos.nemeses.nemesis import Nemesis, NotYetError
from regrow.chaos.postgres_proxy import PostgresProxy
from regrow.chaos.stage import START_S, Stage, wait_until
from regrow.gcs import embedded

#: The name of sessions of nemeses, which they spare.
OURS = "chaos"


KILL_OTHERS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
    f"AND pid <> pg_backend_pid() AND application_name <> '{OURS}'"
)
#: SQLSTATE and message.
REASONS = {
    "full": ("53100", "could not extend file: No space left on device"),
    "deadlock": ("40P01", "deadlock detected"),
    "serialization": ("40001", "could not serialize access due to concurrent update"),
}
REFUSE = """
    CREATE FUNCTION regrow.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        RAISE EXCEPTION '{text}' USING ERRCODE = '{code}';
    END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON regrow.nodes
        FOR EACH STATEMENT EXECUTE FUNCTION regrow.refuse()
"""


def _proxy(stage: Stage) -> PostgresProxy:
    assert stage.proxy is not None, "the scenario has a proxy"
    return stage.proxy


class PostgresStop(Nemesis):
    """The server ends at once, as in a crash, and is started again."""

    name: ClassVar[str] = "postgres_stop"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """ "immediate" is `pg_ctl stop -m immediate`, "kill" SIGKILL of the postmaster."""

        mode: Literal["immediate", "kill"] = "immediate"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        pid = stage.postgres_pid()
        if not pid:
            return ""
        if self.options.mode == "kill":
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            embedded.stop(stage.postgres_directory(), mode="immediate")
        return f"server {pid}"

    def heal(self, stage: Stage) -> None:
        stage.ensure_postgres()
        wait_until(lambda: stage.postgres_pid() != 0, START_S)


class PostgresAway(Nemesis):
    """All connections break, and none is accepted until it is healed."""

    name: ClassVar[str] = "postgres_away"
    needs_proxy: ClassVar[bool] = True

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._away = False

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._away:
            return ""
        self._away = True
        _proxy(stage).go_away()
        return "every connection"

    def heal(self, stage: Stage) -> None:
        if self._away:
            self._away = False
            _proxy(stage).come_back()


class LogBreak(Nemesis):
    """Every connection is cut, in the middle of whatever transaction it is in."""

    name: ClassVar[str] = "log_break"
    needs_proxy: ClassVar[bool] = True

    def inject(self, stage: Stage, rng: random.Random) -> str:
        cut = _proxy(stage).cut_all()
        return f"{cut} connections" if cut else ""


class LostAnswers(Nemesis):
    """Answers to commits are lost: what was committed is unknown to who asked for it."""

    name: ClassVar[str] = "lost_answers"
    needs_proxy: ClassVar[bool] = True

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Of each so many commits one."""

        every: int = 20

    def inject(self, stage: Stage, rng: random.Random) -> str:
        """Fires with the first answer that is lost."""
        proxy = _proxy(stage)
        before = proxy.lost
        proxy.lose_answers(self.options.every)
        try:
            wait_until(lambda: proxy.lost > before, 2.0)
        except TimeoutError:
            proxy.lose_answers(0)
            return ""
        return f"one of {self.options.every} commits"

    def heal(self, stage: Stage) -> None:
        _proxy(stage).lose_answers(0)


class SlowCommits(Nemesis):
    """Every statement waits before Postgres gets it, as with a slow disk."""

    name: ClassVar[str] = "slow_commits"
    needs_proxy: ClassVar[bool] = True

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Seconds."""

        delay_s: float = 0.1

    def inject(self, stage: Stage, rng: random.Random) -> str:
        _proxy(stage).delay(self.options.delay_s)
        return f"{self.options.delay_s:g} s each"

    def heal(self, stage: Stage) -> None:
        _proxy(stage).delay(0.0)


class _OnTheServer(Nemesis):
    """Something that sessions of its own do to the server."""

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._sessions: list[psycopg.Connection[tuple[object, ...]]] = []

    def _connect(self, stage: Stage) -> psycopg.Connection[tuple[object, ...]]:
        """A session that waits for nobody for long. Raises psycopg.Error or RuntimeError."""
        return psycopg.connect(
            stage.postgres_url(), autocommit=True, application_name=OURS, connect_timeout=2,
            options="-c lock_timeout=500 -c statement_timeout=3000",
        )  # fmt: skip

    def heal(self, stage: Stage) -> None:
        for session in self._sessions:
            session.close()
        self._sessions = []


class DatabaseLocked(_OnTheServer):
    """A session holds a lock that every append and every write of the control store waits for."""

    name: ClassVar[str] = "database_locked"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._sessions:
            return ""
        try:
            session = self._connect(stage)
            self._sessions.append(session)
            session.execute("BEGIN")
            session.execute("LOCK TABLE regrow.nodes IN ACCESS EXCLUSIVE MODE")
        except (psycopg.Error, RuntimeError):
            self.heal(stage)
            return ""
        return "regrow.nodes"


class BackendsKilled(_OnTheServer):
    """Server processes end in the middle of their transactions, as a deadlock may end one."""

    name: ClassVar[str] = "backends_killed"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        try:
            with self._connect(stage) as session:
                killed = session.execute(KILL_OTHERS).fetchall()
        except (psycopg.Error, RuntimeError):
            return ""
        return f"{len(killed)} sessions" if killed else ""


class ConnectionsExhausted(_OnTheServer):
    """Others have all connections that the server allows; those that break cannot come back."""

    name: ClassVar[str] = "connections_exhausted"

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._sessions:
            return ""
        try:
            with self._connect(stage) as killer:
                for _ in range(2):
                    self._take_all(stage)
                    # Those that were there first lose theirs, and it is taken, too.
                    killer.execute(KILL_OTHERS)
        except (psycopg.Error, RuntimeError):
            self.heal(stage)
            return ""
        return f"{len(self._sessions)} connections"

    def _take_all(self, stage: Stage) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                self._sessions.append(self._connect(stage))


class DatabaseRefuses(_OnTheServer):
    """Every write of a node is refused: for want of room, as a deadlock, as not serializable."""

    name: ClassVar[str] = "database_refuses"

    class Options(msgspec.Struct, forbid_unknown_fields=True):
        """Why; "any": drawn each time."""

        reason: Literal["full", "deadlock", "serialization", "any"] = "full"

    def __init__(self, options: dict[str, object]) -> None:
        super().__init__(options)
        self._refuses = False

    def inject(self, stage: Stage, rng: random.Random) -> str:
        if self._refuses:
            return ""
        reason = self.options.reason
        if reason == "any":
            reason = rng.choice(sorted(REASONS))
        code, text = REASONS[reason]
        try:
            session = self._connect(stage)
            self._sessions.append(session)  # so that there is one to mend it with
            session.execute(REFUSE.format(code=code, text=text).encode())
        except (psycopg.Error, RuntimeError):
            super().heal(stage)
            return ""
        self._refuses = True
        return f"{reason} ({code})"

    def heal(self, stage: Stage) -> None:
        if not self._refuses:
            return
        try:
            if not self._sessions or self._sessions[0].broken:
                super().heal(stage)
                self._sessions = [self._connect(stage)]
            self._sessions[0].execute("DROP FUNCTION IF EXISTS regrow.refuse CASCADE")
        except (psycopg.Error, RuntimeError) as error:
            raise NotYetError(str(error)) from None
        self._refuses = False
        super().heal(stage)
