"""The errors under Ray's names: programs written against Ray can catch them."""

from __future__ import annotations

import pytest

from regrow import exceptions

#: As in Ray 2.60.
BASES = {
    "ActorUnavailableError": ("RayActorError", "RayError"),
    "ActorPlacementGroupRemoved": ("RayError",),
    "AsyncioActorExit": ("RayError",),
    "CrossLanguageError": ("RayError",),
    "LocalRayletDiedError": ("RayError",),
    "ObjectFetchTimedOutError": ("ObjectLostError", "RayError"),
    "PendingCallsLimitExceeded": ("RayError",),
    "ReferenceCountingAssertionError": ("ObjectLostError", "RayError", "AssertionError"),
    "TaskPlacementGroupRemoved": ("RayError",),
    "UserCodeException": ("RayError",),
}


@pytest.mark.parametrize("name", sorted(BASES))
def test_errors_have_rays_places_and_say_whether_they_are_raised(name: str) -> None:
    kind = getattr(exceptions, name)
    ours = [base.__name__ for base in kind.__mro__[1:-1]]
    assert [base for base in ours if base in BASES[name]] == list(BASES[name])
    assert set(ours) <= {*BASES[name], "ActorError", "Exception", "BaseException"}
    assert "never raises it" in " ".join(kind.__doc__.split())


def test_every_error_has_a_code_of_its_own() -> None:
    kinds = [
        kind
        for kind in vars(exceptions).values()
        if isinstance(kind, type) and issubclass(kind, exceptions.RayError)
    ]
    shared = {"RayActorError", "ActorDiedError"}  # one is the other's name in older programs
    codes = [kind.code for kind in set(kinds) if kind.__name__ not in shared]
    assert len(codes) == len(set(codes))
    assert all("code" in vars(kind) for kind in kinds)
