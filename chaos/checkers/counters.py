"""Counters are linearizable, and every acknowledged increment was counted exactly once.

An increment answers with the count that it made. So the whole order of a counter is known without
search: it is that of the answers, and what has to be checked is that it does not contradict real
time (an operation that began after another had ended has a larger answer), that no answer was given
twice, and that the last read has every acknowledged token once and none that nobody sent.
"""

from __future__ import annotations

from collections import Counter as Multiset
from collections import defaultdict
from typing import ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.history import Kind, Operation


class Counters(Checker):
    """See the module."""

    name: ClassVar[str] = "counters"
    claim: ClassVar[str] = "counters are linearizable; each increment counted exactly once"

    def check(self, evidence: Evidence) -> list[str]:
        increments: dict[int, list[Operation]] = defaultdict(list)
        for one in evidence.history.operations("increment"):
            increments[one.value[0]].append(one)
        wrong: list[str] = []
        reads = [one for one in evidence.history.operations("read") if one.kind is Kind.OK]
        for which, operations in sorted(increments.items()):
            answered = [one for one in operations if one.kind is Kind.OK]
            wrong += _order(which, operations, answered)
            last = [one.result for one in reads if one.value == which]
            if not last:
                wrong.append(f"counter {which} was never read")
                continue
            wrong += _tokens(which, operations, last[-1])
        return wrong


def _order(which: int, operations: list[Operation], answered: list[Operation]) -> list[str]:
    """Answers that contradict each other or real time. One token has one answer, however often a
    resumed driver asked for it."""
    wrong = []
    by_token: dict[str, int] = {}
    for one in answered:
        known = by_token.setdefault(one.value[1], one.result)
        if known != one.result:
            wrong.append(f"counter {which}: {one.value[1]} was answered {known} and {one.result}")
    twice = [count for count, n in Multiset(by_token.values()).items() if n > 1]
    wrong += [f"counter {which}: two increments were answered {count}" for count in twice]
    # Sweep over real time: whoever begins sees at least the largest answer that was given before.
    # It began when it was first asked for, if only by a driver that was killed before the answer.
    first_asked: dict[str, float] = {}
    for one in operations:
        first_asked.setdefault(one.value[1], one.invoked_s)
    moments = [(first_asked[token], 0, result, token) for token, result in by_token.items()]
    for one in answered:
        assert one.ended_s is not None
        moments.append((one.ended_s, 1, one.result, one.value[1]))
    largest, of = 0, ""
    for _, ended, result, token in sorted(moments):
        if ended and result > largest:
            largest, of = result, token
        elif not ended and result < largest:
            wrong.append(
                f"counter {which}: {token} began after {of} had been answered {largest}, "
                f"and was answered {result}"
            )
    return wrong


def _tokens(which: int, operations: list[Operation], read: list[object]) -> list[str]:
    count, tokens = read
    assert isinstance(tokens, list)
    wrong = []
    if count != len(tokens):
        wrong.append(f"counter {which} says {count} and has {len(tokens)} tokens")
    seen = Multiset(tokens)
    wrong += [
        f"counter {which}: {token} was counted {n} times" for token, n in seen.items() if n > 1
    ]
    asked = {one.value[1] for one in operations}
    wrong += [
        f"counter {which}: {token} was counted, and nobody asked" for token in seen.keys() - asked
    ]
    acknowledged = {one.value[1]: one.result for one in operations if one.kind is Kind.OK}
    for token, answer in acknowledged.items():
        if token not in seen:
            wrong.append(f"counter {which}: {token} was answered {answer} and is not counted")
        elif answer > len(tokens) or tokens[answer - 1] != token:
            wrong.append(
                f"counter {which}: {token} was answered {answer}, which is another's place"
            )
    return wrong
