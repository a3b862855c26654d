"""Bugs put into real processes turn a scenario red."""

from __future__ import annotations

import pytest

from regrow.chaos.mutation import REAL, real


@pytest.mark.slow
@pytest.mark.parametrize("mutant", sorted(REAL))
def test_a_bug_in_real_processes_is_found(mutant: str) -> None:
    found = real(mutant)
    assert REAL[mutant][1] in found.finding
