"""Numbers, bytes and tables as people read them, and texts that do no harm where they are shown."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

__all__ = ["PLAIN", "format_bytes", "format_number", "format_table", "plain_cell", "visible"]

DASH, MINUS = "\N{EM DASH}", "\N{MINUS SIGN}"

PLAIN = "plain"
"""Name of a codec's error handler: what an encoding cannot hold is written in ASCII, or as a question mark."""

_SUBSTITUTES = {
    MINUS: "-",
    DASH: "-",
    "\N{EN DASH}": "-",
    "\N{HORIZONTAL ELLIPSIS}": "...",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{ALMOST EQUAL TO}": "~",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return what to write for characters that an encoding cannot hold, and where to go on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    hidden = error.object[error.start : error.end]
    return "".join(_SUBSTITUTES.get(each, "?") for each in hidden), error.end


codecs.register_error(PLAIN, _in_ascii)

# What a spreadsheet takes for a formula: at a cell's start and, where semicolons separate cells, after a semicolon or a
# line break inside the cell, where quotation marks may stand before it.
_FORMULA = re.compile(r"(^|[;\t\n])(?=[\s\"]*[=+\-@\t])")
_NEWLINES = re.compile("\r\n?|[\u2028\u2029\x85]")
# Control characters and those that reorder the text around them, but neither tab nor newline.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def format_bytes(number: float) -> str:
    """Return bytes in GiB, or in MiB below a tenth of one.

    Example:
        >>> format_bytes(75_024_199_680), format_bytes(3 * 2**20)
        ('69.9 GiB', '3.0 MiB')
    """
    return f"{number / 2**30:,.1f} GiB" if number >= 2**30 / 10 else f"{number / 2**20:.1f} MiB"


def format_number(
    value: object, *, places: int | None = None, sign: bool = False, share: bool = False, unit: str = ""
) -> str:
    """Return a number with a true minus sign and thousands grouped; a dash for what is not a finite number.

    Args:
        places: Decimals; None for as many as two or three figures need.
        share: Whether it is a share of 1, to be written in percent.

    Example:
        >>> format_number(1234.5), format_number(-0.01234), format_number(0.5, share=True), format_number(None)
        ('1,234', '\N{MINUS SIGN}0.012', '50 %', '\N{EM DASH}')
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        return DASH
    shown = 100 * float(value) if share else float(value)
    if places is None:
        places = 0 if share or shown.is_integer() else _places(shown)
    text = f"{shown:{'+' if sign else ''},.{places}f}"
    if text[0] in "+-" and not any(digit in text for digit in "123456789"):
        text = text[1:]  # zero has no sign
    return text.replace("-", MINUS) + (" %" if share else "") + (f" {unit}" if unit else "")


def format_table(rows: Sequence[Sequence[Any]]) -> str:
    """Return rows as a table for a terminal, columns two spaces apart.

    Args:
        rows: Cells, of which line breaks stay; at least one row.
    """
    import tabulate

    how: dict[str, Any] = {"colalign": ["left"] * len(rows[0]), "disable_numparse": True}
    if tabulate.__version__ != "0.9.0":  # Colab's, which a notebook's first table meets; it strips cells
        how["preserve_whitespace"] = True
    return tabulate.tabulate(rows, tablefmt="plain", **how)


def _places(value: float) -> int:
    """Return the decimals that show three figures, or two below 0.1, and never more than five."""
    magnitude = math.floor(math.log10(abs(value)))
    return min(5, max(0, (2 if magnitude >= -1 else 1) - magnitude))


def visible(text: str) -> str:
    r"""Make the characters visible that a browser or a terminal would hide, drop or obey.

    Returns:
        The text with every kind of line break as "\n", and control characters, bidirectional overrides and lone
        surrogates written out, such as "[U+202E]".

    Example:
        >>> visible("a\x00b")
        'a[U+0000]b'
    """
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", _NEWLINES.sub("\n", text))


def plain_cell(text: str) -> str:
    """Return a text as a spreadsheet may have it: what it would take for a formula begins with an apostrophe.

    Example:
        >>> plain_cell("@SUM(1)"), plain_cell("a;=1+1"), plain_cell("well-known")
        ("'@SUM(1)", "a;'=1+1", 'well-known')
    """
    return _FORMULA.sub(r"\1'", visible(text))
