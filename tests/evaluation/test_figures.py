"""Pictures: what is drawn, what the captions say, and that any text can be drawn."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from helpers.display.style import new_figure, plain_text
from helpers.evaluation.metrics.token_shift import ShiftedToken
from helpers.evaluation.overview import look_over
from helpers.evaluation.records import Answer, Arm, Comparison, Prompt, ReferenceScore, RunInfo
from helpers.evaluation.report.figures import draw_all, draw_differences, draw_ladder, draw_lengths, draw_shift, lay_out
from helpers.evaluation.show import show_picture
from helpers.evaluation.votes.ballot import KeyItem, Vote, VoteKey
from helpers.evaluation.votes.tally import reveal

VALUES = (-0.3, -0.2, -0.25, 0.1, -0.15, -0.05, 0.0, -0.4)
INFO = RunInfo("t", "b", "a", "", 8, 1, "2026-01-01")
ARMS = (Arm("base", "Base", adapter=False), Arm("tuned", "Tuned", adapter=True))


def overview(values=VALUES, **losses):
    """Return rows whose ten-token references cost the tuned arm so much more, and other arms what is named."""
    arms = [*ARMS, *(Arm(name, name, adapter=False, prompting=name.removeprefix("base_")) for name in losses)]
    shifts = {"base": [0.0] * len(values), "tuned": values} | losses
    prompts = tuple(Prompt(f"p{n}", "?") for n in range(len(values)))
    scores = tuple(
        ReferenceScore(prompt.id, arm.name, 20 + 10 * shifts[arm.name][n], 0.0, 9, 40)
        for n, prompt in enumerate(prompts)
        for arm in arms
    )
    return Comparison(INFO, prompts, tuple(arms), (), scores)


def differences(values=VALUES):
    """Return the picture of their differences."""
    return draw_differences(look_over(overview(values)), "nll_with_eos")


def example():
    """Return a comparison of four arms on eight rows in two categories."""
    arms = tuple(Arm(n, n.title(), n == "tuned") for n in ("base", "tuned", "base_bare", "base_few_shot"))
    prompts = tuple(Prompt(f"p{n}", f"Q {n}?", "$x$ <b>" if n < 6 else "few", reference="a b c d") for n in range(8))
    shift = {"base": 2.0, "tuned": 1.7, "base_bare": 2.4, "base_few_shot": 1.9}
    references = tuple(
        ReferenceScore(p.id, a.name, 10 * (shift[a.name] + n / 7), 0.1, 10, 40)
        for n, p in enumerate(prompts)
        for a in arms
    )
    answers = tuple(
        Answer(p.id, a.name, "a b c" + " d" * (a.adapter and n % 2), 4, "eos")
        for n, p in enumerate(prompts)
        for a in arms
    )
    return Comparison(RunInfo("t", "b", "a", "", 8, 1, "2026-01-01"), prompts, arms, answers, references)


class TestDrawing:
    """Files of pictures."""

    def test_svg_is_transparent_and_has_no_fonts(self):
        """Letters are shapes, so the picture looks the same inside any page; nothing is painted behind it."""
        svg = differences().svg()
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert "<text" not in svg
        assert not re.search(r"fill:\s*#ffffff", svg)

    def test_svg_is_the_same_each_time(self):
        """No date and no random ids."""
        drawing = differences()
        assert drawing.svg() == drawing.svg()
        assert "<dc:date>" not in drawing.svg()

    def test_png_is_saved_under_its_name(self, tmp_path):
        """The picture shows in a notebook."""
        picture = differences().save(tmp_path / "new")
        assert picture == tmp_path / "new" / "differences.png"
        assert picture.read_bytes().startswith(b"\x89PNG")

    def test_any_text_can_be_drawn(self):
        """Formulas, line breaks and characters that the font lacks do no harm."""
        assert plain_text("price in $x$\n\u65e5\u672c") == r"price in \$x\$ □□"
        assert plain_text("a long name", 6) == "a lon…"
        figure, axes = new_figure(1.0)
        axes.set_title(plain_text("$\\frac{$"))
        figure.savefig("/dev/null", format="svg")


class TestFigures:
    """What each picture says."""

    def test_differences_count_both_sides(self):
        """Six of eight rows fell, one rose, one stayed; the mean's interval is stated, and no verdict."""
        assert differences().caption == (
            "Each line is one row: 6 better (circles), 1 worse (triangles), 1 equal. The diamond is the mean, "
            "\u22120.156, and the bar its 95 % interval, \u22120.295 to \u22120.018. "
            "Look for single rows that carry the mean."
        )

    def test_one_row_has_no_interval(self):
        """The caption says why."""
        assert differences((0.1,)).caption.endswith("there is no interval: one row does not show how much rows differ.")

    def test_categories_with_few_rows_show_counts(self):
        """Two rows get no interval, and the caption warns of looking at many."""
        caption = draw_all(example(), look_over(example()))["categories"].caption
        assert "1 with fewer than six rows show counts only." in caption
        assert caption.endswith("take them as questions, not as answers.")

    @pytest.mark.parametrize(
        ("few_shot", "words"),
        [
            (-0.1, "The adapter gives more than examples in the prompt (tuned minus examples \u22120.200, \u22120."),
            (-0.5, "Examples in the prompt give more than the adapter, and need no training"),
            (-0.3, "which gives more, the adapter or examples in the prompt: the interval contains zero ("),
        ],
    )
    def test_the_ladder_compares_examples_with_the_adapter_in_pairs(self, few_shot, words):
        """By the interval of their own differences."""
        noise = [0.05, -0.05] * 8
        values = [-0.3 + each for each in noise]
        found = overview(values, base_few_shot=[few_shot - each / 2 for each in noise])
        assert words in draw_ladder(found, look_over(found)).caption

    def test_few_rows_conclude_nothing_about_the_prompt(self):
        """However clear their means are."""
        found = overview(VALUES, base_few_shot=[5.0 + 2 * value for value in VALUES])
        assert "in the prompt: 8 independent rows are too few, 12 are needed (" in (
            draw_ladder(found, look_over(found)).caption
        )

    def test_a_ladder_needs_three_arms(self):
        """Without examples there is nothing to hold the adapter against."""
        assert draw_ladder(overview(), look_over(overview())) is None

    def test_length_is_held_against_gains(self):
        """Counts of longer and shorter answers that gained."""
        comparison = example()
        assert (
            "Of the tuned answers, 4 of 4 longer ones and 0 of 0 shorter ones have a higher ROUGE-L than the base's."
            in (draw_lengths(look_over(comparison)).caption)
        )
        assert draw_lengths(look_over(overview())) is None

    def test_tokens_break_between_words(self):
        """A token that does not fit goes to the next line without its space; a full stop may stick out."""
        tokens = [ShiftedToken(text, 1) for text in ("One", " two", ".", "\n\n", "Three", " fourfive")]
        placed = [(line, column, text) for line, column, text, _ in lay_out(tokens, columns=7)]
        assert placed == [(0, 0, "One"), (0, 4, "two"), (0, 7, "."), (2, 0, "Three"), (3, 0, "fourfiv")]

    @pytest.mark.parametrize("texts", [(), ("$", "\\", "{", "\u65e5", "\U0001f600", "\u202e", "")])
    def test_any_answer_can_be_drawn(self, texts):
        """An empty answer, and one full of signs."""
        assert draw_shift([ShiftedToken(text, 5) for text in texts], "$x").svg().startswith("<?xml")

    def test_long_answers_show_their_beginning(self):
        """The caption says so."""
        assert "shows the beginning" in draw_shift([ShiftedToken(" word", 1)] * 400, "x").caption


class TestGallery:
    """Which pictures there are."""

    def test_everything_that_has_data_is_drawn(self):
        """Four arms, categories, references and answers give all four."""
        comparison = example()
        pictures = draw_all(comparison, look_over(comparison))
        assert list(pictures) == ["differences", "categories", "ladder", "lengths"]

    def test_votes_take_the_place_of_rouge(self):
        """With votes, length is held against who won."""
        comparison = example()
        key = VoteKey("base", "tuned", {"i": KeyItem("p1", "base", "tuned")})
        pictures = draw_all(comparison, look_over(comparison), reveal([Vote("i", "b", voter="Ann")], key))
        assert (
            "Of the tuned answers, 1 of 1 longer ones and 0 of 0 shorter ones were preferred."
            in pictures["lengths"].caption
        )

    def test_what_is_missing_is_said(self, tmp_path):
        """A picture without data is a sentence on what to do."""
        comparison = example()
        pictures = draw_all(comparison, look_over(comparison))
        assert "No answer was ranked." in repr(show_picture(pictures, "token_shift", tmp_path))
        shown = show_picture(pictures, "ladder", tmp_path)
        assert (tmp_path / "ladder.png").is_file()
        assert "data:image/png;base64," in shown._repr_html_()
        assert repr(shown).startswith("How much does prompting alone give?")
