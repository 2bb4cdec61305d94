"""One tuned answer, token by token, coloured by how the base model ranks each token."""

from __future__ import annotations

from collections.abc import Sequence

from helpers.display.style import INK, WORSE, Drawing, new_figure, plain_text
from helpers.evaluation.metrics.token_shift import ShiftedToken, describe_shift, shift_of

__all__ = ["draw_shift", "lay_out"]

_COLUMNS = 40  # characters in a line; more would be too small on a phone
_LINES = 18
_FILLS = {"unshifted": "none", "marginal": "#56B4E9", "shifted": WORSE}


def lay_out(tokens: Sequence[ShiftedToken], columns: int = _COLUMNS) -> list[tuple[int, int, str, str]]:
    """Place tokens on a grid of characters, breaking lines between tokens.

    Args:
        tokens: In order.
        columns: Characters in a line.

    Returns:
        (line, column, text, class) of each piece that shows; white space at a line's start is dropped.
    """
    placed, line, column = [], 0, 0
    for token in tokens:
        breaks = token.text.count("\n")
        text = plain_text(token.text).replace(r"\$", "$")
        space = bool(token.text) and token.text[0].isspace() and column > 0 and not breaks
        if breaks and column:
            line, column = line + min(breaks, 2), 0
        text = text[:columns]
        hangs = 2 if not any(c.isalnum() for c in text) else 0  # a full stop may stick out
        if column + space + len(text) > columns + hangs:
            line, column, space = line + 1, 0, False
        if text:
            placed.append((line, column + space, text, shift_of(token.rank)))
        column += space + len(text)
    return placed


def draw_shift(tokens: Sequence[ShiftedToken], title: str) -> Drawing:
    """Draw an answer with the tokens marked that the base model would not have chosen.

    Args:
        tokens: From `helpers.evaluation.generate.token_shift`.
        title: The prompt, in a few words.

    Returns:
        The picture; of a long answer, its beginning.
    """
    placed = [each for each in lay_out(tokens) if each[0] < _LINES]
    lines = max((line for line, *_ in placed), default=0) + 1
    figure, axes = new_figure(0.3 + 0.27 * (lines + 2), width=4.4, grid="")
    axes.set_axis_off()
    axes.set_xlim(0, _COLUMNS + 2)
    axes.set_ylim(lines + 1.6, -0.6)
    for line, column, text, shift in placed:
        _mark(axes, line, column, text, shift)
    for place, (shift, words) in enumerate((("marginal", "rank 2-3"), ("shifted", "rank 4 and beyond"))):
        _mark(axes, lines + 0.9, 13 * place, words, shift)
    if not placed:
        axes.text(0, 0, "(the answer is empty)", va="center", family="DejaVu Sans Mono", fontsize=11.8)
    return Drawing("token_shift", f"Token shift: {plain_text(title, 60)}", _caption(tokens, lines), figure)


def _mark(axes: object, line: float, column: int, text: str, shift: str) -> None:
    """Write one token on its background; shifted ones are underlined too."""
    from matplotlib.patches import Rectangle

    if _FILLS[shift] != "none":
        box = Rectangle((column, line - 0.42), len(text), 0.84, facecolor=_FILLS[shift], alpha=0.38, linewidth=0)
        axes.add_patch(box)
    if shift == "shifted":
        axes.plot([column, column + len(text)], [line + 0.42] * 2, color=WORSE, linewidth=1.6, solid_capstyle="butt")
    style = {"family": "DejaVu Sans Mono", "fontsize": 11.8, "color": INK, "parse_math": False}
    for offset, character in enumerate(text):
        axes.text(column + offset + 0.5, line, character, va="center", ha="center", **style)


def _caption(tokens: Sequence[ShiftedToken], lines: int) -> str:
    text = "The base model reads the answer. Plain is what it would have written itself, marked what it would not."
    cut = " The picture shows the beginning." if lines >= _LINES else ""
    return f"{text} {describe_shift(tokens)}{cut}"
