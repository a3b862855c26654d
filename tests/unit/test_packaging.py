"""What is tracked is what is shipped, and what is shipped installs on every Python we support.

The components are linked into the package. A build that meets a folder twice may drop it without a
word, so the wheel, built from the source distribution as installers do, is compared with git.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPONENTS = ("gcs", "scheduler", "objectstore", "chaos")
PYTHONS = ("python3.11", "python3.12", "python3.13")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, away from this checkout's environment."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "REGROW_")) and name != "VIRTUAL_ENV"
    }
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def tracked_files() -> list[Path]:
    """Every tracked file that exists in the working tree, relative to the root; links are files."""
    if not (ROOT / ".git").exists():
        pytest.skip("what is tracked can be told in a git checkout only")
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    paths = [Path(name) for name in names if name]
    return [path for path in paths if os.path.lexists(ROOT / path)]


def shipped_name(path: Path) -> str | None:
    """Where a tracked file belongs in the wheel; None if it is not part of the package."""
    if (ROOT / path).is_symlink():
        return None
    if path.parts[:2] == ("client", "regrow"):
        return path.relative_to("client").as_posix()
    if path.parts[0] in COMPONENTS:
        return f"regrow/{path.as_posix()}"
    return None


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tracked files alone, as a fresh clone has them."""
    folder = tmp_path_factory.mktemp("checkout")
    for path in tracked_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target, follow_symlinks=False)
    return folder


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a distribution with hatchling, which needs no environment of its own."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target, cwd=source)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of the checkout."""
    return build("sdist", checkout, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that installers make from the source distribution."""
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def packaged_names(wheel: Path) -> list[str]:
    """The files of a wheel without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def expected_names() -> list[str]:
    return sorted(name for path in tracked_files() if (name := shipped_name(path)) is not None)


def test_each_component_is_linked_into_the_package() -> None:
    for component in COMPONENTS:
        link = ROOT / "client" / "regrow" / component
        assert link.is_symlink()
        assert os.readlink(link) == f"../../{component}"


def test_a_wheel_made_from_the_source_distribution_has_every_tracked_file(wheel: Path) -> None:
    assert packaged_names(wheel) == expected_names()


def test_a_wheel_made_from_the_checkout_has_every_tracked_file(
    checkout: Path, tmp_path: Path
) -> None:
    assert packaged_names(build("wheel", checkout, tmp_path)) == expected_names()


def test_the_source_distribution_can_run_the_tests(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.as_posix() for path in tracked_files() if path.parts[0] == "tests"}
    assert wanted <= names
    assert {"pyproject.toml", "Makefile", "LICENSE"} <= names


def test_the_wheel_carries_the_licence_and_the_typing_marker(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (licence,) = [name for name in names if name.endswith("/LICENSE")]
        assert b"Apache License" in archive.read(licence)
    assert "regrow/py.typed" in names


def interpreters() -> Iterator[tuple[str, str]]:
    """Each supported version with an interpreter that really runs; a shim on PATH may not."""
    managed = sorted(Path.home().glob(".pyenv/versions/*/bin"), reverse=True)
    for name in PYTHONS:
        candidates = [shutil.which(name), *(str(folder / name) for folder in managed)]
        for candidate in candidates:
            if candidate and _runs(candidate):
                yield name, candidate
                break


def _runs(interpreter: str) -> bool:
    try:
        probe = [interpreter, "-c", "import ensurepip, venv"]
        return subprocess.run(probe, capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


FOUND = list(interpreters())


def test_a_supported_python_was_found() -> None:
    assert FOUND, f"none of {', '.join(PYTHONS)} runs and can make virtual environments"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder whose contents are too large to be kept for the next runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "interpreter", [path for _, path in FOUND], ids=[name for name, _ in FOUND]
)
def test_the_wheel_installs_and_runs(wheel: Path, scratch: Path, interpreter: str) -> None:
    run(interpreter, "-m", "venv", scratch / "venv", cwd=scratch)
    programs = scratch / "venv" / "bin"
    pip = (programs / "python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-compile", wheel, cwd=scratch)
    run(*pip, "check", cwd=scratch)
    program = (
        "import compileall, pathlib, regrow; from regrow.gcs import embedded; "
        "package = pathlib.Path(regrow.__file__).parent; "
        "assert compileall.compile_dir(package, quiet=1), 'a module does not compile'; "
        "print(package); print(embedded.find_binaries())"
    )
    places = run(programs / "python", "-I", "-c", program, cwd=scratch).splitlines()
    assert all(Path(place).is_relative_to(scratch) for place in places), places
    assert "Usage" in run(programs / "regrow", "--help", cwd=scratch)
