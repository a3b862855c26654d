"""Where an embedded server keeps its data, and which user that belongs to.

Postgres refuses to run as root. For root the data therefore lives in a folder under the system's
state directory (`REGROW_SYSTEM_STATE`, default /var/lib/regrow), owned by an unprivileged user, and
the asked directory holds a file, `location`, that names it. For everybody else the asked directory
itself is the home. No permission of any existing folder is changed, and nothing is deleted here.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from regrow.gcs import postgres_binaries
from regrow.gcs.postgres_binaries import EmbeddedPostgresError, ServerUser

POLL_INTERVAL_S = 0.01
#: A Unix socket's whole path may have 107 bytes; the server appends /.s.PGSQL.<port>.
MAX_SOCKET_DIRECTORY_BYTES = 89


@dataclass(frozen=True)
class Home:
    """Where one server keeps its things, and who runs it."""

    asked: Path
    path: Path
    user: ServerUser

    @property
    def data(self) -> Path:
        """The database cluster, which does not exist until it is complete."""
        return self.path / "data"

    @property
    def log(self) -> Path:
        """What the server writes to its standard error."""
        return self.path / "postgres.log"

    @property
    def socket_directory(self) -> Path:
        """Inside the home, unless that makes too long a path for a Unix socket."""
        inside = self.path / "run"
        if len(os.fsencode(inside)) <= MAX_SOCKET_DIRECTORY_BYTES:
            return inside
        return Path(tempfile.gettempdir()) / f"regrow-pg-{_digest(self.path)}"


def resolved(data_dir: Path) -> Path:
    """One name for one directory: a server is known by the name on its command line."""
    return Path(os.path.realpath(data_dir))


def _digest(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


def find_home(asked: Path) -> Home | None:
    """Return the home of an existing server, or None if none was ever made here."""
    pointer = asked / "location"
    try:
        path = Path(pointer.read_text().strip())
    except (FileNotFoundError, NotADirectoryError):
        path = asked
    except PermissionError:
        raise EmbeddedPostgresError(
            f"{asked} may not be read by this user; run as its owner or choose another directory"
        ) from None
    try:
        owner = (path / "data").stat().st_uid
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    me = os.geteuid()
    if path == asked and owner == me and me != 0:
        return Home(asked, path, ServerUser.current())
    if path != asked and me == 0:
        return Home(asked, path, ServerUser.by_uid(owner))
    raise EmbeddedPostgresError(
        f"the Postgres data in {path} belongs to user {_user_name(owner)}"
        f"{', for root' if path != asked else ''}; "
        "run as that user or choose another directory"
    )


def claim_home(asked: Path) -> Home:
    """Return the home of this data directory, making its folders and its pointer as needed."""
    existing = find_home(asked)
    if existing is not None:
        return existing
    try:
        asked.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() != 0:
            return Home(asked, asked, ServerUser.current())
        deadline = time.monotonic() + 30
        with _exclusive(asked / "lock", lambda: time.monotonic() > deadline):
            return _claim_system_home(asked)
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot create {error.filename}: {error.strerror}") from error


def _claim_system_home(asked: Path) -> Home:
    """For root: a folder of the unprivileged user's own, with a pointer to it in `asked`."""
    user = ServerUser.unprivileged()
    pointer = asked / "location"
    if pointer.exists():
        path = Path(pointer.read_text().strip())
    else:
        state = postgres_binaries.system_state()
        # The random part keeps a directory that was deleted and made anew from finding old data.
        path = state / f"{_digest(asked)}-{secrets.token_hex(4)}"
        unfinished = asked / "location.new"
        unfinished.write_text(f"{path}\n")
        unfinished.rename(pointer)
    path.mkdir(mode=0o755, parents=True, exist_ok=True)
    (path / "asked").write_text(f"{asked}\n")
    if not user.can_reach(path):
        raise EmbeddedPostgresError(
            f"user {user.name}, who must run Postgres for root, cannot enter {path}; "
            "set REGROW_SYSTEM_STATE to a directory that every user may enter"
        )
    return Home(asked, path, user)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def locked(home: Home, is_over: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of this home's starters and stoppers; `is_over` says when to give up."""
    return _exclusive(home.path / "lock", is_over)


@contextlib.contextmanager
def _exclusive(path: Path, is_over: Callable[[], bool]) -> Iterator[None]:
    """Hold a lock file among starters; the kernel releases it if its holder dies."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EmbeddedPostgresError(f"cannot lock {path}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if is_over():
                    raise EmbeddedPostgresError(
                        f"another process has been starting or stopping Postgres for too long; "
                        f"it holds {path}"
                    ) from None
                time.sleep(POLL_INTERVAL_S)
        yield
    finally:
        os.close(descriptor)
