"""Answers that try to run, to break a layout, or to break a file format; and comparisons made of them.

A payload that runs sets `window.pwned` or `document.title` to "pwned".
"""

from __future__ import annotations

from functools import cache

from helpers.evaluation.overview import Overview, look_over
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo

RUN = "window.pwned=1;document.title='pwned'"

HOSTILE = {
    "script": f"<script>{RUN}</script>",
    "closed-script": f"</script><script>{RUN}</script>",
    "closed-style": f"</style></title></textarea></template><script>{RUN}</script>",
    "comment": f"<!-- <script>{RUN}</script> --!><script>{RUN}</script>]]>",
    "handlers": f'<img src=x onerror="{RUN}"><svg onload="{RUN}"><details open ontoggle="{RUN}"><body onload="{RUN}">',
    "attribute": f'" autofocus onfocus="{RUN}" x="',
    "single-quoted": f"' onmouseover='{RUN}' style='position:fixed;inset:0",
    "links": f'<a href="javascript:{RUN}">x</a> [x](javascript:{RUN})',
    "frame": '<iframe srcdoc="<script>parent.pwned=1</script>"></iframe><object data="javascript:1"></object>',
    "network": '<img src="http://127.0.0.1:9/x"><link rel=stylesheet href="//127.0.0.1:9/x">',
    "refresh": '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/">',
    "styles": "<style>body{display:none}</style><base href='http://127.0.0.1:9/'><plaintext>",
    "templates": "{{ 7*7 }} {% raw %} ${7*7} #{7*7} <%= 7*7 %> %(x)s {0}",
    "markdown": "# Heading\n\n* one\n* **two** `code`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n![x](http://127.0.0.1:9/x.png)",
    "right-to-left": "שלום עולם, זה טקסט בעברית.\n\u0645\u0631\u062d\u0628\u0627 123\nLatin with עברית inside.",
    "bidi": "safe \u202e gnidaelsim \u202c \u2066 isolated \u2069 \u202d forced and never closed \u202e",
    "emoji": "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 e\u0301 Z\u0351\u036bA\u0334",
    "control": "a\x00b\x07c\x08d\x1b[31me\x7f\x9f\ufeff\ufffe",
    "lone-surrogate": "a \ud800 b",
    "line-breaks": "one\r\ntwo\rthree\u2028four\u2029five\x85six\x0bseven\x0ceight",
    "unbroken": "W" * 20_000,
    "repeating": "the same words " * 250,
    "formula": "=cmd|'/C calc'!A0",
    "formula-plus": '+1+1,"=HYPERLINK(""http://127.0.0.1:9"")"\n@SUM(1)\t-2',
    "blank": " \n\t ",
    "empty": "",
}

ARMS = (
    Arm("base", "Base <b>model</b>", adapter=False),
    Arm("tuned", 'Tuned " onclick="window.pwned=1', adapter=True),
    Arm("base_bare", "</td>Base, bare", adapter=False, prompting="bare"),
)


def run_info(title: str = "SmolLM2-135M-Instruct against its adapter") -> RunInfo:
    """Make the head of a comparison."""
    return RunInfo(
        title=title,
        base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        adapter="runs/demo",
        system_prompt="",
        max_new_tokens=256,
        seed=3407,
        created="2026-05-12T14:03:00+00:00",
    )


@cache
def hostile_comparison() -> Comparison:
    """Make a comparison in which every text is hostile: prompts, categories, ids, references and answers."""
    texts = list(HOSTILE.items())
    prompts, answers, references = [], [], []
    for place, (name, text) in enumerate(texts):
        other = texts[(place + 1) % len(texts)][1]
        prompt = Prompt(f"{name}\"'<&>", f"{name}: {text}", category=text[:60], source=text[:60], reference=other)
        prompts.append(prompt)
        for arm, said in zip(ARMS, (text, other, text + other), strict=True):
            answers.append(Answer(prompt.id, arm.name, said, len(said.split()), "length" if place % 3 == 0 else "eos"))
            references.append(ReferenceScore(prompt.id, arm.name, 10.0 + place * arm.adapter, 0.1, 5, 20))
    info = run_info(f"</title><script>{RUN}</script>")
    return Comparison(info, tuple(prompts), ARMS, tuple(answers), tuple(references))


@cache
def hostile_overview() -> Overview:
    """Look the hostile comparison over; its scores take two seconds."""
    return look_over(hostile_comparison())


def plain_comparison(prompts: int = 4) -> Comparison:
    """Make a small well-behaved comparison whose answers name their prompt, and nothing of their arm but a word."""
    arms = (Arm("base", "Base + template", adapter=False), Arm("tuned", "Tuned", adapter=True))
    asked = tuple(Prompt(f"p{n}", f"Question {n}?", category="even" if n % 2 == 0 else "odd") for n in range(prompts))
    said = {"base": "plan the route before noon", "tuned": "plan a route before noon and check it"}
    answers = tuple(
        Answer(prompt.id, arm.name, f"{said[arm.name]} {prompt.id}", 9, "eos") for prompt in asked for arm in arms
    )
    return Comparison(run_info(), asked, arms, answers)
