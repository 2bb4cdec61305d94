"""The blind vote in the notebook: the page and its key, votes from files, and what they say in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from helpers.core.runs import RunDirectory
from helpers.evaluation.config import EvaluationConfig
from helpers.evaluation.overview import Overview
from helpers.evaluation.records import Comparison
from helpers.evaluation.stats.agreement import agreement, self_consistency
from helpers.evaluation.stats.preferences import summarise_votes
from helpers.evaluation.votes.ballots import Vote, read_votes
from helpers.evaluation.votes.tally import Reveal, reveal
from helpers.evaluation.votes.votes import BlindItem, VoteKey, blind_items, write_key, write_vote_page

__all__ = ["MOST_PAIRS", "count_votes", "describe_votes", "prepare_vote"]

MOST_PAIRS = 24
"""Different pairs on the voting page, at most: half an hour's reading. 15 wins of 20 are enough for p < 0.05."""


def prepare_vote(
    run: RunDirectory, comparison: Comparison, overview: Overview
) -> tuple[tuple[BlindItem, ...], VoteKey]:
    """Shuffle the pairs and write the voting page and, apart from it, its key.

    Of more than `MOST_PAIRS` answered prompts the first are voted on, those without a reference before the others.

    Args:
        run: Where to.
        comparison: Prompts and answers; the same seed and answers give the same page.
        overview: Names the two arms.

    Returns:
        The items in the order of the page, and the key.
    """
    arms = (overview.base.name, overview.tuned.name)
    items, key = blind_items(_for_voters(comparison), comparison.info.seed, arms=arms)
    write_vote_page(run.path / "vote.html", items, "Which answer is better?")
    write_key(run.path / "vote_key.json", key)
    return items, key


def _for_voters(comparison: Comparison) -> Comparison:
    """Leave as many answered prompts as people can be asked to judge."""
    answered = {answer.prompt_id for answer in comparison.answers}
    prompts = [prompt for prompt in comparison.prompts if prompt.id in answered]
    prompts.sort(key=lambda prompt: prompt.reference is not None)
    return replace(comparison, prompts=tuple(prompts[:MOST_PAIRS]))


def count_votes(config: EvaluationConfig, key: VoteKey, votes: Sequence[Vote] = ()) -> Reveal | None:
    """Read the votes there are and reveal who wrote what.

    Args:
        config: Names the files, if any.
        key: The key of the page voted on.
        votes: Votes cast in the notebook.

    Returns:
        The tallies, or None without votes.

    Raises:
        EvaluationError: A file cannot be read, or its votes belong to other items.
    """
    cast = [*(read_votes(config.votes_files(), key) if config.votes_files() else ()), *votes]
    return reveal(cast, key) if cast else None


def describe_votes(votes: Reveal | None) -> str:
    """Say what the votes say: tally, test, agreement between voters, and consistency of each.

    Args:
        votes: From `count_votes`.

    Returns:
        A line a statement.
    """
    if votes is None:
        return "No votes yet: this part is skipped."
    tally = votes.merged
    lines = [summarise_votes(tally.wins, tally.losses, tally.ties, a=votes.contender, b=votes.baseline).text()]
    if len(votes.outcomes) > 1:
        found = agreement(votes.outcomes)
        value = (
            found.note
            if found.value is None
            else f"{found.method} {found.value:.2f} (0 is chance, 1 is full agreement)."
        )
        share = "" if found.share is None else f" They gave the same vote in {100 * found.share:.0f} % of shared cases."
        lines.append(f"Agreement of {found.voters} voters on {found.items} prompts: {value}{share}")
    for voter, pairs in votes.repeats.items():
        if pairs:
            same = self_consistency(pairs)
            lines.append(f"{voter} judged {same.same} of {same.repeats} repeated pairs alike both times.")
    return "\n".join(lines)
