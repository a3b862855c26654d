"""JUnit XML, as CI services read it: a suite for each scenario and seed, a case for a checker."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable

from regrow.chaos.reports.markup import printable
from regrow.chaos.result import CheckResult, RunResult


def junit(results: Iterable[RunResult]) -> bytes:
    """The document."""
    root = ET.Element("testsuites", name="regrow chaos")
    for result in results:
        root.append(_suite(result))
    totals = {
        what: str(sum(int(suite.get(what, "0")) for suite in root))
        for what in ("tests", "failures", "errors")
    }
    root.attrib.update(totals)
    ET.indent(root)
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _suite(result: RunResult) -> ET.Element:
    name = f"{result.scenario.name} seed {result.seed}"
    broken = bool(result.broken)
    suite = ET.Element(
        "testsuite",
        name=printable(name),
        tests=str(len(result.checks) + broken),
        failures=str(sum(not check.passed for check in result.checks)),
        errors=str(int(broken)),
        skipped="0",
        time=f"{result.took_s:.3f}",
    )
    if result.begun_at:
        suite.set("timestamp", result.begun_at.removesuffix("+00:00"))
    properties = ET.SubElement(suite, "properties")
    for key, value in (("seed", str(result.seed)), ("command", result.command)):
        ET.SubElement(properties, "property", name=key, value=printable(value))
    if broken:
        case = _case(suite, result, "verdict", f"{result.took_s:.3f}")
        error = ET.SubElement(case, "error", message=printable(result.broken.split("\n")[0]))
        error.text = printable(f"{result.broken}\n\nagain: {result.command}")
    for check in result.checks:
        _checked(suite, result, check)
    return suite


def _checked(suite: ET.Element, result: RunResult, check: CheckResult) -> None:
    case = _case(suite, result, check.name, "0.000")
    if check.passed:
        return
    failure = ET.SubElement(case, "failure", message=printable(f"not so: {check.claim}"))
    lines = list(check.findings)
    if check.count > len(lines):
        lines.append(f"and {check.count - len(lines)} more")
    failure.text = printable("\n".join([*lines, "", f"again: {result.command}"]))


def _case(suite: ET.Element, result: RunResult, name: str, time: str) -> ET.Element:
    classname = f"chaos.{result.scenario.name}.seed-{result.seed}"
    return ET.SubElement(
        suite, "testcase", classname=printable(classname), name=printable(name), time=time
    )  # fmt: skip
