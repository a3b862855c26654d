"""Which results a function whose code has changed may find."""

from __future__ import annotations

import pytest

from regrow._resuming import Changes
from regrow.exceptions import CodeChangedError
from regrow.messages import FunctionDef


def code(version: str, name: str = "f", module: str = "main") -> FunctionDef:
    number = f"{name} {version}".encode().ljust(16)
    return FunctionDef(number, name, b"pickled", module.encode() + version.encode() * 12)


def ran(*definitions: FunctionDef) -> list[tuple[str, bytes]]:
    return [(known.name, known.fingerprint) for known in definitions]


OLD, NEW, NEWER = code("a"), code("b"), code("c")


def test_what_ran_before_and_what_never_ran_are_as_they_are() -> None:
    for policy in ("error", "rerun", "keep"):
        changes = Changes("nightly", ran(OLD), policy)
        for definition in (OLD, code("b", "g"), code("b", module="mine"), code("b", "<lambda>")):
            resolved = changes.resolve(definition)
            assert (resolved.definition, resolved.version) == (definition, b"")


def test_changed_code_is_an_error_that_names_both() -> None:
    words = f"the code of f is not what .* was {b'a'.hex() * 6} and is {b'b'.hex() * 6}"
    with pytest.raises(CodeChangedError, match=words):
        Changes("nightly", ran(OLD), "error").resolve(NEW)
    with pytest.raises(CodeChangedError, match="was 62"):
        Changes("nightly", ran(OLD, NEW), "error").resolve(NEWER)


def test_changed_code_that_runs_again_has_other_keys_from_then_on() -> None:
    first = Changes("nightly", ran(OLD), "rerun").resolve(NEW)
    assert first.definition == NEW
    assert first.version
    assert Changes("nightly", ran(OLD, NEW), "error").resolve(NEW) == first
    assert Changes("nightly", ran(OLD, NEW), "error").resolve(OLD).version == b""


def test_kept_results_stay_those_of_the_old_code() -> None:
    kept = Changes("nightly", ran(OLD), "keep").resolve(NEW)
    assert kept.definition.fingerprint == OLD.fingerprint
    assert kept.definition.function_id not in (OLD.function_id, NEW.function_id)
    assert kept.version == b""
    # What is logged under it does not make the new code known.
    with pytest.raises(CodeChangedError):
        Changes("nightly", ran(OLD, kept.definition), "error").resolve(NEW)
    last = Changes("nightly", ran(OLD, NEW), "keep").resolve(NEWER)
    assert last.definition.fingerprint == NEW.fingerprint


def test_whose_results_to_keep_is_never_guessed() -> None:
    changes = Changes("nightly", ran(OLD, NEW), "keep")
    changes.resolve(OLD)
    with pytest.raises(CodeChangedError, match="several functions f in one module"):
        changes.resolve(NEWER)
