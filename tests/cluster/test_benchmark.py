"""The benchmark's own side runs, in a home that it deletes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

WORKLOADS = Path(__file__).parents[2] / "benchmarks" / "workloads.py"
ROWS = ["init_warm", "idle_memory", "ten_actors", "chain_300", "put_small"]


def test_workloads_give_figures_and_committed_rows_and_leave_nothing() -> None:
    before = set(Path(tempfile.gettempdir()).glob("regrow-bench-*"))
    finished = subprocess.run(
        [sys.executable, str(WORKLOADS), "--impl", "regrow", "--quick", "--rows", ",".join(ROWS)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads(finished.stdout.splitlines()[-1])
    assert list(results) == ROWS
    assert all(result["value"] > 0 for result in results.values())
    # Ten creations and ten calls; at least one whole chain; a put is one row.
    assert results["ten_actors"]["committed"] == 20
    assert results["chain_300"]["committed"] % 300 == 0 < results["chain_300"]["committed"]
    assert results["put_small"]["committed"] > 0
    assert set(Path(tempfile.gettempdir()).glob("regrow-bench-*")) == before
