"""No node that lived and could have said so was declared dead."""

from __future__ import annotations

from typing import ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence


class NoFalseDeaths(Checker):
    """For scenarios whose faults kill, stop and cut off nobody."""

    name: ClassVar[str] = "no_false_deaths"
    claim: ClassVar[str] = "no living node was declared dead"

    def check(self, evidence: Evidence) -> list[str]:
        return [
            f"node {node}, incarnation {incarnation}: {reason}"
            for node, incarnation, reason in evidence.rows(
                "SELECT node_id, incarnation, reason FROM regrow.nodes WHERE NOT alive"
            )
        ]
