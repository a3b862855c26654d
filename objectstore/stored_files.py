"""Files of objects in storage, when they are no longer needed."""

from __future__ import annotations

from collections.abc import Iterable

from pyarrow import fs


def delete_stored(uris: Iterable[str]) -> list[str]:
    """Delete these files; what could not be deleted, and why. One that is gone is deleted."""
    left: list[str] = []
    for uri in uris:
        try:
            system, path = fs.FileSystem.from_uri(uri)
            system.delete_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:  # pyarrow's errors of a storage are OSErrors
            left.append(f"{uri}: {error}")
    return left
