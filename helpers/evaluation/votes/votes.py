"""Blind votes: which items people see, the key that says who wrote what, and the page they vote on.

items, key = blind_items(comparison, seed=3407)
write_vote_page("vote.html", items, "Which answer is better?")   # hand this out
write_key("vote_key.json", key)                                  # keep this
votes = read_votes(["votes-anna.csv", "votes-ben.csv"], key)     # in `ballots`
reveal(votes, key)                                               # in `tally`
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.core.errors import EvaluationError
from helpers.core.files import write_text
from helpers.evaluation.pages import embed_json, render_page, visible, write_page
from helpers.evaluation.records import Comparison, Prompt, build_record

__all__ = ["BlindItem", "KeyItem", "VoteKey", "blind_items", "read_key", "write_key", "write_vote_page"]

_FORMAT = "side-by-side vote key 1"


@dataclass(frozen=True)
class BlindItem:
    """One pair of answers as a voter sees it.

    Args:
        id: Says nothing of the arms; changes when an answer changes, so that old votes cannot count for new answers.
        prompt: What was asked.
        left: The answer on the left.
        right: The answer on the right.
    """

    id: str
    prompt: str
    left: str
    right: str


@dataclass(frozen=True)
class KeyItem:
    """Who wrote what in one item.

    Args:
        prompt_id: The `Prompt.id`.
        left: The `Arm.name` on the left.
        right: The `Arm.name` on the right.
    """

    prompt_id: str
    left: str
    right: str


@dataclass(frozen=True)
class VoteKey:
    """What turns votes for sides into votes for arms.

    Args:
        baseline: The arm that is compared against.
        contender: The arm whose wins are counted.
        items: By `BlindItem.id`, in the order of the page.
    """

    baseline: str
    contender: str
    items: dict[str, KeyItem]


def blind_items(
    comparison: Comparison, seed: int, repeats: int = 2, *, arms: tuple[str, str] = ("base", "tuned")
) -> tuple[tuple[BlindItem, ...], VoteKey]:
    """Shuffle the pairs, hide who wrote what, and show a few pairs twice.

    Args:
        comparison: Prompts and answers.
        seed: The same seed and answers give the same items, so a page and its key can be made again.
        repeats: Pairs that come again with sides exchanged, in the second half; at most one for each prompt.
        arms: Names of the baseline and the contender.

    Returns:
        The items in the order of the page, and their key. Each arm is on the left in half of the pairs.

    Raises:
        EvaluationError: No prompt has answers of both arms, or `repeats` is negative.

    Example:
        >>> items, key = blind_items(comparison, seed=1, repeats=0)  # doctest: +SKIP
    """
    if repeats < 0:
        raise EvaluationError("repeats", "0 or more", repeats, "Use 2 to learn how consistent each voter is.")
    said = {(answer.prompt_id, answer.arm): answer.text for answer in comparison.answers}
    prompts = [prompt for prompt in comparison.prompts if all((prompt.id, arm) in said for arm in arms)]
    if not prompts:
        raise EvaluationError("answers", f"answers of {arms[0]} and {arms[1]} to a prompt", "none", "Generate both.")
    shows = _shows(prompts, random.Random(f"sides {seed}"), repeats)  # noqa: S311 - reproducible, not secret
    items, key = [], {}
    for prompt, again, swapped in shows:
        left, right = arms[::-1] if swapped else arms
        texts = said[prompt.id, left], said[prompt.id, right]
        name = _opaque(str(seed), prompt.id, str(again), *sorted(texts))
        items.append(BlindItem(name, prompt.text, *texts))
        key[name] = KeyItem(prompt.id, left, right)
    return tuple(items), VoteKey(*arms, key)


def _shows(prompts: Sequence[Prompt], rng: random.Random, repeats: int) -> list[tuple[Prompt, bool, bool]]:
    """Draw order and sides: the prompt, whether it comes again, whether its sides are exchanged."""
    order = list(prompts)
    rng.shuffle(order)
    sides = [place % 2 == 0 for place in range(len(order))]
    rng.shuffle(sides)
    shows = [(prompt, False, swapped) for prompt, swapped in zip(order, sides, strict=True)]
    middle = (len(shows) + 1) // 2
    again = (rng.sample(shows[:middle], middle) + shows[middle:])[: min(repeats, len(shows))]
    for prompt, _, swapped in again:
        shows.insert(rng.randint(middle + 1, len(shows)) if len(order) > 1 else 1, (prompt, True, not swapped))
    return shows


def _opaque(*parts: str) -> str:
    raw = json.dumps(parts).encode("ascii")
    return f"i{hashlib.sha256(raw).hexdigest()[:11]}"  # a letter first, or spreadsheets read it as a number


def write_vote_page(path: str | Path, items: Sequence[BlindItem], title: str) -> Path:
    """Write the voting page: one file that needs neither a kernel nor a network and exports a CSV.

    Args:
        path: The HTML file to write.
        items: From `blind_items`.
        title: What voters read above the first pair. Must not name the arms' sides.

    Returns:
        The path written.

    Raises:
        EvaluationError: There are no items.
    """
    if not items:
        raise EvaluationError("items", "at least one pair to vote on", [], "Pass what `blind_items` returned.")
    from markupsafe import Markup

    rows = [{name: visible(text) for name, text in asdict(item).items()} for item in items]
    data = embed_json({"page": _opaque(*(item.id for item in items)), "items": rows})
    context = {"title": title, "count": len(items), "data": Markup(data)}  # noqa: S704 - escaped by embed_json
    page = render_page("vote.html", styles=("theme.css", "vote.css"), script="vote.js", context=context)
    return write_page(path, page)


def write_key(path: str | Path, key: VoteKey) -> Path:
    """Write the key as JSON. Keep it from the voters until they have voted.

    Args:
        path: The file to write.
        key: From `blind_items`.

    Returns:
        The path written.

    Raises:
        RunError: The disk refuses.
    """
    write_text(Path(path), json.dumps({"format": _FORMAT} | asdict(key), indent=1) + "\n")
    return Path(path)


def read_key(path: str | Path) -> VoteKey:
    """Read what `write_key` wrote.

    Args:
        path: The file.

    Returns:
        The key.

    Raises:
        EvaluationError: The file is missing or is not such a key.
    """
    remedy = "Pass the key that was written together with the voting page."
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data["format"] != _FORMAT:
            raise EvaluationError("format", repr(_FORMAT), data["format"], remedy)
        items = {name: build_record(KeyItem, row) for name, row in data["items"].items()}
        arms = {name: data[name] for name in ("baseline", "contender")}
        return build_record(VoteKey, arms | {"items": items})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvaluationError(str(path), "a readable vote key", f"{type(error).__name__}: {error}", remedy) from error
