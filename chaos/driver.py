"""``python -m regrow.chaos.driver SPEC.json``: the program that a chaos run puts under faults.

A program like a user's own. It joins the cluster, lets its clients submit operations until the time
is up, then looks at what has come of it, and writes down each of them. Killed and run again, it
resumes its job if it has one. Decides nothing: what the operations are is the workload's.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import msgspec

from regrow.chaos.history import Recorder
from regrow.chaos.stage import DriverSpec
from regrow.chaos.workloads import WORKLOADS
from regrow.chaos.workloads.workload import Client

READY, CALM, DONE = "driver_ready", "driver_calm", "driver_done"


def main(path: str) -> int:
    """Run the workload; the exit status is 1 if a client raised what is no error of regrow."""
    import regrow as ray

    faulthandler.register(signal.SIGUSR1)
    spec = msgspec.json.decode(Path(path).read_bytes(), type=DriverSpec)
    os.environ["REGROW_ADDRESS"] = spec.home
    with Recorder(Path(spec.history)) as recorder:
        workload = WORKLOADS[spec.workload].made_from(spec.parameters, spec.seed, spec.clients)
        if workload.joins:
            ray.init(job=spec.job or None, logging_level="WARNING", log_to_driver=False)
        setting_up = Client(recorder, f"driver{spec.life}", 0, spec)
        workload.set_up(setting_up)
        if spec.life == 1:
            spec.ends_at_s = time.monotonic() + spec.duration_s
        recorder.note(READY, spec.life)
        raised = _run_clients(workload, recorder, spec)
        recorder.note(CALM, spec.life)
        if not raised:
            workload.finish(setting_up)
        recorder.note(DONE, spec.life)
        if workload.joins:
            ray.shutdown()
    return 1 if raised else 0


def _run_clients(workload: object, recorder: Recorder, spec: DriverSpec) -> list[str]:
    """All clients, each in a thread, until each has ended; what any of them raised."""
    from regrow.chaos.workloads.workload import Workload

    assert isinstance(workload, Workload)
    raised: list[str] = []

    def run(number: int) -> None:
        client = Client(recorder, f"driver{spec.life}/client{number}", number, spec)
        try:
            workload.run_client(client)
        except Exception:
            raised.append(traceback.format_exc())
            print(raised[-1], file=sys.stderr, flush=True)

    threads = [
        threading.Thread(target=run, args=(number,), name=f"client-{number}")
        for number in range(1, spec.clients + 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
