"""The pages on chaos say what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from regrow.chaos import reference
from regrow.chaos.checkers import CHECKERS
from regrow.chaos.nemeses import NEMESES
from regrow.chaos.scenario import decode
from regrow.chaos.testing import Nemeses, Wanted
from regrow.chaos.workloads import WORKLOADS

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "chaos.md"


def test_the_reference_is_made_from_the_code_as_it_is() -> None:
    written = (ROOT / "docs" / "chaos-reference.md").read_text()
    assert written == reference.page(), (
        "make it anew: python -m regrow.chaos.reference > docs/chaos-reference.md"
    )


def test_the_reference_has_everything_with_a_meaning() -> None:
    page = reference.page()
    for name in [*NEMESES, *WORKLOADS, *CHECKERS]:
        assert re.search(rf"^\| `{name}` \| \S", page, re.MULTILINE), name
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(row.split(" | ")[1].strip() or "See the module" in row for row in rows)
    assert "See the module" not in page


@pytest.mark.parametrize("text", re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S))
def test_scenarios_in_the_page_make_sense(text: str) -> None:
    assert tomllib.loads(text)["nemesis"]
    decode(text, "page")


def test_the_page_names_what_the_plugin_has() -> None:
    page = PAGE.read_text()
    methods = [name for name in vars(Nemeses) if not name.startswith("_")]
    assert all(f"`{name}(" in page for name in methods)
    assert all(f"`{name}`" in page for name in Wanted.__struct_fields__)


def test_the_workflow_runs_commands_that_there_are() -> None:
    workflow = (ROOT / "examples" / "chaos-workflow.yml").read_text()
    command = " ".join(workflow[workflow.index("regrow chaos run") :].split())
    assert re.match(
        r"regrow chaos run --kill \w+ --kill \w+ --every 5 --seeds 3 "
        r"--seed \$\{\{ github.run_number \}\} --report chaos-report -- python",
        command,
    )
