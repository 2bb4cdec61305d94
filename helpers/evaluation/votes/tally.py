"""What the blind votes say once the key is known.

A pair that a voter saw twice counts once: if the two votes disagree, the voter has no preference, and it is a tie. A
prompt that several people voted on counts once too, for the arm that more of them preferred: prompts are the sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from helpers.core.errors import EvaluationError
from helpers.evaluation.votes.ballot import CRITERIA, Vote, VoteKey

_OUTCOMES = {1: "win", 0: "tie", -1: "loss"}


@dataclass(frozen=True)
class Ballot:
    """A vote with its arms known.

    Args:
        outcome: "win", "tie" or "loss" of the contender.
        both_bad: Whether the tie was between two bad answers.
        contender_second: Whether the contender's answer was B.
    """

    voter: str
    prompt_id: str
    outcome: str
    both_bad: bool
    contender_second: bool


@dataclass(frozen=True)
class TickShare:
    """How often a criterion was ticked for an arm.

    Args:
        votes: Votes that answered the question at all.
    """

    yes: int
    votes: int


@dataclass(frozen=True)
class Reveal:
    """What came of a vote.

    Args:
        baseline: The arm that was compared against.
        contender: The arm whose wins are counted.
        merged_outcomes: Over all voters, each prompt counted once: "win", "tie" or "loss".
        outcomes: By voter and prompt, repeated pairs counted once.
        repeats: By voter: the outcomes of each pair that was seen twice.
        ticks: By criterion and arm.
        both_bad: Votes that called both answers bad.
        ballots: Every vote, in the order it was read.
    """

    baseline: str
    contender: str
    merged_outcomes: dict[str, str]
    outcomes: dict[str, dict[str, str]]
    repeats: dict[str, tuple[tuple[str, str], ...]]
    ticks: dict[str, dict[str, TickShare]]
    both_bad: int
    ballots: tuple[Ballot, ...]


def reveal(votes: Iterable[Vote], key: VoteKey) -> Reveal:
    """Turn votes for A or B into wins, ties and losses of the contender.

    Args:
        votes: From `read_votes`.
        key: The key of the same items.

    Raises:
        EvaluationError: There are no votes, or one is for an item that is not in the key.
    """
    votes = tuple(votes)
    if not votes:
        raise EvaluationError("votes", "at least one vote", [], "Vote first.")
    ballots = tuple(_ballot(vote, key) for vote in votes)
    seen: dict[str, dict[str, list[str]]] = {}
    for ballot in ballots:
        seen.setdefault(ballot.voter, {}).setdefault(ballot.prompt_id, []).append(ballot.outcome)
    outcomes = {voter: {name: _agreed(found) for name, found in rows.items()} for voter, rows in seen.items()}
    return Reveal(
        baseline=key.baseline,
        contender=key.contender,
        merged_outcomes=_merge(outcomes),
        outcomes=outcomes,
        repeats={voter: tuple((f[0], f[1]) for f in rows.values() if len(f) > 1) for voter, rows in seen.items()},
        ticks={criterion: _ticks(criterion, votes, key) for criterion in CRITERIA},
        both_bad=sum(ballot.both_bad for ballot in ballots),
        ballots=ballots,
    )


def _ballot(vote: Vote, key: VoteKey) -> Ballot:
    item = key.items.get(vote.item_id)
    if item is None:
        raise EvaluationError("item_id", "an item of the key", vote.item_id, "Use the key of the page voted on.")
    preferred = {"a": item.a, "b": item.b}.get(vote.choice)
    sign = 0 if preferred is None else 1 if preferred == key.contender else -1
    return Ballot(vote.voter, item.prompt_id, _OUTCOMES[sign], vote.choice == "both_bad", item.b == key.contender)


def _agreed(outcomes: list[str]) -> str:
    return outcomes[0] if len(set(outcomes)) == 1 else "tie"


def _merge(outcomes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Give each prompt to the arm that more voters preferred."""
    sums: Counter[str] = Counter()
    for rows in outcomes.values():
        for name, outcome in rows.items():
            sums[name] += (outcome == "win") - (outcome == "loss")
    return {name: _OUTCOMES[(total > 0) - (total < 0)] for name, total in sums.items()}


def _ticks(criterion: str, votes: Sequence[Vote], key: VoteKey) -> dict[str, TickShare]:
    """Count for how many of the votes that answered a question each arm was ticked."""
    said = [(getattr(vote, criterion), key.items[vote.item_id]) for vote in votes if getattr(vote, criterion)]
    shares = {}
    for arm in (key.baseline, key.contender):
        yes = sum(tick == "both" or (tick != "neither" and getattr(item, tick) == arm) for tick, item in said)
        shares[arm] = TickShare(yes, len(said))
    return shares
