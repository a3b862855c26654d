"""A private home for a measured cluster, and the count of the rows in its Postgres."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg

from regrow import _home, config
from regrow.gcs import embedded

#: The tables behind the views, so that no row counts twice.
COUNT = "SELECT (SELECT count(*) FROM regrow.task_log) + (SELECT count(*) FROM regrow.object_log)"
#: Puts are committed behind: a count that has not moved for so long is final.
STILL_S = 0.1


@contextlib.contextmanager
def private_home() -> Iterator[Path]:
    """Let this process's clusters live in a folder that is deleted afterwards.

    Only for processes whose clusters end with them.
    """
    folder = Path(tempfile.mkdtemp(prefix="regrow-bench-"))
    os.environ["REGROW_HOME"] = str(folder)
    try:
        yield folder
    finally:
        # Root's server keeps its data elsewhere, as another user's.
        embedded.destroy(_home.postgres_directory(folder))
        shutil.rmtree(folder)


def committed_rows() -> int:
    """Return the number of rows in the running cluster's Postgres, once it moves no more."""
    running = _home.read_gcs(config.home())
    assert running is not None, "no cluster runs in this home"
    with psycopg.connect(running.postgres_url, autocommit=True) as connection:
        before, now = -1, _count(connection)
        while now != before:
            time.sleep(STILL_S)
            before, now = now, _count(connection)
    return now


def _count(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute(COUNT).fetchone()
    assert row is not None
    return row[0]
