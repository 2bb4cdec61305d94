"""What an answer looks like: its words, list items, repetition, leaks. Pure text, no model.

How many items a prompt asks for is told here too, so that an answer can be held against it.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_BULLET = re.compile(r"(?P<indent>[ \t]*)[-*+\u2022\u2013] +(?P<rest>.*)")
_NUMBERED = re.compile(r"(?P<indent>[ \t]*)(?:#{1,6} +)?(?:\*\*|__)?\(?\d{1,3}[.)](?:\*\*|__)? +(?P<rest>.*)")
_LEAKS = re.compile(
    r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PREFIX|MIDDLE|SUFFIX|IMG)\]"
    r"|</?s>|<unk>|<pad>|<</?SYS>>"
    r"|<\|[A-Za-z0-9_]{1,30}\|>"
    r"|^### (?:Instruction|Input|Response):"
    r"|^Below is an instruction that describes a task",
    re.MULTILINE,
)
_REFUSAL = re.compile(
    r"\bi(?:'m| am) (?:very |really |so )?sorry,? (?:but|i)\b"
    r"|\bi(?: can(?:not|'t)| can not|'m unable to| am unable to|'m not able to| am not able to|'m not allowed to)\b"
    r"|\bi (?:won't|will not|must decline|have to decline|refuse)\b"
    r"|\bas an ai\b|\bas a (?:large )?language model\b|\bi (?:apologi[sz]e),? but\b"
)

_WORDS = (
    *("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_VALUES = {word: number for number, word in enumerate(_WORDS, start=2)}
# Words in ASCII alone: without regard to case, "\u0131" is an "i" and "\u017f" an "s" to Python's re.
_NUMBER = r"(?P<number>\d{1,3}|(?a:" + "|".join(sorted(_WORDS, key=len, reverse=True)) + r"))"
_NOUNS = (
    "actions|advantages|alternatives|answers|applications|approaches|areas|arguments|aspects|benefits|bullets?|"
    "categories|causes|challenges|changes|components|concepts|considerations|criteria|differences|disadvantages|"
    "drawbacks|elements|examples|facts|factors|features|functions|goals|habits|headlines|hints|ideas|initiatives|"
    "innovations|insights|issues|items|keywords|KPIs|lessons|limitations|measures|methods|metrics|mistakes|names|"
    "objectives|opportunities|options|points|possibilities|practices|principles|problems|pros|cons|qualities|questions|"
    "reasons|recommendations|risks|roles|rules|scenarios|skills|slogans|solutions|stages|steps|strategies|strengths|"
    "subjects|suggestions|tactics|tasks|techniques|things|tips|titles|tools|topics|trends|types|use[ -]?cases|uses|"
    "ways|weaknesses"
)
_UNITS = (
    r"(?:bullet )?(?:sentence|word|paragraph|line|character|letter|page|token|second|minute|hour|day|week|month|"
    r"quarter|year|decade|percent|per|time|dollar|euro|pound|people|person|employee|million|billion|thousand|hundred|"
    r"star|kilo|mile|degree)s?\b"
)
_NOT_ADJECTIVE = rf"(?!(?:and|or|to|of|in|for|with|on|from|that|who|which|{_UNITS}|{'|'.join(_WORDS)}|\d)\b)"
_BEFORE = re.compile(
    r"(?:[\d.,:/$\u20ac\u00a3-]|\b(?:at least|at most|up to|no more than|more than|fewer than|less than|over|under|"
    r"about|around|roughly|approximately|between|to|or)\s)\Z",
    re.IGNORECASE,
)
_COUNTED = re.compile(
    rf"\b{_NUMBER}(?:\s+of\s+(?:the|our|your|its))?[-\s]+"
    rf"(?:{_NOT_ADJECTIVE}[^\W\d][\w'-]*,?\s+){{0,3}}?(?P<noun>{_NOUNS}|(?<=-)(?:step|item|point|part))\b",
    re.IGNORECASE,
)
_LED = re.compile(
    rf"\b(?:top|list(?:s? of)?|name|suggest|recommend|propose|identify|brainstorm|give(?: me| us)?|provide)\s+{_NUMBER}"
    rf"(?!\s*(?:%|-\s*\d|\u2013\s*\d|[.,]\d|(?:to|or)\b|\d))(?![-\s]+{_UNITS})(?:\s+(?P<noun>[^\W\d][\w'-]*))?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ListItems:
    """The list items of an answer.

    Args:
        total: Numbered and bulleted lines, nested ones included.
        main: Items that answer "give me N": the outermost numbered ones, or the outermost bullets without any.
    """

    total: int
    main: int


def _prose_lines(text: str) -> list[str]:
    """Return the lines outside of code fences, code spans removed; an unclosed fence reaches to the end."""
    lines, fence = [], ""
    for line in text.splitlines():
        mark = line.lstrip()[:3]
        if mark in ("```", "~~~") and (not fence or mark == fence):
            fence = "" if fence else mark
        elif not fence:
            lines.append(re.sub(r"`[^`]*`", "x", line).expandtabs(4))
    return lines


def count_words(text: str) -> int:
    """Count words: runs of characters between white space that hold at least one letter or digit.

    Bullets, dashes and emoji alone are no words; the number of a list item is one. Scripts without spaces, such as
    Chinese, come out as few long words.

    Example:
        >>> count_words("- state-of-the-art, indeed!")
        2
    """
    return sum(any(map(str.isalnum, run)) for run in text.split())


def _indents(pattern: re.Pattern[str], lines: list[str]) -> list[int]:
    """Return the indents (spaces) of the lines that are items by `pattern`; rules such as "- - -" are not."""
    found = [match for line in lines if (match := pattern.match(line))]
    return [len(match["indent"]) for match in found if match["rest"].strip("-*_ ")]


def list_items(text: str) -> ListItems:
    r"""Count list items, one a line; code in fences or backticks is left out.

    Own patterns, since Markdown's rules do not know models' habits, such as "**1. Sell**", "(2)" or an en dash.
    "First, ... Second, ..." in running text, "Step 1:", "a)" and emoji used as bullets are not counted.

    Example:
        >>> list_items("1. Sell\n   - online\n2. Rent")
        ListItems(total=3, main=2)
    """
    lines = _prose_lines(text)
    numbered, bulleted = _indents(_NUMBERED, lines), _indents(_BULLET, lines)
    leading = numbered or bulleted
    margin = min(leading, default=0)
    return ListItems(len(numbered) + len(bulleted), sum(indent < margin + 2 for indent in leading))


def repetition(text: str) -> float:
    """rep-4: 1 - unique / total 4-grams of lower-cased words (Welleck et al., arXiv 1908.04319).

    Returns:
        A share: 0 without any repetition (or with fewer than four words), near 1 for an answer that loops.

    Example:
        >>> repetition("a b c d a b c d")
        0.19999999999999996
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + 4]) for start in range(len(words) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def echoes_prompt(text: str, prompt: str) -> bool:
    """Whether an answer repeats its prompt: it holds the whole prompt, or begins with its first 12 words.

    Case and white space do not matter. A prompt of fewer than 3 words is too short to tell.

    Example:
        >>> echoes_prompt("How can AI help? AI can help a lot.", "How can AI help?")
        True
    """
    said, asked = text.casefold().split(), prompt.casefold().split()
    if len(asked) < 3:
        return False
    return said[:12] == asked[:12] or f" {' '.join(asked)} " in f" {' '.join(said)} "


def template_leaks(text: str) -> tuple[str, ...]:
    """Find what belongs to a chat template and not into an answer.

    Control tokens of Mistral ([INST], </s>, [TOOL_CALLS], ...), Llama 2 (<<SYS>>) and ChatML or Llama 3 (anything like
    <|im_start|>), and Alpaca's lines ("### Response:", "Below is an instruction that describes a task"). An answer that
    writes about these, or HTML's <s>, is found too.

    Returns:
        Each one as it stands, in order, repeats included.

    Example:
        >>> template_leaks("Sure.</s> [INST] More?")
        ('</s>', '[INST]')
    """
    return tuple(_LEAKS.findall(text))


def is_empty(text: str) -> bool:
    r"""Whether an answer shows nothing: no characters, or only white space, control and invisible ones.

    Example:
        >>> is_empty(" \n\u200b")
        True
    """
    return all(unicodedata.category(character)[0] in "ZC" for character in text)


def looks_like_refusal(text: str) -> bool:
    """Whether an answer sounds like a refusal. A heuristic: it counts phrases, and does not understand.

    True when the first 200 characters hold a phrase such as "I cannot", "I'm sorry, but" or "as an AI", in English. The
    phrases follow the list of Zou et al. (arXiv 2307.15043). It misses refusals in other words, and takes "I cannot
    stress enough" for one.

    Example:
        >>> looks_like_refusal("I'm sorry, but I can't help with that.")
        True
    """
    opening = " ".join(text[:200].lower().replace("\u2019", "'").split())
    return bool(_REFUSAL.search(opening))


def _value(number: str) -> int:
    return int(number) if number.isdigit() else _VALUES[number.lower()]


def asked_items(prompt: str) -> int | None:
    """Find how many items a prompt asks for.

    Counts are digits or words from two to twenty, before a noun that names items ("three ways", "5 innovative ideas",
    "a five-step plan") or after a word that asks for them ("list of four companies", "top 10"). Units are not items
    ("in two sentences", "5 years"), nor are years, shares, one, or more than 100. Cautious on purpose: with a range,
    "at least", or two different counts ("three benefits and two risks") there is no single right number; give
    `Prompt.expected_items` then.

    Returns:
        A count from 2 to 100, or None when the prompt names none or more than one.

    Example:
        >>> asked_items("In two sentences, suggest three ways to cut costs."), asked_items("What is AI?")
        (3, None)
    """
    found: dict[int, tuple[int, str]] = {}
    for pattern in (_COUNTED, _LED):
        for match in pattern.finditer(prompt):
            start = match.start("number")
            value = _value(match["number"])
            if 2 <= value <= 100 and not _BEFORE.search(prompt[max(0, start - 20) : start]):
                found.setdefault(start, (value, (match["noun"] or "").lower()))
    counts = set(found.values())
    return counts.pop()[0] if len(counts) == 1 else None
