"""Histories of objects that clients share: linearizable, and in the order of each caller.

Operations on them have a value of ``{"on": object, "token": ..., "argument": ...}``. A token is one
operation, however often a driver that was run again asks for it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.checkers.linearizability import Call, check
from regrow.chaos.checkers.models import MODELS
from regrow.chaos.history import History, Kind, Operation


def calls_of(history: History) -> tuple[dict[str, list[Call]], list[str]]:
    """The operations by object, each once; and answers to one operation that contradict."""
    by_token: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for one in history.operations():
        if isinstance(one.value, dict) and "on" in one.value:
            by_token[one.value["on"], one.value["token"]].append(one)
    found: dict[str, list[Call]] = defaultdict(list)
    wrong = []
    for (on, token), asked in by_token.items():
        answered = [one for one in asked if one.kind is Kind.OK]
        results: list[Any] = []
        for one in answered:
            if one.result not in results:
                results.append(one.result)
        if len(results) > 1:
            wrong.append(f"{on}: {token} was answered {results[0]!r} and {results[1]!r}")
        first = asked[0]
        ended = min((one.ended_s or 0.0 for one in answered), default=None)
        found[on].append(
            Call(
                first.name, first.value.get("argument"), results[0] if results else None,
                min(one.invoked_s for one in asked), ended, client_of(first.process),
            )
        )  # fmt: skip
    return found, wrong


def client_of(process: str) -> str:
    """Who it was, in whichever life of the driver."""
    return process.rpartition("/")[2]


class Linearizable(Checker):
    """Each object's history can be explained by operations that took effect one after the other."""

    name: ClassVar[str] = "linearizable"
    claim: ClassVar[str] = "the histories of actors are linearizable"

    def check(self, evidence: Evidence) -> list[str]:
        calls, wrong = calls_of(evidence.history)
        model = MODELS[evidence.workload.model]
        for on, made in sorted(calls.items()):
            verdict = check(made, model)
            if verdict.unknown:
                wrong.append(f"{on}: whether {len(made)} operations are linearizable is not known")
            elif not verdict.holds:
                wrong.append(
                    f"{on} is not linearizable: after {verdict.placed} of {len(made)} operations "
                    f"nothing explains {verdict.stuck}"
                )
        return wrong


class Fifo(Checker):
    """What one caller sends to an actor is executed in the order in which it was sent.

    Judged by the last reading of each append list: its items are the tokens.
    """

    name: ClassVar[str] = "fifo"
    claim: ClassVar[str] = "the calls of each caller were executed in their order, each once"

    def check(self, evidence: Evidence) -> list[str]:
        sent: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        read: dict[str, list[str]] = {}
        acknowledged: dict[str, set[str]] = defaultdict(set)
        for one in evidence.history.operations():
            if not isinstance(one.value, dict) or "on" not in one.value:
                continue
            on, token = one.value["on"], one.value["token"]
            if one.name == "append":
                tokens = sent[on][client_of(one.process)]
                if token not in tokens[-1000:]:
                    tokens.append(token)
                if one.kind is Kind.OK:
                    acknowledged[on].add(token)
            elif one.kind is Kind.OK:
                read[on] = one.result
        wrong = [f"{on} was never read" for on in sent if on not in read]
        for on, items in read.items():
            wrong += _judge(on, items, sent[on], acknowledged[on])
        return wrong


def _judge(
    on: str, items: list[str], sent: dict[str, list[str]], acknowledged: set[str]
) -> list[str]:
    caller_of = {token: caller for caller, tokens in sent.items() for token in tokens}
    place = {token: i for tokens in sent.values() for i, token in enumerate(tokens)}
    wrong, seen = [], set()
    last: dict[str, str] = {}
    for token in items:
        if token not in caller_of:
            wrong.append(f"{on} has {token}, which nobody sent")
            continue
        if token in seen:
            wrong.append(f"{on} has {token} twice")
        seen.add(token)
        caller = caller_of[token]
        before = last.get(caller)
        if before is not None and place[before] > place[token]:
            wrong.append(f"{on}: {caller} sent {token} before {before}, and it was executed after")
        last[caller] = token
    wrong += [f"{on}: {token} was acknowledged and is lost" for token in acknowledged - seen]
    return wrong
