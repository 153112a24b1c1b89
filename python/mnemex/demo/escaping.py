"""Text from outside, made safe to show: characters that cannot be seen stand out, and HTML stays text."""

from __future__ import annotations

from html import escape

# Shown as they are, these would vanish, break lines or reorder what surrounds them.
_UNSEEN = {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\t\n"} | {0x7F: "\u2421"}
_UNSEEN |= {
    i: f"\\u{i:04x}" for i in (0x85, 0x2028, 0x2029, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def visible(text: str) -> str:
    """Return text with characters that cannot be seen replaced by ones that stand for them, save tab and newline."""
    return text.translate(_UNSEEN)


def html(text: str) -> str:
    """Return text as HTML that shows it."""
    return escape(visible(text))
