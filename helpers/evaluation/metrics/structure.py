"""What an answer looks like: its words, its Markdown structure, repetition, leaks. Pure text, no library, no model.

Code in fences or backticks is left out of all counts but words: a `# comment` in it is no heading.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

__all__ = [
    "ListItems",
    "count_bold",
    "count_headings",
    "count_words",
    "echoes_prompt",
    "is_empty",
    "list_items",
    "looks_like_refusal",
    "repetition",
    "template_leaks",
]

_BULLET = re.compile(r"(?P<indent>[ \t]*)[-*+\u2022\u2013] +(?P<rest>.*)")
_NUMBERED = re.compile(r"(?P<indent>[ \t]*)(?:#{1,6} +)?(?:\*\*|__)?\(?\d{1,3}[.)](?:\*\*|__)? +(?P<rest>.*)")
_HEADING = re.compile(r" {0,3}#{1,6} +[^#\s]")
_BOLD = re.compile(r"\*\*[^\s*][^*\n]*\*\*|(?<!\w)__[^\s_][^_\n]*__(?!\w)")
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


@dataclass(frozen=True)
class ListItems:
    """The list items of an answer.

    Args:
        numbered: Lines that begin with a number, such as "1." or "**2)**", nested ones included.
        bulleted: Lines that begin with "-", "*", "+", a bullet or an en dash, nested ones included.
        nested: Those of both that are indented by 2 or more spaces against the outermost item.
        main: Items that answer "give me N": the outermost numbered ones, or the outermost bullets without any.
    """

    numbered: int
    bulleted: int
    nested: int
    main: int

    def total(self) -> int:
        """All items: numbered and bulleted."""
        return self.numbered + self.bulleted


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

    Args:
        text: An answer.

    Returns:
        A count.

    Example:
        >>> count_words("- state-of-the-art, indeed!")
        2
    """
    return sum(any(map(str.isalnum, run)) for run in text.split())


def count_headings(text: str) -> int:
    r"""Count Markdown headings: lines that begin with one to six # and a space. A bold line is no heading.

    Args:
        text: An answer.

    Returns:
        A count.

    Example:
        >>> count_headings("# Plan\n## Costs\n#hashtag")
        2
    """
    return sum(bool(_HEADING.match(line)) for line in _prose_lines(text))


def count_bold(text: str) -> int:
    """Count bold spans: **so** or __so__, each within one line.

    Args:
        text: An answer.

    Returns:
        A count.

    Example:
        >>> count_bold("**Costs** fall, and __quality__ rises by 2 ** 3")
        2
    """
    return sum(len(_BOLD.findall(line)) for line in _prose_lines(text))


def _indents(pattern: re.Pattern[str], lines: list[str]) -> list[int]:
    """Return the indents (spaces) of the lines that are items by `pattern`; rules such as "- - -" are not."""
    found = [match for line in lines if (match := pattern.match(line))]
    return [len(match["indent"]) for match in found if match["rest"].strip("-*_ ")]


def list_items(text: str) -> ListItems:
    r"""Count list items, one a line: numbered, bulleted, nested.

    "First, ... Second, ..." in running text, "Step 1:", "a)" and emoji used as bullets are not counted.

    Args:
        text: An answer.

    Returns:
        The counts.

    Example:
        >>> list_items("1. Sell\n   - online\n2. Rent")
        ListItems(numbered=2, bulleted=1, nested=1, main=2)
    """
    lines = _prose_lines(text)
    numbered, bulleted = _indents(_NUMBERED, lines), _indents(_BULLET, lines)
    outermost = min(numbered + bulleted, default=0)
    leading = numbered or bulleted
    margin = min(leading, default=0)
    main = sum(indent < margin + 2 for indent in leading)
    nested = sum(indent >= outermost + 2 for indent in numbered + bulleted)
    return ListItems(len(numbered), len(bulleted), nested, main)


def repetition(text: str, size: int = 4) -> float:
    """rep-4: 1 - unique / total 4-grams of lower-cased words (Welleck et al., arXiv 1908.04319).

    Args:
        text: An answer.
        size: Words in an n-gram.

    Returns:
        A share: 0 without any repetition (or with fewer words than `size`), near 1 for an answer that loops.

    Example:
        >>> repetition("a b c d a b c d")
        0.19999999999999996
    """
    words = text.lower().split()
    grams = [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def echoes_prompt(text: str, prompt: str) -> bool:
    """Whether an answer repeats its prompt: it holds the whole prompt, or begins with its first 12 words.

    Case and white space do not matter. A prompt of fewer than 3 words is too short to tell.

    Args:
        text: An answer.
        prompt: What was asked.

    Returns:
        Whether it does.

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

    Args:
        text: An answer.

    Returns:
        Each one as it stands, in order, repeats included.

    Example:
        >>> template_leaks("Sure.</s> [INST] More?")
        ('</s>', '[INST]')
    """
    return tuple(_LEAKS.findall(text))


def is_empty(text: str) -> bool:
    r"""Whether an answer shows nothing: no characters, or only white space, control and invisible ones.

    Args:
        text: An answer.

    Returns:
        Whether it does.

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

    Args:
        text: An answer.

    Returns:
        Whether it does.

    Example:
        >>> looks_like_refusal("I'm sorry, but I can't help with that.")
        True
    """
    opening = " ".join(text[:200].lower().replace("\u2019", "'").split())
    return bool(_REFUSAL.search(opening))
