"""Commands and programs shown in README and docs, run as shown.

A fence marked ``test`` (```python test, ```console test) is run; an ``output`` fence after it is
what it must print. The blocks of a page run in order in one private home. Commands in unmarked
fences are checked to exist with the options shown.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK_TIMEOUT_S = 90
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, whether it is to be run, and what it must print."""

    language: str
    run: bool
    body: str
    line: int
    output: str | None = None


def blocks(text: str) -> list[Block]:
    found: list[Block] = []
    for match in FENCE.finditer(text):
        language, *marks = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 1
        if language == "output":
            tested = found.pop()
            found.append(
                Block(tested.language, tested.run, tested.body, tested.line, match["body"])
            )
        else:
            found.append(Block(language, "test" in marks, match["body"], line))
    return found


def commands(block: Block) -> list[str]:
    joined = block.body.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def pages_with(run: bool, language: str | None = None) -> list[Path]:
    return [
        page
        for page in PAGES
        if any(
            block.run == run
            and block.language in ({language} if language else {"python", "console"})
            for block in blocks(page.read_text())
        )
    ]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    variables = {
        **os.environ,
        "REGROW_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
    }
    yield variables
    subprocess.run(
        ["regrow", "stop"], env=variables, check=False, capture_output=True, timeout=BLOCK_TIMEOUT_S
    )


def shell(arguments: list[str], environment: dict[str, str], where: str) -> str:
    finished = subprocess.run(
        arguments,
        env=environment,
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=BLOCK_TIMEOUT_S,
    )
    assert finished.returncode == 0, f"{where}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


def run_block(block: Block, environment: dict[str, str], script: Path, where: str) -> str:
    if block.language == "python":
        script.write_text(block.body)
        return shell([sys.executable, str(script)], environment, where)
    assert block.language == "console", f"{where}: only python and console blocks can be run"
    asked = commands(block)
    assert asked, f"{where}: no line begins with '$ '"
    return "".join(shell(["bash", "-c", one], environment, f"{where}: {one}") for one in asked)


@pytest.mark.parametrize("page", pages_with(run=True), ids=page_name)
def test_blocks_run_and_print_what_the_page_says(
    page: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    for block in blocks(page.read_text()):
        if not block.run:
            continue
        where = f"{page_name(page)}:{block.line}"
        printed = run_block(block, environment, tmp_path / "block.py", where)
        if block.output is not None:
            assert printed.rstrip() == block.output.rstrip(), where


@pytest.mark.parametrize("page", pages_with(run=False, language="console"), ids=page_name)
def test_commands_that_are_not_run_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for block in blocks(page.read_text()):
        if block.run or block.language != "console":
            continue
        for command in commands(block):
            program, *words = shlex.split(command, comments=True)
            where = f"{page_name(page)}:{block.line}: {command}"
            if program == "make":
                assert set(words) <= targets, where
            elif program == "python":
                script = ROOT / words[0]
                assert script.exists(), where
                for option in (word for word in words if word.startswith("--")):
                    assert f'"{option}"' in script.read_text(), where
            elif program == "regrow":
                if "--" in words:
                    words = words[: words.index("--")]
                named = words[: 2 if words[0] in ("job", "db", "chaos") else 1]
                arguments = [str(Path(sys.executable).parent / "regrow"), *named, "--help"]
                usage = shell(arguments, {**os.environ, "COLUMNS": "200"}, where)
                for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                    assert option in usage, where
            else:
                assert program in {"pip", "git", "psql", "createdb", "export"}, where
