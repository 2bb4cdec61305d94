"""Checks on templates, masks and packing: the exercises on how rows become tokens."""

from __future__ import annotations

from helpers.workshop.checks.kinds import COUNTS, GROUPS, MATCHES, NUMBER, TEXT, Check, matching, near, same

CONVERSATION = "<s>[INST] Be brief.\n\nAdd 2 and 3.[/INST] 5</s>"
"""A system prompt, a question and its answer in Mistral's format."""

PROMPT = [1, 4093, 198, 5820, 260, 3995, 3925, 30, 2, 198, 1, 520, 9531, 198]
ANSWER = [58, 13939, 314, 260, 3995, 3925, 30, 2]
"""Tokens of SmolLM2 for "Name the largest planet." and "Jupiter is the largest planet."."""

LENGTHS = (31, 200, 45, 52, 180, 38, 60, 41)
ROOM, FEWEST = 256, 3
"""Rows to pack, the room of a sequence, both in tokens, and the fewest sequences that hold the rows."""


def _conversation(answer: str) -> str:
    """Name the first thing about a written template that is not right."""
    signs = (
        (answer.count("<s>") != 1 or not answer.startswith("<s>"), "a conversation begins once. What marks that?"),
        (not answer.endswith("</s>"), "how will the model know that the answer is complete?"),
        ("[INST]" not in answer or "[/INST]" not in answer, "what stands on either side of what the user says?"),
        ("Be brief." not in answer, "the system prompt is missing. This format has no place of its own for it."),
        (
            "Be brief.\n\nAdd" not in answer,
            "look at what separates the system prompt from the question, and the order.",
        ),
        (" [/INST]" in answer, "count the spaces before the user's part ends."),
        ("[INST] " not in answer or "[/INST] " not in answer, "a word at the start of a part has a space before it."),
    )
    return "" if answer == CONVERSATION else next((hint for found, hint in signs if found), _COMPARE)


_COMPARE = "all the parts are there. Compare it with the description character by character: spaces, line breaks."


def _packing(answer: list[list[int]]) -> str:
    """Accept any way of packing that needs no more sequences than necessary."""
    packed = sorted(length for sequence in answer for length in sequence)
    if packed != sorted(LENGTHS):
        return "every row must be in exactly one sequence. Compare your lengths with the given ones."
    if any(sum(sequence) > ROOM for sequence in answer):
        return "one of your sequences holds more tokens than fit. Add up each."
    if len(answer) > FEWEST:
        return "it fits, and fewer sequences would do. Begin with the longest rows, and fill up with short ones."
    return ""


def _labels(answer: list[int]) -> str:
    """Count the labels before they are compared."""
    if len(answer) != len(PROMPT) + len(ANSWER):
        return (
            f"the row has {len(PROMPT) + len(ANSWER)} tokens, and you have {len(answer)} labels. "
            "Each token has one, also those that are not learned."
        )
    return _SAME_LABELS(answer)


_MASK = [-100] * len(PROMPT)
_SAME_LABELS = same(
    [*_MASK, *ANSWER],
    "labels stand at the same places as the tokens. Which of the tokens are the answer, its end included?",
    [
        (
            [*PROMPT, *ANSWER],
            "these labels also teach the model to write the user's question. Which ones should not count?",
        ),
        (
            [*_MASK, *ANSWER[:-1], -100],
            "one learned token is missing. What would the model never learn to do without it?",
        ),
        ([*_MASK[1:], *ANSWER, -100], "labels are not shifted by hand: the loss does that when it is computed."),
        ([0] * len(PROMPT) + ANSWER, "0 is the number of a token, so it would be learned. Which number is left out?"),
    ],
)

TOKENS: dict[str, Check] = {
    "write-template": Check(
        TEXT,
        _conversation,
        "a model that was trained on this exact text answers worse when a space or a mark is different.",
    ),
    "labels": Check(
        COUNTS, _labels, "the loss is taken over the answer and its end, so that is what the model learns to write."
    ),
    "faulty-rows": Check(
        MATCHES,
        matching(
            {
                "A": "works",
                "B": "meets another beginning in use",
                "C": "learns nothing",
                "D": "never stops",
                "E": "learns to write questions",
            },
            {
                "A": "row A: hold it against the five things that a row needs. Is one of them missing?",
                "B": "row B: read its first characters aloud.",
                "C": "row C: which part of it does the loss see?",
                "D": "row D: look at the end of its learned part.",
                "E": "row E: whose words are in the learned part?",
            },
        ),
        "each of these rows trains without an error message, which is why they are checked before training.",
    ),
    "padding": Check(
        NUMBER,
        near(
            0.5743,
            "Write down, for each of the two batches, how many places it has and how many hold a real token.",
            [
                (57.43, "a share lies between 0 and 1."),
                (0.4257, "this is the share of real tokens."),
                (0.5956, "each batch is padded to its own longest row, not to the longest row of all."),
                (873, "this counts places. Which share of all places is it?"),
                (0.5735, "the batches have different sizes: add up all places before you divide."),
            ],
            tolerance=0.0006,
            decimals=3,
        ),
        "padding costs as much time and memory as real tokens and teaches nothing.",
    ),
    "packing": Check(
        GROUPS, _packing, "the same rows now go through the model with few wasted places, and nothing is cut off."
    ),
    "positions": Check(
        COUNTS,
        same(
            [0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4],
            "write the three rows below each other, number each one's tokens, then join the numbers.",
            [
                (list(range(12)), "with these, the second row would be read as the first one's continuation."),
                (
                    [1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 4, 5],
                    "in Python, and in the model, the first place has another number.",
                ),
                (
                    [0] * 4 + [1] * 3 + [2] * 5,
                    "these say which row a token belongs to. Where in its row does it stand?",
                ),
            ],
        ),
        "with positions that start anew, attention can tell the rows apart and none sees its neighbour.",
    ),
}
"""The checks by exercise."""
