"""The blind vote in the notebook: the page and its key, votes from files, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from helpers.core.runs import RunDirectory
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Comparison
from helpers.evaluation.stats.votes import krippendorff_alpha, same_vote_share
from helpers.evaluation.votes.ballot import (
    BlindItem,
    VoteKey,
    blind_items,
    read_key,
    read_votes,
    write_key,
    write_vote_page,
)
from helpers.evaluation.votes.tally import Reveal, reveal

__all__ = ["count_votes", "describe_votes", "prepare_vote", "warn_of_cut_pairs"]

_MOST_PAIRS = 24
"""Different pairs on the voting page, at most: half an hour's reading."""

_CRITERIA = {"concrete": "concrete and plausible", "on_topic": "on topic", "structure": "useful structure"}
_KEY = "vote_key.json"


def prepare_vote(
    run: RunDirectory, comparison: Comparison, overview: Overview
) -> tuple[tuple[BlindItem, ...], VoteKey]:
    """Shuffle the pairs and write the voting page and, apart from it, its key.

    Of more than `_MOST_PAIRS` answered prompts the first are voted on, those without a reference before the others.
    """
    answered = {answer.prompt_id for answer in comparison.answers}
    prompts = [prompt for prompt in comparison.prompts if prompt.id in answered]
    prompts.sort(key=lambda prompt: prompt.reference is not None)
    chosen = replace(comparison, prompts=tuple(prompts[:_MOST_PAIRS]))
    items, key = blind_items(chosen, comparison.info.seed, arms=(overview.base.name, overview.tuned.name))
    write_vote_page(run.path / "vote.html", items, "Which answer is better?")
    write_key(run.path / _KEY, key)
    return items, key


def warn_of_cut_pairs(overview: Overview) -> str:
    """Say before people vote that many answers have no end; "" when fewer than a quarter were cut."""
    if 4 * overview.cut < overview.answered or not overview.cut:
        return ""
    return (
        f"In {overview.cut} of {overview.answered} pairs an answer was cut at the length limit. Where only one of the "
        "two was, its missing end gives it away: raise max_new_tokens before anybody votes."
    )


def check_votes(files: Sequence[str], folder: Path) -> None:
    """Read the votes before anything is loaded, so that a mistake in them shows in the first minute.

    Args:
        folder: The comparison's run; an earlier run's key there tells whether the votes are on its page.
    """
    if files:
        read_votes(files, read_key(folder / _KEY) if (folder / _KEY).is_file() else None)


def count_votes(files: Sequence[str], key: VoteKey) -> Reveal | None:
    """Read the votes there are and reveal who wrote what; None without votes."""
    return reveal(read_votes(files, key), key) if files else None


def describe_votes(votes: Reveal | None) -> str:
    """Say what the votes say besides the verdict: the three questions, agreement, and consistency of each voter."""
    if votes is None:
        return "No votes yet: this part is skipped."
    lines = []
    for criterion, words in _CRITERIA.items():
        said = [ballot.ticks[criterion] for ballot in votes.ballots if criterion in ballot.ticks]
        if said:
            told = ", ".join(f"{arm} {sum(arm in arms for arms in said)}" for arm in (votes.contender, votes.baseline))
            lines.append(f"{words.capitalize()}: {told}, of {len(said)} votes.")
    if both_bad := sum(ballot.both_bad for ballot in votes.ballots):
        lines.append(f"Both bad: {both_bad} of {len(votes.ballots)} votes.")
    if (share := same_vote_share(votes.outcomes)) is not None:
        alpha = krippendorff_alpha(votes.outcomes)
        beyond = "" if alpha is None else f"; Krippendorff's alpha {alpha:.2f} (0 is chance, 1 full agreement)"
        lines.append(f"{len(votes.outcomes)} voters gave the same vote in {100 * share:.0f} % of shared cases{beyond}.")
    for voter, pairs in votes.repeats.items():
        if pairs:
            same = sum(first == second for first, second in pairs)
            lines.append(f"{voter} judged {same} of {len(pairs)} repeated pairs alike both times.")
    return "\n".join(lines)
