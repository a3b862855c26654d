"""``python -m regrow.chaos.reference``: the page docs/chaos-reference.md, made from the code.

What scenarios may say and what it means is written beside the code that reads it: this collects it.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from regrow.chaos.checkers import ALWAYS, CHECKERS
from regrow.chaos.nemeses import NEMESES
from regrow.chaos.scenario import NemesisPlan, Scenario, load, shipped
from regrow.chaos.workloads import WORKLOADS

COMMENT: Final = re.compile(r"^    #: ?(?P<text>.*)$")
FIELD: Final = re.compile(r"^    (?P<name>\w+): (?P<type>[^=]+?)(?: = (?P<default>.*))?$")
HEAD: Final = """\
# Chaos: reference

Made from the code: `python -m regrow.chaos.reference > docs/chaos-reference.md`. How to use it:
[Chaos](chaos.md).
"""


def page() -> str:
    """The whole page."""
    parts = [
        HEAD,
        _section("Scenarios that come with regrow", ("name", "what it shows", "workload, faults"),
                 [_scenario(name) for name in shipped()]),
        _section("Keys of a scenario", ("key", "default", "meaning"), _keys(Scenario)),
        _section("Keys of a `[[nemesis]]`", ("key", "default", "meaning"), _keys(NemesisPlan)),
        _section("Nemeses", ("name", "what it does", "`options`"), [
            (f"`{name}`", _first(kind) + (" Needs `proxy = true`." if kind.needs_proxy else ""),
             _defaults(kind.Options)) for name, kind in sorted(NEMESES.items())]),
        _section("Workloads", ("name", "what it does", "`parameters`"), [
            (f"`{name}`", _first(sys.modules[kind.__module__]), _defaults(kind.Parameters))
            for name, kind in sorted(WORKLOADS.items())]),
        _section("Checkers", ("name", "what it claims", "looks"), [
            (f"`{name}`", kind.claim, "always" if kind in ALWAYS else _who_asks(name))
            for name, kind in sorted(CHECKERS.items())]),
    ]  # fmt: skip
    return "\n".join(parts)


def _section(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _first(thing: Any) -> str:
    """The first sentence of its docstring, which may go over several lines."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("``", "`")


def _scenario(name: str) -> tuple[str, str, str]:
    scenario = load(name)
    faults = ", ".join(dict.fromkeys(f"`{plan.name}`" for plan in scenario.nemesis))
    return f"`{name}`", scenario.title, f"`{scenario.workload}`: {faults}"


def _keys(kind: type[msgspec.Struct]) -> list[tuple[str, str, str]]:
    """The fields of a struct with the comments above them."""
    rows, comment = [], []
    for line in inspect.getsource(kind).splitlines():
        if found := COMMENT.match(line):
            comment.append(found["text"])
        elif found := FIELD.match(line):
            default = "required" if found["default"] is None else f"`{_toml(kind, found['name'])}`"
            rows.append((f"`{found['name']}`", default, " ".join(comment).replace("``", "`")))
            comment = []
    return rows


def _toml(kind: type[msgspec.Struct], name: str) -> str:
    """The default of a field, as TOML writes it."""
    [field] = [one for one in msgspec.structs.fields(kind) if one.name == name]
    value = field.default
    if value is msgspec.NODEFAULT:
        assert field.default_factory is not msgspec.NODEFAULT, f"{name} has a default"
        value = field.default_factory()
    return "none" if value is None else msgspec.json.encode(value).decode()


def _defaults(kind: type[msgspec.Struct]) -> str:
    """All fields of a struct with their defaults."""
    cells = [
        f"`{field.name}`" if field.required else f"`{field.name} = {_toml(kind, field.name)}`"
        for field in msgspec.structs.fields(kind)
    ]
    return ", ".join(cells)


def _who_asks(name: str) -> str:
    asking = [f"`{one}`" for one, kind in sorted(WORKLOADS.items()) if name in kind.checkers]
    return f"with the workload {', '.join(asking)}" if asking else "if a scenario names it"


if __name__ == "__main__":
    sys.stdout.write(page())
