"""A graph decided at run time: results are merged as they arrive, stragglers are not waited for.

Ten surveyors measure their part of a river, two of them are stuck. Whichever two results are
there first are merged by a new task, so the shape of the tree follows the order of arrival and
is known only when the program has run. When eight are merged the answer is ready; the two
stragglers are left behind.

Run: python examples/dynamic_graph.py
"""

import time
from typing import Any

import regrow as ray

SURVEYORS = 10
STUCK = frozenset({3, 7})
STUCK_S = 600.0

Survey = tuple[frozenset[int], int]


@ray.remote(num_cpus=0.1)
def survey(part: int) -> Survey:
    """Return the part measured and its length in metres."""
    time.sleep(STUCK_S if part in STUCK else 0.02 * (part % 4))
    return frozenset({part}), 100 + part * part


@ray.remote(num_cpus=0.1)
def merge(one: Survey, other: Survey) -> Survey:
    """Return the two surveys as one."""
    return one[0] | other[0], one[1] + other[1]


def main() -> dict[str, Any]:
    """Return the parts measured, their length, the stragglers, and the number of merges."""
    pending: list[Any] = [survey.remote(part) for part in range(SURVEYORS)]
    spare: Any = None
    merges = 0
    while merges < SURVEYORS - len(STUCK) - 1:
        [arrived], pending = ray.wait(pending, num_returns=1)
        if spare is None:
            spare = arrived
        else:
            pending.append(merge.remote(spare, arrived))
            spare = None
            merges += 1
    ready, stragglers = ray.wait(pending, num_returns=1)
    parts, metres = ray.get(ready[0])
    return {
        "parts": sorted(parts),
        "metres": metres,
        "stragglers": len(stragglers),
        "merges": merges,
    }


if __name__ == "__main__":
    ray.init()
    for name, value in main().items():
        print(f"{name}: {value}")
    ray.shutdown()
