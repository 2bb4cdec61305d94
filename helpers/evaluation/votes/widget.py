"""Blind voting inside a notebook, with core ipywidgets only."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from helpers.core.errors import EvaluationError
from helpers.evaluation.pages import visible
from helpers.evaluation.votes.ballots import CRITERIA, TICKS, Vote
from helpers.evaluation.votes.votes import BlindItem

if TYPE_CHECKING:
    from ipywidgets import VBox

__all__ = ["vote_widget"]

_LABELS = {"left": "Left", "right": "Right", "tie": "Tie", "both_bad": "Both bad"}
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;line-height:1.6"


def vote_widget(
    items: Sequence[BlindItem], on_done: Callable[[tuple[Vote, ...]], object], *, voter: str = "me"
) -> VBox:
    """Show one pair at a time and collect the votes.

    Args:
        items: From `blind_items`.
        on_done: Called once with all votes after the last pair.
        voter: The voter's name; it can be changed in the widget.

    Returns:
        The widget. Its children are, in order: name, head, prompt, pair, ticks, buttons, foot.

    Raises:
        EvaluationError: There are no items.

    Example:
        >>> vote_widget(items, lambda votes: write_votes("votes.csv", votes))  # doctest: +SKIP
    """
    if not items:
        raise EvaluationError("items", "at least one pair to vote on", [], "Pass what `blind_items` returned.")
    return _Booth(items, on_done, voter).box


class _Booth:
    """The widgets, the place in the list, and the votes so far."""

    def __init__(self, items: Sequence[BlindItem], on_done: Callable[[tuple[Vote, ...]], object], voter: str) -> None:
        import ipywidgets as widgets

        self.items, self.on_done, self.place, self.shown = items, on_done, 0, time.monotonic()
        self.votes: dict[str, Vote] = {}
        wide = widgets.Layout(width="100%")
        self.voter = widgets.Text(value=voter, description="Your name")
        self.head, self.prompt, self.foot = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.texts = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        options = [(tick.capitalize() or "not said", tick) for tick in TICKS]
        self.ticks = {
            name: widgets.Dropdown(
                options=options, description=label, style={"description_width": "initial"}, layout=wide
            )
            for name, label in CRITERIA.items()
        }
        self.choices = [self._button(widgets, name, label) for name, label in _LABELS.items()]
        self.back = widgets.Button(description="Back")
        self.back.on_click(lambda _: self._show(self.place - 1))
        pair = widgets.GridBox(self.texts, layout=widgets.Layout(grid_template_columns="1fr 1fr", grid_gap="1rem"))
        rows = [self.voter, self.head, self.prompt, pair, widgets.VBox(list(self.ticks.values()))]
        self.box = widgets.VBox([*rows, widgets.HBox([*self.choices, self.back]), self.foot])
        self._show(0)

    def _button(self, widgets: object, name: str, label: str) -> object:
        button = widgets.Button(description=label)
        button.on_click(lambda _: self._choose(name))
        return button

    def _show(self, place: int) -> None:
        """Show a pair with what was said of it before."""
        self.place, self.shown = place, time.monotonic()
        item = self.items[place]
        said = self.votes.get(item.id)
        self.head.value = f"<b>Pair {place + 1} of {len(self.items)}</b>"
        self.prompt.value = f'<div style="{_TEXT};font-weight:600">{_safe(item.prompt)}</div>'
        for side, widget, text in zip(("Left", "Right"), self.texts, (item.left, item.right), strict=True):
            widget.value = f'<b>{side}</b><div dir="auto" style="{_TEXT}">{_safe(text) or "<i>empty answer</i>"}</div>'
        for name, widget in self.ticks.items():
            widget.value = getattr(said, name) if said else ""
        for name, button in zip(_LABELS, self.choices, strict=True):
            button.button_style = "info" if said and said.choice == name else ""
        self.back.disabled = place == 0

    def _choose(self, choice: str) -> None:
        """Note the vote and go on; after the last pair hand all votes over."""
        if self.place >= len(self.items):
            return
        item = self.items[self.place]
        before = self.votes.get(item.id)
        seconds = time.monotonic() - self.shown + ((before.seconds or 0.0) if before else 0.0)
        ticks = {name: widget.value for name, widget in self.ticks.items()}
        self.votes[item.id] = Vote(item.id, choice, **ticks, voter="", seconds=round(seconds, 1))
        if self.place + 1 < len(self.items):
            self._show(self.place + 1)
        else:
            self._finish()

    def _finish(self) -> None:
        self.place = len(self.items)
        for button in (*self.choices, self.back):
            button.disabled = True
        self.foot.value = f"<b>Thank you: {len(self.votes)} votes.</b>"
        name = self.voter.value.strip() or "me"
        self.on_done(tuple(replace(vote, voter=name) for vote in self.votes.values()))


def _safe(text: str) -> str:
    return html.escape(visible(text))
