"""Elements of HTML and SVG as text: whatever comes from a run is escaped here, once."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from typing import Final

#: What no XML document may have in it, not even escaped.
_NOT_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *content: str | Markup, **attributes: object) -> Markup:
    """One element. ``class_`` is ``class``, ``stroke_width`` is ``stroke-width``; None is left
    out; numbers are written short."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{given}>{join(content)}</{tag}>")


def join(parts: Iterable[str | Markup]) -> Markup:
    """One after the other; plain text is escaped."""
    return Markup("".join(part if isinstance(part, Markup) else _text(part) for part in parts))


def printable(text: str) -> str:
    """Without the characters that XML forbids."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return html.escape(printable(str(value)))
