"""The course's diagrams as they are made: the numbers in them, and that they can be read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sources import package_root

from tools.drawings import MASKED, NF4_LEVELS, draw_lora, draw_mask, draw_nf4, draw_packing, nearest_level
from tools.svg import DARK, LIGHT, WIDTH, Drawing

ALL = {
    "lora": draw_lora(),
    "small lora": draw_lora(6, 4, 2),
    "nf4": draw_nf4(),
    "mask": draw_mask(),
    "packing": draw_packing(),
}
SVG = "{http://www.w3.org/2000/svg}"


def words(drawing):
    """Return the texts of a drawing."""
    return [element.text for element in ElementTree.fromstring(drawing.svg()).iter(f"{SVG}text")]


def luminance(colour):
    """Return a colour's relative luminance (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


class TestNumbers:
    """What the drawings say."""

    def test_the_levels_are_those_of_bitsandbytes(self):
        """The 16 levels are the ones that bitsandbytes rounds to."""
        source = (package_root("bitsandbytes") / "bitsandbytes/functional.py").read_text(encoding="utf-8")
        table = source[source.index("-0.6961928009986877") - 200 :]
        numbers = [float(each) for each in re.findall(r"^\s+(-?\d\.\d+),$", table, re.MULTILINE)]
        assert tuple(numbers[:16]) == NF4_LEVELS

    @pytest.mark.parametrize(
        ("value", "code"), [(-1, 0), (0, 7), (0.039, 7), (0.041, 8), (0.5, 12), (0.52, 13), (1, 15)]
    )
    def test_a_value_goes_to_its_nearest_level(self, value, code):
        """Between two levels the nearer one is taken."""
        assert nearest_level(value) == code

    def test_a_block_keeps_its_largest_weight(self):
        """Each weight is divided by the largest, rounded to a level and multiplied again."""
        assert draw_nf4().description.endswith(
            "With the scale 0.112, 0.021 becomes 0.018, -0.112 becomes -0.112, "
            "0.004 becomes 0.000, 0.058 becomes 0.063."
        )

    def test_lora_is_counted(self):
        """A matrix of 4096 x 4096 has 16.8 million numbers, its adapter of rank 16 131 thousand: 0.8 %."""
        assert {"16,777,216 numbers, frozen", "131,072 numbers, learned: 0.8 % of W's"} <= set(words(draw_lora()))
        assert {"24 numbers, frozen", "20 numbers, learned: 83.3 % of W's"} <= set(words(draw_lora(6, 4, 2)))

    def test_the_row_is_cut_as_mistral_cuts_it(self, mistral_tokenizer):
        """The mask's tokens are those of the tokenizer, template and end included."""
        from helpers.data.chat_templates import render

        row = [{"role": "user", "content": "Add 2 and 3."}, {"role": "assistant", "content": "5"}]
        ids = mistral_tokenizer(render(mistral_tokenizer, row, answer_next=False), add_special_tokens=False)[
            "input_ids"
        ]
        assert mistral_tokenizer.convert_ids_to_tokens(ids) == [piece for piece, _ in MASKED]
        assert ids[-3:] == [29473, 29550, 2]

    def test_packing_is_counted(self):
        """Four rows of 19 tokens take 28 places padded, 19 end to end and two sequences of 10."""
        assert draw_packing().description == (
            "4 rows have 19 tokens. Padded, they take 28 places; end to end 19; packed to 10, 2 sequences. In each "
            "case a token attends to its own row only."
        )

    def test_positions_begin_anew_in_each_row(self):
        """The numbers in the row that is laid end to end are those of its four rows."""
        numbers = [each for each in words(draw_packing()) if each.isdecimal()]
        assert "".join(numbers[19:38]) == "0123456" + "012" + "01234" + "0123"


@pytest.mark.parametrize("name", ALL)
class TestForm:
    """Each drawing."""

    def test_it_is_a_whole_picture(self, name):
        """It is well-formed, and has a title and a description for those who do not see it."""
        root = ElementTree.fromstring(ALL[name].svg())
        assert root.get("viewBox").startswith("0 0 400 ")
        assert root.find(f"{SVG}title").text
        assert root.find(f"{SVG}desc").text == ALL[name].description

    def test_nothing_leaves_the_paper(self, name):
        """Every shape lies on the paper, and so does every line of text at 0.58 em a letter."""
        drawing = ALL[name]
        for element in ElementTree.fromstring(drawing.svg()):
            if element.tag == f"{SVG}rect":
                x, y = float(element.get("x", 0)), float(element.get("y", 0))
                assert 0 <= x <= x + float(element.get("width")) <= WIDTH
                assert 0 <= y <= y + float(element.get("height")) <= drawing.height
            if element.tag == f"{SVG}text":
                long = 0.58 * float(element.get("font-size")) * len(element.text)
                left = (
                    float(element.get("x")) - {"start": 0, "middle": long / 2, "end": long}[element.get("text-anchor")]
                )
                assert 0 <= left <= left + long <= WIDTH, element.text
                assert float(element.get("y")) <= drawing.height - 4

    def test_its_letters_can_be_read_on_a_phone(self, name):
        """No letter is smaller than 11 of 400 units, which is 9 pixels of a phone 340 wide."""
        sizes = [float(each.get("font-size")) for each in ElementTree.fromstring(ALL[name].svg()).iter(f"{SVG}text")]
        assert min(sizes) >= 11


class TestColours:
    """Paper and ink."""

    @pytest.mark.parametrize("roles", [LIGHT, DARK], ids=["light", "dark"])
    def test_text_has_contrast(self, roles):
        """Text on paper, and text on each coloured box, has a contrast of at least 4.5."""
        pairs = [("ink", "paper"), ("dim", "paper"), ("ink", "given"), ("learned", "paper")]
        pairs += [(f"on-{role}", role) for role in ("learned", "second", "third", "fourth")]
        for ink, ground in pairs:
            low, high = sorted((luminance(roles[ink]), luminance(roles[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)

    def test_paper_and_ink_change_together(self):
        """Every role has a colour in the dark as well."""
        assert set(LIGHT) == set(DARK)
        assert "@media (prefers-color-scheme:dark){.mqn" in draw_mask().svg()

    def test_styles_stay_in_the_drawing(self):
        """Every rule begins with the drawing's class, so that a page that holds it keeps its own looks."""
        style = (
            ElementTree.fromstring(draw_mask().svg())
            .find(f"{SVG}style")
            .text.replace("@media (prefers-color-scheme:dark){", "")
        )
        selectors = [part for rule in re.findall(r"([^{}]+)\{[^}]*\}", style) for part in rule.split(",")]
        assert len(selectors) > 50
        assert [each for each in selectors if not each.startswith(".mqn ")] == []


def test_words_are_escaped():
    """Text with signs of markup stays text."""
    drawing = Drawing(40, "a < b", "<b>&")
    drawing.text(10, 20, "<script>")
    assert words(drawing) == ["<script>"]
    assert "<script>" not in drawing.svg()


def test_the_package_carries_them_as_they_are_drawn():
    """The files in helpers/display/drawings are those that `scripts/build_drawings` makes."""
    command = [sys.executable, str(Path(__file__).parents[2] / "scripts" / "build_drawings"), "--check"]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
