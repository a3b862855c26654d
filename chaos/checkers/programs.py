"""What single workloads promise beyond their answers: money, names, work that is not repeated."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

from regrow.chaos.checkers.checker import Checker, Evidence
from regrow.chaos.history import Kind
from regrow.chaos.workloads.workload import RAN


class Bank(Checker):
    """Money is neither made nor lost, and each transfer is booked on both accounts or on none.

    A final ``accounts`` operation reads all accounts: for each the balance and its entries
    ``[token, amount]``, the opening one first.
    """

    name: ClassVar[str] = "bank"
    claim: ClassVar[str] = "the sum of all accounts is conserved; each transfer is booked once"

    def check(self, evidence: Evidence) -> list[str]:
        read = [o for o in evidence.history.operations("accounts") if o.kind is Kind.OK]
        if not read:
            return ["the accounts were never read"]
        accounts: list[tuple[int, list[tuple[str, int]]]] = read[-1].result
        opening = evidence.workload.parameters.opening
        transfers = {o.value["token"]: o.value for o in evidence.history.operations("transfer")}
        answers = {
            o.value["token"]: o.result
            for o in evidence.history.operations("transfer")
            if o.kind is Kind.OK
        }
        wrong = []
        total = sum(balance for balance, _ in accounts)
        if total != opening * len(accounts):
            wrong.append(f"there are {total}, and were {opening * len(accounts)}")
        booked: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, (balance, entries) in enumerate(accounts):
            sums = opening
            for token, amount in entries:
                sums += amount
                booked[token].append((number, amount))
                if sums < 0:
                    wrong.append(f"account {number} was overdrawn by {token}")
            if sums != balance:
                wrong.append(f"account {number} says {balance}, and its entries make {sums}")
        for token, bookings in booked.items():
            if token not in transfers:
                wrong.append(f"{token} was booked, and nobody asked for it")
            elif sorted(bookings) != _bookings(transfers[token]):
                wrong.append(f"{token} was booked as {bookings}, asked for was {transfers[token]}")
        for token, moved in answers.items():
            if moved != (token in booked):
                wrong.append(f"{token} was answered {moved}, and booked: {token in booked}")
        return wrong


def _bookings(transfer: dict[str, Any]) -> list[tuple[int, int]]:
    amount = transfer["amount"]
    return sorted([(transfer["source"], -amount), (transfer["target"], amount)])


class OneWinner(Checker):
    """Of those who race to make an actor of one name exactly one wins, and all get the same.

    A ``race`` operation answers with who each racer says made the actor: [[racer, maker, won]].
    """

    name: ClassVar[str] = "one_winner"
    claim: ClassVar[str] = "exactly one racer makes the actor of a name, and all see that one"

    def check(self, evidence: Evidence) -> list[str]:
        wrong = []
        for one in evidence.history.operations("race"):
            if one.kind is not Kind.OK:
                continue
            makers = {maker for _, maker, _ in one.result}
            racers = {racer for racer, _, _ in one.result}
            winners = [racer for racer, maker, won in one.result if won]
            if len(makers) != 1:
                wrong.append(f"{one.value}: racers found different actors: {one.result}")
            elif not makers <= racers:
                wrong.append(f"{one.value}: nobody in the race made the actor: {one.result}")
            elif winners not in ([], list(makers)):
                wrong.append(f"{one.value}: those who say they won did not: {one.result}")
        return wrong


class NotAgain(Checker):
    """Work that was acknowledged is not done again, by no later life of the driver either.

    Tasks note that they begin; an ``item`` operation acknowledges that of its token.
    """

    name: ClassVar[str] = "not_again"
    claim: ClassVar[str] = "what was acknowledged is not run again"

    def check(self, evidence: Evidence) -> list[str]:
        seen: dict[str, float] = {}
        for one in evidence.history.operations("item"):
            if one.kind is Kind.OK and one.ended_s is not None:
                token = str(one.value)
                seen[token] = min(seen.get(token, one.ended_s), one.ended_s)
        ran = evidence.history.notes(RAN)
        wrong = [
            f"{line.value} ran {line.at_s - seen[line.value]:.2f} s after it was acknowledged"
            for line in ran
            if line.value in seen and line.at_s > seen[line.value]
        ]
        never = seen.keys() - {str(line.value) for line in ran}
        return wrong + [f"{token} was acknowledged, and never ran" for token in sorted(never)]


class Stable(Checker):
    """What was once answered stays the answer: all answers to one question are equal.

    Operations ``ask`` have a question as their value.
    """

    name: ClassVar[str] = "stable"
    claim: ClassVar[str] = "an answer that was given once stays the answer"

    def check(self, evidence: Evidence) -> list[str]:
        first: dict[str, Any] = {}
        wrong = []
        for one in evidence.history.operations("ask"):
            if one.kind is Kind.OK:
                known = first.setdefault(str(one.value), one.result)
                if known != one.result:
                    wrong.append(f"{one.value} was answered {known!r}, then {one.result!r}")
        return wrong
