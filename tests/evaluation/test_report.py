"""The report is one safe, self-contained page that says what there is to say."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import pytest
from browser import Page, needs_chromium, run_in_page
from hostile import HOSTILE, RUN, hostile_comparison, plain_comparison, run_info

from helpers.core.runs import RunDirectory
from helpers.core.text import visible
from helpers.display import style
from helpers.display.style import Drawing
from helpers.evaluation.adapter import AdapterSource
from helpers.evaluation.metrics.contamination import Neighbour
from helpers.evaluation.overview import look_over
from helpers.evaluation.pages import embed_json, read_part
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore
from helpers.evaluation.report.cards import Span, badges, prompt_cards, word_diff
from helpers.evaluation.report.page import measure_rows, ordered_arms, write_report
from helpers.evaluation.session import gains_of_exports

SVG = "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'><script>parent.pwned=1</script><circle r='4'/></svg>"


class Picture(Drawing):
    """A picture whose SVG is given."""

    def svg(self):
        """Return a hostile picture."""
        return SVG


def report(path, comparison=None, **more):
    """Write a report and return its text."""
    comparison = plain_comparison() if comparison is None else comparison
    return write_report(path / "r.html", comparison, look_over(comparison), **more).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory):
    """The text of a report in which every text that can be hostile is."""
    comparison, text = hostile_comparison(), HOSTILE["closed-script"] + HOSTILE["handlers"]
    comparison = replace(comparison, info=replace(comparison.info, other_task=text))
    return report(
        tmp_path_factory.mktemp("hostile"),
        comparison,
        figures=[Picture("x", text, HOSTILE["unbroken"], None)],
        neighbours=[Neighbour(prompt.id, 0, text, 0.5) for prompt in comparison.prompts],
        votes=f"{text}\n{HOSTILE['unbroken']}",
    )


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory):
    """The text of a report of a plain comparison."""
    return report(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def example_page(tmp_path_factory):
    """The text of a report of `example`."""
    return report(tmp_path_factory.mktemp("example"), example())


def example(**changes):
    """Make six prompts: p1 is truncated, p2 equal, p3 much longer, and tuning hurts p4 and p5."""
    comparison = plain_comparison(6)
    answers = {(answer.prompt_id, answer.arm): answer for answer in comparison.answers}
    answers["p1", "base"] = replace(answers["p1", "base"], finish_reason="length")
    answers["p2", "tuned"] = replace(answers["p2", "tuned"], text=answers["p2", "base"].text)
    answers["p3", "tuned"] = replace(answers["p3", "tuned"], text="word " * 900)
    gains = {"p0": 2.0, "p1": 5.0, "p3": 1.0, "p4": -1.0, "p5": -3.0}
    references = [ReferenceScore(name, "base", 50.0, 0.1, 10, 40) for name in gains]
    references += [ReferenceScore(name, "tuned", 50.0 - gain, 0.1, 10, 40) for name, gain in gains.items()]
    return replace(comparison, answers=tuple(answers.values()), references=tuple(references), **changes)


def test_hostile_texts_stay_text(hostile_page):
    """Every hostile answer is in the page letter by letter, as text and nothing else."""
    page = Page(hostile_page)
    for name, text in HOSTILE.items():
        if text.strip():
            assert visible(text) in page.said, name


def test_hostile_texts_add_no_elements_or_attributes(hostile_page):
    """A hostile comparison has the elements and attribute names of a harmless one, so no text became markup."""
    hostile = Page(hostile_page)
    handlers = {name for _, attrs in hostile.elements for name in attrs if name.startswith("on")}
    assert handlers == set()
    assert {tag for tag, _ in hostile.elements}.isdisjoint({"iframe", "object", "embed", "base", "link", "plaintext"})
    assert [attrs["src"][:26] for attrs in hostile.tags("img")] == ["data:image/svg+xml;base64,"]
    assert all(attrs["href"].startswith("#") for attrs in hostile.tags("a"))
    assert len(hostile.tags("script")) == 1
    assert len(hostile.tags("style")) == 1


def test_policy_lets_in_the_one_script(hostile_page):
    """The policy forbids everything but embedded pictures, inline styles and the script whose hash it names."""
    text = hostile_page
    policy = next(a["content"] for a in Page(text).tags("meta") if a.get("http-equiv") == "Content-Security-Policy")
    code = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_page_names_no_address(plain_page):
    """A report of harmless texts holds no address of any host: fonts, styles and scripts are its own."""
    assert re.findall(r"(?:https?:|url\(|@import|//[a-z])", plain_page) == []


def test_reads_without_script(plain_page):
    """Without JavaScript all answers are visible; what is hidden is the toolbar and the theme button, which need it."""
    page = Page(plain_page)
    assert [attrs["id"] for _, attrs in page.elements if "hidden" in attrs] == ["theme", "tools"]
    assert "plan a route before noon and check it p3" in page.said


def test_every_control_has_a_name(plain_page):
    """Inputs and selects stand inside labels, and buttons have text, so a screen reader can name them."""
    labels = re.findall(r"<label>.*?</label>", plain_page, re.DOTALL)
    assert len(labels) == len(re.findall(r"<(?:input|select)", plain_page)) == 7
    assert re.findall(r"<button[^>]*>(.*?)</button>", plain_page) == ["Dark mode", "Reset"]


def test_verdict_comes_first(example_page):
    """The headline stands before the first table, the first table before the first answer."""
    places = [
        example_page.index(mark) for mark in ("<h1>", "Cannot tell whether held-out answers", "<table", 'class="card"')
    ]
    assert places == sorted(places)


def test_report_of_answers_alone_has_no_other_sections(plain_page):
    """Sections without content are left out."""
    assert re.findall(r'<h2 id="(\w+)"', plain_page) == ["verdict", "measures", "prompts", "about"]


def test_report_of_everything_has_all_sections(hostile_page):
    """Each argument adds its section, in the order a reader needs them."""
    ids = re.findall(r'<h2 id="(\w+)"', hostile_page)
    assert ids == ["verdict", "votes", "measures", "figures", "hurt", "prompts", "about"]


def test_each_measure_is_defined_where_it_stands(example_page):
    """A line under its name."""
    assert 'NLL with EOS, nats/token<span class="meaning">Mean -log p of the reference' in example_page
    assert "6 more measures, described and not judged" in example_page


def test_what_a_verdict_rests_on_is_folded_under_it(example_page):
    """Its outcome, with a sign and not with colour alone, and its figures."""
    assert re.search(
        r'<span class="state cannot-tell"><span aria-hidden="true">○ </span>cannot tell</span>', example_page
    )
    assert "5 independent rows are too few, 12 are needed. NLL with EOS:" in example_page
    assert "How to read this" in example_page[: example_page.index("<table")]


def test_a_page_has_one_minus_sign(example_page):
    """No hyphen stands before a number that is shown."""
    text = re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", example_page, flags=re.DOTALL)
    assert re.findall(r"(?<![\w-])-\d", text) == []
    assert "\u2212" in text


def test_colours_of_the_page_are_those_of_the_pictures():
    """The base's and the tuned arm's, and those for better and worse, are named once in `helpers.display.style`."""
    css = read_part("theme.css")
    named = {"--first": style.BASE, "--second": style.TUNED, "--good": style.BETTER, "--warn": style.WORSE}
    assert {name: re.search(rf"{name}: (#\w+);", css)[1] for name in named} == named


def test_a_colour_means_one_thing():
    """No two roles share one."""
    roles = [value for name, value in vars(style).items() if name.isupper() and str(value).startswith("#")]
    assert len(set(roles)) == len(roles) == 8


def test_report_without_answers_says_so(tmp_path):
    """A comparison that was scored but not generated gives a report with no cards."""
    comparison = replace(example(), answers=())
    text = report(tmp_path, comparison)
    assert "No prompt has an answer yet." in text
    assert "0 answered, 5 scored against a reference" in text


def test_gains_prefer_reference_scores():
    """NLL gains are base minus tuned, per token and with the EOS, for the prompts both arms scored."""
    overview = look_over(example())
    label, gains = overview.gains()
    assert label == "NLL with EOS"
    assert gains == pytest.approx({"p0": 2 / 11, "p1": 5 / 11, "p3": 1 / 11, "p4": -1 / 11, "p5": -3 / 11})
    assert overview.worst() == ["p5", "p4"]


def test_gains_fall_back_on_rouge():
    """Without reference scores the gain is tuned minus base ROUGE-L; without either there is none."""
    comparison = plain_comparison(1)
    assert look_over(comparison).gains() == ("", {})
    prompts = (replace(comparison.prompts[0], reference="plan the route before noon p0"),)
    label, gains = look_over(replace(comparison, prompts=prompts)).gains()
    assert (label, gains) == ("ROUGE-L", {"p0": pytest.approx(-1 / 3)})


def test_two_draws_of_one_model_are_not_judged():
    """In an A/A test the headline says that differences are noise, and there is no NLL to compare."""
    base, again = Arm("base", "Base", adapter=False), Arm("again", "Base, second draw", adapter=False)
    records = [*example().answers, *example().references]
    drawn = [replace(each, arm="again") if each.arm == "tuned" else each for each in records]
    answers, scores = ([each for each in drawn if isinstance(each, kind)] for kind in (Answer, ReferenceScore))
    comparison = replace(example(), arms=(base, again), answers=tuple(answers), references=tuple(scores))
    overview = look_over(comparison)
    assert (overview.base, overview.tuned) == (base, again)
    assert (overview.verdicts, "nll_with_eos" in overview.estimates) == ((), False)
    assert overview.headline() == "Both answers come from the base model: whatever differs here is noise."


def test_badges_name_what_is_good_and_what_is_not():
    """A badge carries its meaning in words, not in colour alone."""
    row = {"words": 3, "list_items": 2, "asked_items": 3.0, "items_met": 0.0, "rep_4": 0.34, "template_leak": 1.0}
    row |= {"truncated": 1.0, "empty": 0.0, "prompt_echo": 0.0, "refusal": 0.0}
    assert [(badge["kind"], badge["text"]) for badge in badges(row)] == [
        ("plain", "3 words"),
        ("plain", "2 list items"),
        ("warn", "asked for 3: not met"),
        ("warn", "cut at the length limit"),
        ("warn", "repeats itself (34 % of 4-grams)"),
        ("warn", "template marks in the answer"),
    ]


def test_cards_flag_what_the_filters_ask_for():
    """Flags of the example: p1 truncated, p2 equal, p3 of unlike length."""
    comparison = example()
    cards = prompt_cards(comparison, look_over(comparison))
    flags = {card["id"]: card["differs"] + card["truncated"] + card["matched"] for card in cards}
    assert flags == {"p0": "100", "p1": "110", "p2": "001", "p3": "100", "p4": "100", "p5": "100"}


def test_length_match_allows_a_fifth():
    """8 against 10 words match, 7 against 10 do not."""
    prompt, arms = Prompt("p", "?"), plain_comparison().arms
    for words, matched in ((8, "1"), (7, "0")):
        answers = (Answer("p", "base", "w " * words, 9, "eos"), Answer("p", "tuned", "w " * 10, 9, "eos"))
        comparison = Comparison(run_info(), (prompt,), arms, answers)
        assert prompt_cards(comparison, look_over(comparison))[0]["matched"] == matched


def test_differences_are_words():
    """Words only one side has are marked; white space is marked only between two of them."""
    diff = word_diff("plan the long route now", "plan a route\nnow")
    assert diff.left == (Span("plan ", only=False), Span("the long", only=True), Span(" route now", only=False))
    assert diff.right == (Span("plan ", only=False), Span("a", only=True), Span(" route\nnow", only=False))
    assert diff.shared == pytest.approx(0.6)


def test_differences_join_to_the_answers():
    """The pieces of an answer are the answer, whatever it holds."""
    for text in HOSTILE.values():
        diff = word_diff(text, f"plan {text} now")
        assert "".join(span.text for span in diff.left) == text
        assert "".join(span.text for span in diff.right) == f"plan {text} now"


def test_differences_give_up_on_what_is_too_alike_or_too_unlike():
    """Answers with little in common, and long repetitive ones, are left unmarked."""
    assert not word_diff("one two three four five six", "seven one eight nine ten eleven").marked
    repetitive = word_diff("a b " * 1000, "b a c " * 900)
    assert (repetitive.marked, repetitive.shared) == (False, None)


def test_the_same_answer_is_shown_once():
    """The second side says so; an empty one says that it is empty."""
    cards = {card["id"]: card["pair"] for card in prompt_cards(example(), look_over(example()))}
    assert [side["blank"] for side in cards["p2"]] == ["", "The same answer."]
    assert [side["blank"] for side in cards["p0"]] == ["", ""]


def test_interval_picture_is_centred_on_zero():
    """The widest end lies at 44 of 50; with fewer than six rows there is neither interval nor picture."""
    few = measure_rows(look_over(example()), example().arms)[0]
    assert (few["interval"], few["plot"]) == ("\u2014", None)
    texts = [("w " * 10, "w " * (n + 8)) for n in range(6)]
    arms = example().arms
    prompts = tuple(Prompt(f"p{n}", "?") for n in range(6))
    answers = tuple(
        Answer(p.id, a.name, t, 9, "eos")
        for p, both in zip(prompts, texts, strict=True)
        for a, t in zip(arms, both, strict=True)
    )
    rows = measure_rows(look_over(Comparison(run_info(), prompts, arms, answers)), arms)
    words = next(row for row in rows if row["label"] == "Words")
    assert (words["cells"], words["difference"], words["n"]) == (["10", "10.5"], "+0.500", "6")
    assert words["interval"] == "\u22121.46 to +2.46"
    assert words["plot"] == {"middle": 58.93, "low": 23.86, "high": 94.0}


def test_arms_are_ordered_by_prompting():
    """Bare, template, few-shot, then the adapter; each cell is a mean over the prompts that have the measure."""
    arms = [Arm("tuned", "T", adapter=True), Arm("base", "B", adapter=False)]
    arms += [Arm(f"base_{name}", name, adapter=False, prompting=name) for name in ("few_shot", "bare")]
    found = ordered_arms(Comparison(run_info(), (), tuple(arms), ()))
    assert [arm.label for arm in found] == ["bare", "B", "few_shot", "T"]


def test_json_cannot_end_its_element():
    """JSON inside a script element holds neither "<" nor ">", nor a line separator."""
    text = embed_json({"a": "</script><!--\u2028&"})
    assert text == '{"a":"\\u003c/script\\u003e\\u003c!--\\u2028\\u0026"}'


MEASURE = """
function wide(e) { return e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.unseen, thead'); }
function outside(e) { return e.name.slice(0, 5) !== 'data:'; }
return {pwned: window.pwned || null, title: document.title, scroll: document.documentElement.scrollWidth,
  inner: innerWidth, cards: document.querySelectorAll('.card').length,
  loaded: performance.getEntriesByType('resource').filter(outside).length,
  wide: [].filter.call(document.querySelectorAll('body *'), wide).length};
"""


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_and_nothing_overflows(hostile_page, tmp_path, width):
    """In Chromium, even without the policy, no payload runs or loads, and no element is wider than the window."""
    found = run_in_page(hostile_page, MEASURE, tmp_path, width=width)
    assert found.pop("title") == visible(hostile_comparison().info.title)
    assert found == {"pwned": None, "scroll": width, "inner": width, "cards": len(HOSTILE), "loaded": 0, "wide": 0}


@needs_chromium
def test_policy_stops_what_escaping_would_miss(plain_page, tmp_path):
    """A payload planted past the escaping does not run, while the page's own script does its work."""
    page = plain_page
    payload = f'<script>{RUN}</script><img src="data:," onerror="{RUN}"><a id="a" href="javascript:{RUN}">x</a>'
    page = page.replace("<main>", f"<main>{payload}", 1)
    script = "var find = document.getElementById.bind(document); find('a').click();"
    script += "return [window.pwned || null, find('count').textContent];"
    assert run_in_page(page, script, tmp_path, keep_policy=True) == [None, "4 of 4 prompts shown"]


BEHAVE = """
var find = document.getElementById.bind(document), found = {};
function all(selector) { return [].slice.call(document.querySelectorAll(selector)); }
function shown() {
  return all('.card').filter(function (card) { return !card.hidden; })
    .map(function (card) { return card.querySelector('.place span').textContent; }).join(' ');
}
function set(id, value) {
  var control = find(id);
  if (typeof value === 'boolean') { control.checked = value; } else { control.value = value; }
  control.dispatchEvent(new Event('input', {bubbles: true}));
  return shown();
}
found.all = shown();
found.search = set('search', 'QUESTION 4?'); found.count = find('count').textContent; set('search', '');
found.category = set('category', 'odd'); set('category', '');
['differing', 'whole', 'matched'].forEach(function (id) { found[id] = set(id, true); set(id, false); });
['gain', 'hurt', 'length'].forEach(function (order) { found[order] = set('sort', order); });
set('marks', false); found.marks = find('cards').className; set('marks', true);
var more = all('.more'), text = more[0].previousSibling, low = text.offsetHeight;
more[0].click();
found.more = [more.length, text.offsetHeight > low, more[0].getAttribute('aria-expanded')];
found.lines = ['base', 'tuned'].map(function (side) {
  return getComputedStyle(document.querySelector('.side.' + side + ' mark')).textDecorationStyle;
});
var light = getComputedStyle(document.body).backgroundColor;
find('theme').click();
found.theme = [document.documentElement.getAttribute('data-theme'),
  getComputedStyle(document.body).backgroundColor !== light];
return found;
"""


@needs_chromium
def test_filters_orders_and_theme_work(example_page, tmp_path):
    """Each control does what its label says; marks differ in line style, not in colour alone."""
    assert run_in_page(example_page, BEHAVE, tmp_path, keep_policy=True, width=1280) == {
        "all": "p0 p1 p2 p3 p4 p5",
        "search": "p4",
        "count": "1 of 6 prompts shown",
        "category": "p1 p3 p5",
        "differing": "p0 p1 p3 p4 p5",
        "whole": "p0 p2 p3 p4 p5",
        "matched": "p2",
        "gain": "p1 p0 p3 p4 p5 p2",
        "hurt": "p5 p4 p0 p1 p2 p3",
        "length": "p3 p0 p1 p4 p5 p2",
        "marks": "",
        "more": [1, True, "true"],
        "lines": ["dotted", "solid"],
        "theme": ["dark", True],
    }


def test_what_the_exports_keep_of_the_gain_is_among_the_details(tmp_path):
    """One line for each export that the adapter's run measured; a folder from elsewhere has none."""
    run = RunDirectory(tmp_path / "tuned")
    kept = {"numbers": {"gain_kept": {"text": "Held-out gain kept: 99.0%."}}}
    run.update_manifest(exports={"adapter": kept, "merged": kept, "gguf": {"numbers": {}}})
    said = gains_of_exports(AdapterSource(tmp_path, "a/b", run=run))
    assert said == {"Exports": "adapter: Held-out gain kept: 99.0%.\nmerged: Held-out gain kept: 99.0%."}
    assert gains_of_exports(AdapterSource(tmp_path, "a/b")) == {}
