"""Foreign error texts, made fit for one line."""

from __future__ import annotations


def one_line(error: Exception) -> str:
    """The error's text without line breaks, at most 300 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:300] + "..."
