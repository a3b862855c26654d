"""A private home for a measured cluster, and the count of the rows in its Postgres."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

#: A row of each is what one finished task, call or put leaves behind.
COUNTED = "(SELECT count(*) FROM regrow.tasks) + (SELECT count(*) FROM regrow.objects)"


@contextlib.contextmanager
def private_home() -> Iterator[Path]:
    """Let this process's clusters live in a folder that is deleted afterwards.

    Only for processes whose clusters end with them.
    """
    folder = Path(tempfile.mkdtemp(prefix="regrow-bench-"))
    # Root's embedded server runs as another user, who must be able to pass.
    folder.chmod(0o711)
    state = folder / "state"
    state.mkdir(mode=0o711)
    os.environ["REGROW_HOME"] = str(folder / "home")
    os.environ["REGROW_SYSTEM_STATE"] = str(state)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def committed_rows() -> int:
    """Return the number of rows of tasks and objects in the running cluster's Postgres."""
    from regrow import _home, config

    running = _home.read_gcs(config.home())
    assert running is not None, "no cluster runs in this home"
    with psycopg.connect(running.postgres_url) as connection:
        row = connection.execute(f"SELECT {COUNTED}").fetchone()
    assert row is not None
    return int(row[0])
