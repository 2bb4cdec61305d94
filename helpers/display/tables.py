"""What notebooks show: escaped tables, token masks and plots, each also as plain text for a log."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from helpers.core.files import write_bytes
from helpers.core.text import format_table, visible
from helpers.display.style import INK, LEARNED, NEITHER, SOFT, characters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


__all__ = ["Shown", "plot_categories", "plot_lengths", "plot_losses", "show_mask", "show_table"]

_CELL = "padding:.35em .8em;text-align:left;vertical-align:top;border-bottom:1px solid #8884;white-space:pre-wrap"
_SCROLL = "overflow-x:auto;max-width:100%"


class Shown:
    """Something to look at: HTML in a notebook, plain text anywhere else."""

    def __init__(self, html: str, text: str) -> None:
        self.html = html
        self.text = text

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


class Picture:
    """A picture file to look at: itself in a notebook, its name anywhere else.

    A figure that pyplot does not know of shows as text in a notebook, and importing pyplot would choose a backend.

    Args:
        note: Text to stand below it, such as a key that the picture's font cannot write.
    """

    def __init__(self, path: Path | str, note: str = "") -> None:
        self.path = Path(path)
        self.note = note

    def _repr_png_(self) -> bytes | None:
        return None if self.note else self.path.read_bytes()

    def _repr_html_(self) -> str | None:
        if not self.note:
            return None
        source = base64.b64encode(self.path.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{source}"><p style="white-space:pre-wrap">{escape(self.note)}</p>'

    def __repr__(self) -> str:
        return f"picture: {self.path.name}" + (f"\n{self.note}" if self.note else "")


def show_table(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], *, limit: int = 600) -> Shown:
    """Show rows as a table, or one mapping as two columns.

    Args:
        rows: Each with the same keys; or one mapping of names to values.
        limit: Characters after which a cell is cut.

    Returns:
        The table; every value is escaped, and what a page or a terminal would obey is written out.
    """
    if isinstance(rows, Mapping):
        lines = [[visible(str(k)), _cell(v, limit)] for k, v in rows.items()]
        head: list[str] = []
    else:
        names = list(rows[0]) if rows else []
        head = [visible(name) for name in names]
        lines = [[_cell(row.get(name, ""), limit, group=1_000) for name in names] for row in rows]
    html_head = "".join(f'<th style="{_CELL}">{escape(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(f'<td style="{_CELL}">{escape(c)}</td>' for c in line) + "</tr>" for line in lines)
    html = f'<div style="{_SCROLL}"><table style="border-collapse:collapse"><tr>{html_head}</tr>{body}</table></div>'
    return Shown(html, _plain_table(head, lines))


def show_mask(row: Mapping[str, Any], tokenizer: Any) -> Shown:
    """Show a row token by token, what the loss is taken over underlined and coloured.

    Args:
        row: With `input_ids` and `completion_mask`.

    Returns:
        The tokens in order; a line break shows as ⏎.
    """
    pieces: list[str] = []
    given: list[str] = []
    learned: list[str] = []
    for token, on in zip(row["input_ids"], row["completion_mask"], strict=True):
        text = visible(tokenizer.decode([token]).replace("\n", "⏎"))
        (learned if on else given).append(text)
        style = f"background:{LEARNED};color:#fff;text-decoration:underline" if on else "background:#8883"
        pieces.append(
            f'<span style="{style};border-radius:3px;padding:0 .15em;margin:1px;display:inline-block;'
            f'white-space:pre" title="id {token}">{escape(text)}</span>'
        )
    key = (
        f"<p><b>{len(learned)} of {len(row['input_ids'])} tokens are learned</b> (underlined, blue); "
        "the grey ones are given.</p>"
    )
    html = f'{key}<div style="line-height:1.9;font-family:monospace;overflow-wrap:anywhere">{"".join(pieces)}</div>'
    text = f"given ({len(given)}): {'|'.join(given)}\nlearned ({len(learned)}): {'|'.join(learned)}"
    return Shown(html, text)


def plot_losses(metrics: Mapping[str, Any], path: Path | str) -> Picture:
    """Plot training and held-out loss over the optimizer steps, and save the picture.

    Args:
        metrics: With `train_loss` and `eval_loss`, lists of [step, loss in nats a token].
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(3.2)
    steps, losses = zip(*metrics["train_loss"], strict=True)
    axes.plot(steps, losses, color=NEITHER, linewidth=1.2, label="training rows, one step each")
    held_steps, held = zip(*metrics["eval_loss"], strict=True)
    axes.plot(held_steps, held, color=LEARNED, marker="o", linewidth=2, label="held-out rows")
    ends = ((held_steps[0], held[0], held[1:2], "left"), (held_steps[-1], held[-1], held[-2:-1], "right"))
    for step, loss, beside, side in ends:
        below = bool(beside) and loss < beside[0]  # clear of the line
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, -19 if below else 9), "ha": side}
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}  # the grey line may pass here
        axes.annotate(f"{loss:.3f}", (step, loss), **place, color=LEARNED, bbox=paper)
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    axes.margins(y=0.18)
    return _save(figure, path)


def plot_categories(rows: Sequence[Mapping[str, Any]], path: Path | str) -> Picture:
    """Plot how many rows each category has, and how long their answers are.

    Args:
        rows: With a `response`, or as messages, a `completion`; without a `category` they count as "(none)". Of more
            than 30 categories the smallest are drawn as one.
    """
    from matplotlib.ticker import MaxNLocator

    words: dict[str, list[int]] = {}
    for row in rows:
        answers = [m["content"] for m in row["completion"] if m["role"] == "assistant"] if "completion" in row else []
        words.setdefault(row.get("category") or "(none)", []).append(
            len(row.get("response", " ".join(answers)).split())
        )
    for name in sorted(words, key=lambda name: -len(words[name]))[30:]:
        words.setdefault("(other)", []).extend(words.pop(name))
    names = sorted(words, key=lambda name: len(words[name]))
    figure, axes = _figure(0.8 + 0.3 * len(names), grid="x")
    bars = axes.barh(names, [len(words[name]) for name in names], color=LEARNED)
    medians = [sorted(words[name])[len(words[name]) // 2] for name in names]
    axes.bar_label(bars, [f"median {m} words" for m in medians], padding=4, color=SOFT, fontsize=8)
    axes.set_xlabel("rows")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.5)
    note = ""
    if not characters("DejaVu Sans").issuperset(
        map(ord, "".join(names))
    ):  # numbers, from the top down, and a key in the page's own fonts
        axes.set_yticks(range(len(names)), [str(number) for number in range(len(names), 0, -1)])
        note = "\n".join(f"{number}: {name}" for number, name in enumerate(reversed(names), 1))
    return _save(figure, path, note)


def plot_lengths(lengths: Sequence[int], limit: int, path: Path | str) -> Picture:
    """Plot how long the rows are.

    Args:
        lengths: Tokens of each row.
        limit: The length that no row may exceed, in tokens.
    """
    figure, axes = _figure(2.4)
    axes.hist(lengths, bins=min(40, max(len(set(lengths)), 1)), color=LEARNED)
    if max(lengths) > 0.6 * limit:
        axes.axvline(limit, color=INK, linestyle="--", label=f"max_seq_length = {limit}")
        axes.legend(frameon=False)
    axes.set_xlabel("tokens in a row")
    axes.set_ylabel("rows")
    return _save(figure, path)


def _cell(value: Any, limit: int, *, group: int = 10_000) -> str:
    """Return a value as text, floats with four figures, numbers from `group` on grouped, long text cut.

    A column groups from a thousand on, so that its numbers look alike; a parameter such as the seed 3407 does not.
    """
    long_number = type(value) is int and value >= group
    if isinstance(value, float):
        text = f"{value:.4g}" if value >= 0 else f"\N{MINUS SIGN}{-value:.4g}"
    else:
        text = f"{value:,}" if long_number else visible(str(value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table for a terminal; cells with line breaks keep their first line."""
    short = [[(c.splitlines() or [""])[0][:70] for c in line] for line in ([head] if head else []) + list(lines)]
    if not short:
        return "(empty)"
    return format_table(short)


def _figure(height: float, *, grid: Literal["x", "y"] = "y") -> tuple[Figure, Axes]:
    """Return a figure that can be read on a phone, of a height in inches; pyplot does not know of it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, height), dpi=130, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path | str, note: str = "") -> Picture:
    """Write the picture."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(Path(path), content.getvalue())
    return Picture(path, note)
