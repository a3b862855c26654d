"""A parameter server: an actor holds the weights, workers pull and push until it is stopped.

Three sensors see parts of one noise-free linear law and each drags the shared weights towards
its own readings, in no fixed order. Because one law explains all the readings, the weights reach
it in whatever order the pushes arrive; the server's count of them equals the workers' own.

Run: python examples/parameter_server.py
"""

import time
from typing import Any

import numpy as np

import regrow as ray

LAW = np.array([2.0, -3.0, 0.5])
SENSORS = 3
READINGS = 40
LEARNING_RATE = 0.2
TOLERANCE = 1e-8


@ray.remote
class ParameterServer:
    """The weights, the number of gradients applied, and whether to go on."""

    def __init__(self, size: int) -> None:
        self.weights = np.zeros(size)
        self.pushes = 0
        self.stopped = False
        self.steepest: dict[int, float] = {}

    def pull(self) -> np.ndarray | None:
        """Return the weights, or None once stopped."""
        return None if self.stopped else self.weights.copy()

    def push(self, sensor: int, gradient: np.ndarray) -> None:
        """Take one step against a sensor's gradient."""
        self.weights -= LEARNING_RATE * gradient
        self.pushes += 1
        self.steepest[sensor] = float(np.abs(gradient).max())

    def settled(self, sensors: int) -> bool:
        """Return whether every sensor's newest gradient is flat."""
        return len(self.steepest) == sensors and max(self.steepest.values()) < TOLERANCE

    def stop(self) -> None:
        """Let every worker end at its next pull."""
        self.stopped = True

    def result(self) -> tuple[np.ndarray, int]:
        """Return the weights and the number of gradients applied."""
        return self.weights, self.pushes


@ray.remote(num_cpus=0.25)
def worker(server: Any, sensor: int) -> int:
    """Pull and push until the server is stopped; return the number of pushes."""
    inputs = np.random.default_rng(sensor).normal(size=(READINGS, len(LAW)))
    readings = inputs @ LAW
    pushes = 0
    while (weights := ray.get(server.pull.remote())) is not None:
        gradient = inputs.T @ (inputs @ weights - readings) / READINGS
        ray.get(server.push.remote(sensor, gradient))
        pushes += 1
    return pushes


def main() -> dict[str, Any]:
    """Return the weights to six digits, and whether every push was applied exactly once."""
    server = ParameterServer.remote(len(LAW))  # type: ignore[attr-defined]
    workers = [worker.remote(server, sensor) for sensor in range(SENSORS)]
    while not ray.get(server.settled.remote(SENSORS)):
        time.sleep(0.02)
    ray.get(server.stop.remote())
    pushed = ray.get(workers)
    weights, applied = ray.get(server.result.remote())
    return {
        "weights": [round(float(weight), 6) for weight in weights],
        "each push applied once": sum(pushed) == applied,
        "every sensor took part": min(pushed) > 0,
    }


if __name__ == "__main__":
    ray.init()
    for name, value in main().items():
        print(f"{name}: {value}")
    ray.shutdown()
