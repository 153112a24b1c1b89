"""The two SVG elements that the report's figures share."""

from __future__ import annotations

from html import escape


def line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    """Return a line, its class in the style sheet first; coordinates are pixels of the figure."""
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def text(kind: str, x: float, y: float, content: str, *, anchor: str = "middle") -> str:
    """Return a text, escaped, with its baseline at y."""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
