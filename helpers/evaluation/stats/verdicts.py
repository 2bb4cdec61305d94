"""The three questions that are judged, and what may be said to each.

They were fixed before any answer was seen: are held-out answers more likely, are the model's own answers preferred, and
did it lose what it was not trained on? Everything else is described with intervals and not judged, since among many
measures some differ by chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from helpers.core.paired import Estimate
from helpers.core.text import format_number
from helpers.evaluation.stats.votes import wilson_interval, wins_needed

_LOSS_MARGIN = 0.05
"""Nats a token; what was not trained on counts as kept if its NLL rose by less than this."""

_CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class Verdict:
    """The answer to one of the three questions.

    Args:
        question: As a reader asks it.
        outcome: "better", "worse", "mostly better", "mostly worse", "not worse", "preferred", "not preferred" or
            "cannot tell".
        sentence: The answer in a sentence.
        basis: The figures that it rests on, or why they do not suffice.
    """

    question: str
    outcome: str
    sentence: str
    basis: str


def interval_text(found: Estimate, unit: str = "") -> str:
    """Write a mean difference with its interval and its rows.

    Example:
        >>> from helpers.core.paired import estimate
        >>> interval_text(estimate([0.2, 0.2, 0.3]), "nats a token")
        '+0.233 nats a token (95 % interval +0.090 to +0.377, 3 rows)'
    """
    rows = f"{found.rows} row" + "s" * (found.rows != 1)
    if found.sources != found.rows:
        rows += f" from {found.sources} sources"
    text = format_number(found.mean, sign=True, unit=unit)
    if found.low is None:
        return f"{text} ({rows}, no interval: {found.why_no_interval})"
    return f"{text} (95 % interval {found.interval()}, {rows})"


def judge_likelihood(found: Estimate | None, *, held_out: bool) -> Verdict:
    """Answer the first question by the paired differences of NLL with EOS, tuned minus base.

    Args:
        found: Their estimate, in nats a token; None if nothing was scored.
        held_out: Whether the rows are known not to be training rows.
    """
    what = "held-out answers" if held_out else "the reference answers"
    question = f"Are {what} more likely?"
    if found is None:
        return Verdict(question, _CANNOT_TELL, f"Cannot tell whether {what} became more likely.", "None was scored.")
    basis = f"NLL with EOS: {interval_text(found, 'nats a token')}."
    if not held_out:
        basis += " Whether the adapter was trained on these rows is not known."
    if not found.above and not found.below:
        return Verdict(question, _CANNOT_TELL, f"{_upper(what)} are as likely as before.", basis)
    for decided, outcome, word in ((found.is_below(0), "better", "more"), (found.is_above(0), "worse", "less")):
        if decided:
            return Verdict(question, outcome, f"{_upper(what)} became {word} likely.", basis)
    if side := found.majority():
        outcome, word, count = ("better", "more", found.below) if side == "below" else ("worse", "less", found.above)
        rows = what.removeprefix("the ")
        counted = f"{count} of {found.rows} {rows}. The mean is not judged: {found.why_no_verdict}"
        said = f"Most {rows} became {word} likely; whether they did on average, these rows cannot tell."
        return Verdict(question, f"mostly {outcome}", said, f"{counted}. {basis}")
    why = _upper(found.why_no_verdict or "the interval contains zero")
    return Verdict(question, _CANNOT_TELL, f"Cannot tell whether {what} became more likely.", f"{why}. {basis}")


def judge_other_task(found: Estimate | None, task: str, *, held_out: bool) -> Verdict:
    """Answer the third question by the NLL of rows of the task that was not trained.

    Args:
        found: The estimate of its paired differences, tuned minus base, in nats a token; None if nothing was scored.
        task: Where the rows are from, such as "dolly".
        held_out: Whether the adapter's training rows are known, and these are not among them.
    """
    rows = f"{task} rows, which it was not trained on" if held_out else f"{task} rows"
    question, unknown = f"What was lost on {rows}?", f"Cannot tell whether anything was lost on {rows}."
    if found is None:
        return Verdict(question, _CANNOT_TELL, unknown, "None was scored.")
    margin = f"{_LOSS_MARGIN} nats a token"
    basis = f"NLL with EOS: {interval_text(found, 'nats a token')}; up to +{_LOSS_MARGIN} counts as kept."
    if not held_out:
        basis += " Whether the adapter was trained on such rows is not known."
    on = f"on {task} rows (not trained on)" if held_out else f"on {task} rows"
    if found.is_below(_LOSS_MARGIN):
        said = f"The model did not get worse by {margin} {on}."
        if found.is_below(0):
            said = f"The model did not get worse {on}."
        elif found.is_above(0):
            said = f"The model got worse {on}, but by less than {margin}."
        return Verdict(question, "not worse", said, basis)
    if found.is_above(0):
        return Verdict(question, "worse", f"The model got worse {on}.", basis)
    why = _upper(found.why_no_verdict or "the interval is too wide")
    return Verdict(question, _CANNOT_TELL, unknown, f"{why}. {basis}")


def judge_votes(wins: int, ties: int, losses: int, *, pairs: int, cut: int, shared: bool = False) -> Verdict:
    """Answer the second question by blind votes, one for each prompt, or source that prompts share.

    Args:
        wins: Prompts on which the tuned answer was preferred; like `ties` and `losses`, 0 if nobody has voted.
        losses: Prompts on which the base's answer was preferred.
        cut: Pairs in which an answer was cut at the length limit.
        shared: Whether some prompts share a source, and count once.
    """
    question = "Are the tuned model's answers preferred?"
    decided, votes = wins + losses, wins + ties + losses
    ending = f"{pairs} pair" + "s" * (pairs != 1) + (f", {cut} with an answer cut at the length limit" if cut else "")
    if not votes:
        basis = "Nobody has compared them: read them, or vote on vote.html."
        return Verdict(question, _CANNOT_TELL, f"Cannot tell whether its own answers are better ({ending}).", basis)
    tally = f"Votes: tuned {wins}, base {losses}, ties {ties}; {ending}."
    tally += " Prompts that share a source count once." if shared else ""
    interval, needed = wilson_interval(wins, decided), wins_needed(decided)
    if interval:
        ends = " to ".join(format_number(end, share=True) for end in interval)
        tally += (
            f" Tuned won {format_number(wins / decided, share=True)} of the {decided} decided (95 % interval {ends})."
        )
    if needed is not None and max(wins, losses) >= needed:
        outcome, text = ("preferred", "are preferred") if wins > losses else ("not preferred", "are liked less")
        return Verdict(question, outcome, f"Voters: its own answers {text}.", tally)
    need = f"One side needs {needed} of the {decided} decided votes." if needed else "So few could be chance."
    return Verdict(question, _CANNOT_TELL, "Voters: cannot tell whether its own answers are better.", f"{tally} {need}")


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
