"""What the blind votes say once the key is known.

A pair that a voter saw twice counts once: if the two votes disagree, the voter has no preference, and it is a tie. A
prompt that several people voted on counts once too, for the arm that more of them preferred: prompts are the sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from helpers.evaluation.votes.ballot import CRITERIA, Vote, VoteKey

_OUTCOMES = {1: "win", 0: "tie", -1: "loss"}


@dataclass(frozen=True)
class Ballot:
    """A vote with its arms known.

    Args:
        outcome: "win", "tie" or "loss" of the contender.
        both_bad: Whether the tie was between two bad answers.
        contender_second: Whether the contender's answer was B.
        ticks: The arms that were ticked, by criterion; a criterion that the voter left open is not among them.
    """

    voter: str
    prompt_id: str
    outcome: str
    both_bad: bool
    contender_second: bool
    ticks: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Reveal:
    """What came of a vote.

    Args:
        merged_outcomes: Over all voters, each prompt counted once: "win", "tie" or "loss".
        outcomes: By voter and prompt, repeated pairs counted once.
        repeats: By voter: the outcomes of each pair that was seen twice.
        ballots: Every vote, in the order it was read.
    """

    baseline: str
    contender: str
    merged_outcomes: dict[str, str]
    outcomes: dict[str, dict[str, str]]
    repeats: dict[str, tuple[tuple[str, str], ...]]
    ballots: tuple[Ballot, ...]


def reveal(votes: Iterable[Vote], key: VoteKey) -> Reveal:
    """Turn votes for A or B into wins, ties and losses of the contender."""
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
        ballots=ballots,
    )


def _ballot(vote: Vote, key: VoteKey) -> Ballot:
    item = key.items[vote.item_id]
    arms = {"a": (item.a,), "b": (item.b,), "both": (item.a, item.b), "neither": ()}
    ticks = {name: arms[tick] for name in CRITERIA if (tick := getattr(vote, name))}
    preferred = arms.get(vote.choice, ())
    outcome = "win" if key.contender in preferred else "loss" if preferred else "tie"
    return Ballot(vote.voter, item.prompt_id, outcome, vote.choice == "both_bad", item.b == key.contender, ticks)


def _agreed(outcomes: list[str]) -> str:
    return outcomes[0] if len(set(outcomes)) == 1 else "tie"


def _merge(outcomes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Give each prompt to the arm that more voters preferred."""
    sums: Counter[str] = Counter()
    for rows in outcomes.values():
        for name, outcome in rows.items():
            sums[name] += (outcome == "win") - (outcome == "loss")
    return {name: _OUTCOMES[(total > 0) - (total < 0)] for name, total in sums.items()}
