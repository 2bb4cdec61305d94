"""Checks on votes, tests, intervals and leaks: the exercises on whether a tuned model is better."""

from __future__ import annotations

from helpers.workshop.checks.kinds import COUNTS, NUMBER, NUMBERS, PLACES, WHOLE, Check, near, same

_LEAKED = {1, 4, 6}
"""Held-out rows that also stand among the training rows, from 0."""

_VERBATIM = {4}


def _leaks(answer: list[int]) -> str:
    """Compare sets of row numbers."""
    found = set(answer)
    if found == _LEAKED:
        return ""
    if found == _VERBATIM:
        return "these agree to the letter. What if only capitals, spaces or the full stop differ?"
    if found == {number + 1 for number in _LEAKED}:
        return "these are the right rows, counted in another way: Python's lists begin elsewhere."
    if found - _LEAKED:
        return "at least one of your rows asks something new. Two questions on one subject are not the same question."
    return "each of these is a leak, and there are more. Compare what is left when capitals, marks and spaces are gone."


def _unblind(answer: list[int]) -> str:
    """Count the questions before the outcomes are compared."""
    hint = _SAME_UNBLIND(answer)
    if hint == _BY_VOTE and sum(answer) != 7:
        return f"there are seven questions, and yours add up to {sum(answer)}."
    return hint


_BY_VOTE = "go vote by vote: which arm was the preferred one? Then settle the pair that was shown twice."
_SAME_UNBLIND = same(
    [4, 2, 1],
    _BY_VOTE,
    [
        ([5, 1, 2], "a pair that was shown twice counts once, and here the two votes on it do not agree."),
        ([5, 1, 1], "one pair was voted on twice, and the votes differ. Does that person have a preference there?"),
        (
            [4, 1, 2],
            "check the order: wins, ties, losses. Then the pair that was voted on twice: is there a preference?",
        ),
        ([4, 1, 1], "a vote for both_bad counts too, for neither of the two."),
        ([1, 2, 4], "check the order: wins, ties, losses, of the tuned model."),
    ],
)

JUDGING: dict[str, Check] = {
    "unblind": Check(COUNTS, _unblind, "nobody who votes on A and B can favour a model, not even unintentionally."),
    "sign-test": Check(
        NUMBER,
        near(
            22 / 1024,
            "How many of all the ways in which ten coins can fall are at least this uneven, to either side?",
            [
                (11 / 1024, "that is one direction. Would you have been surprised by one win and nine losses?"),
                (10 / 1024, "ten wins would have been more uneven still, so they count too."),
                (20 / 1024, "ten to nothing would have been more uneven still, so it counts too."),
                (22, "this counts the ways. How many ways are there in all?"),
                (2.148, "a probability lies between 0 and 1."),
                (2.1, "a probability lies between 0 and 1."),
                (0.9, "this is the share that was won. How often does a coin do that?"),
            ],
            decimals=3,
        ),
        "of a hundred sets of ten tosses about two are so uneven, so ten votes can be enough, if they are this clear.",
    ),
    "wins-needed": Check(
        WHOLE,
        near(
            21,
            "Compute p for your number, and for one fewer: the one must be below 0.05, and the other must not.",
            [
                (20, "have you counted both directions? Compute the two-sided p of your number once more."),
                (22, "this is enough, and so is one fewer."),
                (15, "that is half of the votes: as even as it gets."),
                (
                    16,
                    "chance alone gives so uneven a result, to one side or the other, nearly always. Try larger numbers.",
                ),
                (29, "this is more than enough. The question is for the fewest."),
                (30, "this is more than enough. The question is for the fewest."),
            ],
            tolerance=0,
        ),
        "fix the number of votes before you look, and you know beforehand what result would convince you.",
    ),
    "interval": Check(
        NUMBERS,
        same(
            [-0.17584, -0.02416],
            "Mean, plus and minus t times s / sqrt(n). Which of the four do you have to look at again?",
            [
                ([-0.16286, -0.03714], "1.96 is for many rows. With eight, the factor has to be larger."),
                ([-0.17094, -0.02906], "the spread of a sample is divided by n - 1 (ddof=1 in numpy)."),
                ([-0.3145, 0.1145], "this is where single rows lie. The mean of eight is surer than each of them."),
                ([-0.02416, -0.17584], "the lower end comes first."),
                ([-0.1, 0.07584], "these are the mean and the half width. The ends are mean minus and mean plus it."),
            ],
            decimals=3,
        ),
        "the whole interval is below zero, so rows like these would rarely say so if tuning had changed nothing.",
    ),
    "many-looks": Check(
        NUMBER,
        near(
            0.64151,
            "First the chance that none of the twenty is a false alarm.",
            [
                (1.0, "chances of several things are not added, or thirty metrics would give more than certainty."),
                (0.35849, "this is the chance of no false alarm at all."),
                (0.05, "this is the chance for one metric."),
                (64.151, "a probability lies between 0 and 1."),
            ],
            decimals=2,
        ),
        "with twenty numbers you will usually find one: choose yours beforehand, or correct for the number (Holm).",
    ),
    "leaks": Check(
        PLACES, _leaks, "a held-out row that was trained on measures memory, and every number taken on it flatters."
    ),
}
"""The checks by exercise."""
