"""Memory of a cluster's processes, read from /proc: proportional set size, shared pages split.

A cluster's processes are those that inherited a marker from the environment of the process that
started it, and all their descendants (Postgres overwrites its own environment, but not its
parents).
"""

import os
from pathlib import Path

MARKER = "REGROW_BENCHMARK_RUN"


def cluster_pids(mark: str) -> list[int]:
    """Return the living processes started under ``MARKER=mark``, sorted by pid."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    needle = f"{MARKER}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            environment = (folder / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if status[0] == "Z":
            continue
        pid = int(folder.name)
        parents[pid] = int(status[1])
        if needle in environment.split(b"\0"):
            found.add(pid)
    grown = True
    while grown:
        children = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= children
        grown = bool(children)
    return sorted(found)


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process in MB (10^6 bytes); 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0.0
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return kilobytes * 1024 / 1e6


def command(pid: int) -> str:
    """Return the command line of a process, "" if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def cluster_pss_mb(mark: str, containing: str = "") -> float:
    """Return the memory in MB of a cluster's processes other than the caller.

    With ``containing``, only of those whose command line contains it.
    """
    return sum(
        pss_mb(pid)
        for pid in cluster_pids(mark)
        if pid != os.getpid() and containing in command(pid)
    )
