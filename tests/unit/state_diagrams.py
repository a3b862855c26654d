"""Reads docs/states.md: the states and the transitions of each diagram."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "states.md"
_SECTION = re.compile(r"^## (.+?)\n.*?^```mermaid\nstateDiagram-v2\n(.*?)^```", re.M | re.S)
_ARROW = re.compile(r" {4}(\S+) --> (\S+): \S.*")
#: Before the beginning and after the end.
OUTSIDE = "[*]"


@dataclass(frozen=True)
class Diagram:
    """One state machine; transitions from and to the outside are among ``arrows`` only."""

    arrows: frozenset[tuple[str, str]]

    @property
    def states(self) -> set[str]:
        return {state for arrow in self.arrows for state in arrow} - {OUTSIDE}

    @property
    def transitions(self) -> set[tuple[str, str]]:
        return {arrow for arrow in self.arrows if OUTSIDE not in arrow}


@cache
def diagrams() -> dict[str, Diagram]:
    """By the title of their section. Raises AssertionError for a line that is no arrow."""
    found: dict[str, Diagram] = {}
    for title, body in _SECTION.findall(PAGE.read_text()):
        arrows: set[tuple[str, str]] = set()
        for line in body.splitlines():
            arrow = _ARROW.fullmatch(line)
            assert arrow is not None, f"{title}: {line!r} is no transition with its reason"
            assert (arrow[1], arrow[2]) not in arrows, f"{title}: {line!r} is there twice"
            arrows.add((arrow[1], arrow[2]))
        found[title] = Diagram(frozenset(arrows))
    return found
