"""The course's diagrams, drawn from numbers: LoRA's matrices, NF4's levels, the loss mask, padding and packing.

`scripts/build_drawings` writes them to helpers/display/drawings, where notebooks take them from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from tools.svg import WIDTH, Drawing

__all__ = ["NF4_LEVELS", "build_drawings", "draw_lora", "draw_mask", "draw_nf4", "draw_packing", "nearest_level"]

NF4_LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 values of NF4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E)."""

MASKED = (
    ("<s>", False),
    ("[INST]", False),
    ("▁Add", False),
    ("▁", False),
    ("2", False),
    ("▁and", False),
    ("▁", False),
    ("3", False),
    (".", False),
    ("[/INST]", False),
    ("▁", True),
    ("5", True),
    ("</s>", True),
)
"""A row as Mistral's tokenizer cuts it, and which tokens are learned."""

ATTENDS = (
    "A line is a token. It sees",
    "itself and the tokens before",
    "it in its own row, and nothing",
    "of the rows beside it.",
)
"""What the last picture of `draw_packing` shows."""

ROLES = ("learned", "second", "third", "fourth")
"""A colour for each row of `draw_packing`."""

MARGIN = 16
"""Units left free at each side."""

SPREAD = 0.36
"""Standard deviation of weights divided by the largest of their block of 64: about what is usual."""

ALPHA, MINUS, TIMES = "\N{GREEK SMALL LETTER ALPHA}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def build_drawings() -> dict[str, str]:
    """Return the SVG of each drawing that the package carries, by name."""
    drawings = {
        "lora": draw_lora(),
        "lora_small": draw_lora(6, 4, 2),
        "mask": draw_mask(),
        "nf4": draw_nf4(),
        "packing": draw_packing(),
    }
    return {name: drawing.svg() + "\n" for name, drawing in drawings.items()}


def draw_lora(inputs: int = 4096, outputs: int = 4096, rank: int = 16) -> Drawing:
    """Draw a linear layer's matrix, and the two thin ones that LoRA learns beside it.

    Small matrices, of up to 12 rows and columns, show their cells; of large ones the thin side is drawn thicker than it
    is.
    """
    frozen, learned = inputs * outputs, rank * (inputs + outputs)
    scale = 120 / max(inputs, outputs)
    wide, high, thin = inputs * scale, outputs * scale, max(rank * scale, 10)
    said = (
        f"W has {outputs:,} x {inputs:,} = {frozen:,} numbers and stays as it is. A ({rank} x {inputs:,}) and "
        f"B ({outputs:,} x {rank}) have {learned:,} together and are learned. The output is W x + ({ALPHA} / r) B A x."
    )
    drawing = Drawing(high + 136, "LoRA: a frozen matrix and two thin ones", said)
    drawing.text(MARGIN, 28, f"output = W x + ({ALPHA} / r) · B A x", bold=True, size=15)
    top, places = 48.0, [MARGIN, MARGIN + wide + 32, MARGIN + wide + 32 + thin + 24]
    sizes = [
        (wide, high, inputs, outputs, "given"),
        (thin, high, rank, outputs, "learned"),
        (wide, thin, inputs, rank, "learned"),
    ]
    for x, (width, height, columns, rows, role) in zip(places, sizes, strict=True):
        drawing.box(x, top, width, height, role)
        if max(inputs, outputs) <= 12:
            _grid(drawing, x, top, width, height, columns, rows)
    drawing.text(places[1] - 16, top + high / 2 + 6, "+", size=20, anchor="middle")
    drawing.text(places[2] - 12, top + high / 2 + 6, "·", size=20, anchor="middle")
    drawing.text(places[0], top + high + 20, f"W  {outputs:,} {TIMES} {inputs:,}")
    drawing.text(places[1], top + high + 20, f"B  {outputs:,} {TIMES} {rank}")
    drawing.text(places[2], top + thin + 20, f"A  {rank} {TIMES} {inputs:,}")
    _key(drawing, MARGIN, top + high + 48, "given", f"{frozen:,} numbers, frozen")
    _key(
        drawing,
        MARGIN,
        top + high + 70,
        "learned",
        f"{learned:,} numbers, learned: {100 * learned / frozen:.1f} % of W's",
    )
    return drawing


def draw_nf4() -> Drawing:
    """Draw NF4's 16 levels under the bell curve of a model's weights, and a block of weights rounded to them."""
    weights = (0.021, -0.112, 0.004, 0.058)
    scale = max(abs(weight) for weight in weights)
    codes = [nearest_level(weight / scale) for weight in weights]
    pairs = list(zip(weights, codes, strict=True))
    kept = ", ".join(f"{weight:.3f} becomes {NF4_LEVELS[code] * scale:.3f}" for weight, code in pairs)
    said = f"The levels lie close together near zero, where most weights are. With the scale {scale:g}, {kept}."
    drawing = Drawing(208 + 22 * len(weights), "NF4: sixteen levels and a scale", said)
    drawing.text(MARGIN, 28, "Sixteen levels, close together near zero", bold=True, size=15)
    middle, half, base = WIDTH / 2, WIDTH / 2 - 24, 128
    steps = [step / 50 for step in range(-50, 51)]
    bell = [(middle + half * x, base - 76 * math.exp(-(x**2) / (2 * SPREAD**2))) for x in steps]
    drawing.line(bell, "dim")
    drawing.line([(middle - half, base), (middle + half, base)])
    for level in NF4_LEVELS:
        drawing.line([(middle + half * level, base), (middle + half * level, base - 20)], "learned", thick=2.5)
    for weight in weights:
        drawing.dot(middle + half * weight / scale, base, 4.5, "second")
    for value, name in ((-1, f"{MINUS}1"), (0, "0"), (1, "1")):
        drawing.text(middle + half * value, base + 20, name, anchor="middle", size=12)
    _block(drawing, base + 48, scale, pairs)
    return drawing


def draw_mask() -> Drawing:
    """Draw a short row of tokens above its labels: what is given, and what is learned."""
    said = (
        "Of the tokens "
        + " ".join(piece for piece, _ in MASKED)
        + " the last three are learned; the others have the label -100."
    )
    drawing = Drawing(258, "The mask: which tokens are learned", said)
    drawing.text(MARGIN, 28, "Labels say which tokens are learned", bold=True, size=15)
    across, cell = 7, (WIDTH - 2 * MARGIN) / 7
    for number, (piece, learned) in enumerate(MASKED):
        x, y = MARGIN + cell * (number % across), 48 + 84 * (number // across)
        role, ink = ("learned", "on-learned") if learned else ("given", "ink")
        drawing.box(x + 1, y, cell - 2, 28, role)
        drawing.text(x + cell / 2, y + 19, piece, ink, anchor="middle", size=11, mono=True)
        label, shade = (piece, "learned") if learned else (f"{MINUS}100", "dim")
        drawing.text(x + cell / 2, y + 50, label, shade, anchor="middle", size=12, mono=True, bold=learned)
    _key(drawing, MARGIN, 222, "given", "given: no loss")
    _key(drawing, MARGIN + 140, 222, "learned", "learned, with its end")
    drawing.text(MARGIN, 242, "Upper line: token. Lower line: label. ▁ is a space.", "dim", size=12)
    return drawing


def draw_packing() -> Drawing:
    """Draw rows padded, end to end and packed, and which tokens attend to which.

    The number in a place is the token's position in its row.
    """
    lengths, limit = (7, 3, 5, 4), 10
    total, longest = sum(lengths), max(lengths)
    bins = _first_fit(lengths, limit)
    said = (
        f"{len(lengths)} rows have {total} tokens. Padded, they take {longest * len(lengths)} places; end to end "
        f"{total}; packed to {limit}, {len(bins)} sequences. In each case a token attends to its own row only."
    )
    drawing = Drawing(476, "Padding, end to end, packing", said)
    cell, y = min(18.0, (WIDTH - 2 * MARGIN) / total), 28.0
    drawing.text(MARGIN, y, f"Padded: {longest * len(lengths)} places for {total} tokens", bold=True, size=15)
    for number, length in enumerate(lengths):
        _row(drawing, MARGIN, y + 12 + 20 * number, cell, [(number, length)], longest)
    y += 42 + 20 * len(lengths)
    drawing.text(MARGIN, y, f"End to end: {total} places", bold=True, size=15)
    _row(drawing, MARGIN, y + 12, cell, list(enumerate(lengths)), total)
    y += 62
    drawing.text(MARGIN, y, f"Packed: sequences of up to {limit} places", bold=True, size=15)
    for number, rows in enumerate(bins):
        _row(drawing, MARGIN, y + 12 + 20 * number, cell, [(row, lengths[row]) for row in rows], limit)
    y += 42 + 20 * len(bins)
    drawing.text(MARGIN, y, "Who attends to whom", bold=True, size=15)
    _attention(drawing, MARGIN, y + 12, 7, lengths)
    for line, words in enumerate(ATTENDS):
        drawing.text(MARGIN + 7 * total + 20, y + 32 + 20 * line, words)
    return drawing


def nearest_level(value: float) -> int:
    """Return the number of the NF4 level that is nearest to a value.

    Args:
        value: A weight divided by its block's scale, between -1 and 1.

    Example:
        >>> nearest_level(0.5)
        12
    """
    return min(range(len(NF4_LEVELS)), key=lambda code: abs(NF4_LEVELS[code] - value))


def _block(drawing: Drawing, y: float, scale: float, pairs: Sequence[tuple[float, int]]) -> None:
    """Write a table of weights, each divided by the scale, rounded to a level and multiplied by the scale."""
    columns = (92, 180, 288, WIDTH - MARGIN)
    for x, name in zip(columns, ("weight", f"÷ {scale:g}", "nearest level", "kept as"), strict=True):
        drawing.text(x, y, name, "dim", anchor="end")
    drawing.line([(MARGIN, y + 8), (WIDTH - MARGIN, y + 8)], thick=1)
    for number, (weight, code) in enumerate(pairs):
        level, line = NF4_LEVELS[code], y + 28 + 22 * number
        drawing.dot(MARGIN + 6, line - 4, 4.5, "second")
        cells = (weight, weight / scale, level, level * scale)
        for x, cell in zip(columns, cells, strict=True):
            drawing.text(x, line, _signed(cell), "learned" if cell is level else "ink", anchor="end")
        drawing.text(columns[2] - 52, line, f"{code}:", "learned", anchor="end", bold=True)


def _signed(number: float) -> str:
    """Return a number with three decimals and a proper minus sign."""
    return f"{number:.3f}".replace("-", MINUS)


def _key(drawing: Drawing, x: float, y: float, role: str, words: str) -> None:
    """Draw a coloured square and what it stands for."""
    drawing.box(x, y - 11, 13, 13, role)
    drawing.text(x + 20, y, words)


def _grid(drawing: Drawing, x: float, y: float, width: float, height: float, columns: int, rows: int) -> None:
    """Draw the cells of a small matrix."""
    for step in range(1, columns):
        at = x + width * step / columns
        drawing.line([(at, y), (at, y + height)], "paper", thick=1)
    for step in range(1, rows):
        at = y + height * step / rows
        drawing.line([(x, at), (x + width, at)], "paper", thick=1)


def _row(drawing: Drawing, x: float, y: float, cell: float, parts: Sequence[tuple[int, int]], places: int) -> None:
    """Draw rows side by side, each in its colour with its positions, then empty places."""
    place = 0
    for number, length in parts:
        role = ROLES[number]
        for position in range(length):
            left = x + cell * place
            drawing.box(left, y, cell, 18, role)
            drawing.text(left + cell / 2, y + 13, str(position), f"on-{role}", size=11, anchor="middle", bold=True)
            place += 1
    for empty in range(place, places):
        drawing.box(x + cell * empty, y, cell, 18, "none", dashed=True)


def _attention(drawing: Drawing, x: float, y: float, cell: float, lengths: Sequence[int]) -> None:
    """Draw the matrix of who attends to whom: a triangle for each row."""
    total = sum(lengths)
    drawing.box(x, y, cell * total, cell * total, "none")
    for number, (length, end) in enumerate(zip(lengths, accumulate(lengths), strict=True)):
        start = end - length
        for line in range(length):
            drawing.box(x + cell * start, y + cell * (start + line), cell * (line + 1), cell, ROLES[number], edge=False)


def _first_fit(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Return which rows share a sequence: each goes into the first that has room."""
    bins: list[list[int]] = []
    for number, length in enumerate(lengths):
        fits = (rows for rows in bins if sum(lengths[row] for row in rows) + length <= limit)
        rows = next(fits, None)
        if rows is None:
            bins.append([number])
        else:
            rows.append(number)
    return bins
