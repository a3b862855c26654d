"""The storage that a user names: whether it can be used, and how it is written in one way.

Decides nothing about what is stored. A cluster is told of its storage only after this has said yes.
"""

from __future__ import annotations

import os

from regrow.exceptions import StorageError
from regrow.objectstore.spill import probe_storage


def in_full(storage: str) -> str:
    """A folder as an absolute path, for the nodes work elsewhere; a URI as it is.

    Raises StorageError for an empty text.
    """
    if not storage.strip():
        raise StorageError(
            "the storage that was named is empty; name a folder or a URI such as "
            "s3://bucket/folder, or leave it out for a folder in the cluster's home"
        )
    return storage if "://" in storage else os.path.abspath(os.path.expanduser(storage))


def check_storage(storage: str) -> None:
    """Raise StorageError, in one sentence, if nothing can be written there."""
    try:
        probe_storage(storage)
    except (ValueError, NotImplementedError) as error:
        raise StorageError(
            f"the storage {storage!r} is none that pyarrow.fs knows ({_line(error)}); name a "
            "folder, or a URI such as file:///folder, s3://bucket/folder or gs://bucket/folder"
        ) from None
    except OSError as error:
        raise StorageError(
            f"the storage {storage!r} cannot be written ({_line(error)}); check that the place "
            "exists and that this user may write there, or name another"
        ) from None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
