"""What the node reads of its memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from regrow.scheduler.memory import MemoryGauge

MIB = 1 << 20


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 1000 MiB, of which 600 are used."""
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    (folder / "meminfo").write_text(
        f"MemTotal: {1000 * 1024} kB\nMemFree: 1 kB\nMemAvailable: {400 * 1024} kB\n"
        "HugePages_Total: 0\n"
    )
    return folder


def group(folder: Path, names: tuple[str, str], limit: str, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_without_a_cgroup_it_is_the_machine(proc: Path, tmp_path: Path) -> None:
    assert MemoryGauge(0, proc, tmp_path / "none").read([]) == (600 * MIB, 1000 * MIB)


def test_version_2_without_what_the_kernel_takes_back(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/a/b\n")
    stat = f"anon 1\ninactive_file {10 * MIB}\nactive_file {20 * MIB}\n"
    group(tmp_path / "cg" / "a" / "b", V2, "max", 110 * MIB, stat)
    group(tmp_path / "cg" / "a", V2, str(100 * MIB), 110 * MIB, stat)
    group(tmp_path / "cg", V2, str(900 * MIB), 110 * MIB, stat)
    assert MemoryGauge(0, proc, tmp_path / "cg").read([]) == (80 * MIB, 100 * MIB)


def test_version_1_also_where_its_path_is_that_of_the_host(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("5:cpu:/x\n4:memory,other:/pods/x\n0::/\n")
    stat = f"total_inactive_file {10 * MIB}\ntotal_active_file 0\n"
    group(tmp_path / "cg" / "memory", V1, str(100 * MIB), 80 * MIB, stat)
    assert MemoryGauge(0, proc, tmp_path / "cg").read([]) == (70 * MIB, 100 * MIB)


def test_the_machine_where_it_is_tighter_than_the_cgroup(proc: Path, tmp_path: Path) -> None:
    (proc / "self" / "cgroup").write_text("0::/\n")
    for limit in (str(400 * MIB), "max", str((1 << 63) - 4096), "nonsense"):
        group(tmp_path / "cg", V2, limit, 100 * MIB, "")
        assert MemoryGauge(0, proc, tmp_path / "cg").read([]) == (600 * MIB, 1000 * MIB)


def test_nothing_readable_is_no_pressure(tmp_path: Path) -> None:
    assert MemoryGauge(0, tmp_path, tmp_path).read([os.getpid()]) == (0, 0)


def test_a_process_counts_with_those_that_it_started() -> None:
    program = (
        "import subprocess, sys\n"
        "own = bytearray(b'x') * (30 << 20)\n"
        "child = 'held = bytearray(b\"x\") * (50 << 20); print(1, flush=True); input()'\n"
        "subprocess.run([sys.executable, '-c', child])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        gauge = MemoryGauge(1000 * MIB)
        used, limit = gauge.read([process.pid])
        assert limit == 1000 * MIB
        assert 80 * MIB <= used < 200 * MIB
        assert 80 * MIB <= gauge.sizes({7: process.pid})[7] < 200 * MIB
        process.communicate("\n")
    assert gauge.size(process.pid) == 0
