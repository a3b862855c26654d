"""A bug put into real processes turns a scenario red; `make chaos-mutants` tries all of them."""

from __future__ import annotations

import pytest

from regrow.chaos.mutation import REAL, real


@pytest.mark.slow
def test_a_bug_in_real_processes_is_found() -> None:
    mutant = "call-applied-twice"
    found = real(mutant)
    assert REAL[mutant][1] in found.finding
