"""Checked settings: types, ranges, choices, and what the errors say."""

from __future__ import annotations

import dataclasses

import pytest

from helpers.core.errors import ConfigError
from helpers.core.settings import Settings, coerce, nearest, refuse_undeclared, setting


@dataclasses.dataclass(frozen=True)
class Oven(Settings):
    """Settings of an oven, for these tests."""

    minutes: int = setting(30, "how long it bakes", unit="minutes", low=1, high=600)
    heat: float = setting(0.5, "share of full power", above=0.0, high=1.0)
    fan: bool = setting(False, "move the air")
    mode: str = setting("top", "where heat comes from", choices=("top", "bottom", "both"))
    weight: int | None = setting(None, "weight of the food", unit="grams", low=1)
    label: str = "unchecked"


class TestTypes:
    """What is taken for a field of each type."""

    @pytest.mark.parametrize(("given", "kept"), [(5, 5), ("5", 5), ("1e2", 100), (" 7 ", 7), ("60.0", 60)])
    def test_whole_numbers(self, given, kept):
        """A whole number, or text that spells one, is taken for an int field."""
        assert coerce("minutes", given, int, {}) == kept

    @pytest.mark.parametrize("given", [2.0, 2.5, True, None, "", "two", "1.5", "inf", "nan", "1e999", [1], {}])
    def test_no_whole_numbers(self, given):
        """Anything else is refused for an int field, floats and booleans too."""
        with pytest.raises(ConfigError, match="minutes: expected a whole number, got "):
            coerce("minutes", given, int, {})

    @pytest.mark.parametrize(("given", "kept"), [(0.5, 0.5), (1, 1.0), ("2e-4", 0.0002), ("1e-5", 0.00001)])
    def test_numbers(self, given, kept):
        """Numbers, and the exponents that YAML 1.1 reads as text, are taken for a float field."""
        value = coerce("heat", given, float, {})
        assert value == kept
        assert type(value) is float

    @pytest.mark.parametrize("given", ["high", "nan", float("inf"), float("nan"), False, None, 10**400, "1e999"])
    def test_no_numbers(self, given):
        """Words, booleans and what is not finite are refused for a float field."""
        with pytest.raises(ConfigError, match="heat: expected a number, got "):
            coerce("heat", given, float, {})

    @pytest.mark.parametrize(("given", "kept"), [(True, True), ("true", True), ("False", False)])
    def test_booleans(self, given, kept):
        """A boolean, or its name in any case, is taken for a bool field."""
        assert coerce("fan", given, bool, {}) is kept

    @pytest.mark.parametrize("given", [0, 1, "yes", "", None])
    def test_no_booleans(self, given):
        """Numbers and other words are refused for a bool field."""
        with pytest.raises(ConfigError, match="fan: expected true or false, got "):
            coerce("fan", given, bool, {})

    @pytest.mark.parametrize("given", [1, None, True, ["a"]])
    def test_no_text(self, given):
        """Only text is taken for a str field."""
        with pytest.raises(ConfigError, match="mode: expected text, got "):
            coerce("mode", given, str, {})

    def test_none_is_kept_where_the_field_is_optional(self):
        """None is a value of an optional field only."""
        assert coerce("weight", None, int | None, {}) is None
        assert coerce("weight", "12", int | None, {}) == 12


class TestSettings:
    """A dataclass that checks itself."""

    def test_defaults_are_kept(self):
        """Without arguments every field has its default."""
        assert dataclasses.asdict(Oven()) == {
            "minutes": 30,
            "heat": 0.5,
            "fan": False,
            "mode": "top",
            "weight": None,
            "label": "unchecked",
        }

    def test_values_are_converted(self):
        """Text that spells a number or a boolean becomes one."""
        assert Oven(minutes="45", heat="2.5e-1", fan="true") == Oven(minutes=45, heat=0.25, fan=True)

    def test_they_cannot_be_changed(self):
        """A checked value stays what it is."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            Oven().minutes = 5

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"minutes": 0}, "minutes: expected a whole number of minutes, at least 1 and at most 600, got 0."),
            ({"minutes": 601}, "minutes: expected a whole number of minutes, at least 1 and at most 600, got 601."),
            ({"heat": 0.0}, "heat: expected a number, above 0.0 and at most 1.0, got 0.0."),
            ({"heat": 1.5}, "heat: expected a number, above 0.0 and at most 1.0, got 1.5."),
            ({"weight": -2}, "weight: expected a whole number of grams, at least 1, got -2."),
            ({"mode": "botom"}, "mode: expected one of top, bottom, both, got 'botom'. Did you mean bottom?"),
            ({"mode": 3}, "mode: expected one of top, bottom, both, got 3."),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, given, message):
        """The error has the field's name, unit, range or choices, and the value."""
        with pytest.raises(ConfigError) as caught:
            Oven(**given)
        assert str(caught.value).startswith(message)

    def test_the_remedy_says_what_a_field_is_for(self):
        """Whoever typed it wrong reads what it does, and that it has a default."""
        with pytest.raises(ConfigError) as caught:
            Oven(minutes=0)
        assert caught.value.remedy == "It means: how long it bakes. Correct it, or leave it out for its default."

    @pytest.mark.parametrize("minutes", [1, 600])
    def test_the_ends_of_a_range_belong_to_it(self, minutes):
        """`low` and `high` are allowed values."""
        assert Oven(minutes=minutes).minutes == minutes


class TestNearest:
    """The hint at what was meant."""

    def test_a_close_name_is_offered(self):
        """A misspelt name gets the nearest known one."""
        assert nearest("learnin_rate", ["seed", "learning_rate"]) == "Did you mean learning_rate?"

    def test_else_all_names_are_listed(self):
        """A name like no other gets the list."""
        assert nearest("zzz", ["seed", "learning_rate"]) == "Known are: seed, learning_rate."


class TestUndeclared:
    """What plain papermill injects."""

    @pytest.mark.parametrize(
        "source", ["# Parameters\nmax_step = 1\n", '# Parameters\nmax_steps = 2\nmax_step = "a"\n']
    )
    def test_a_parameter_that_the_notebook_lacks_is_refused(self, source):
        """Papermill would go on with the default of the one that was meant."""
        namespace = {"In": ["", "max_steps = None", source], "max_step": 1}
        with pytest.raises(ConfigError, match=r"^max_step: .*got 1\. Did you mean max_steps\?"):
            refuse_undeclared(namespace, {"max_steps", "seed"})

    def test_what_the_user_wrote_is_left_alone(self):
        """Other cells may hold whatever names they like, and a script has no cells."""
        refuse_undeclared({"In": ["", "max_step = 1", "# Parameters\nmax_steps = 3\n"]}, {"max_steps"})
        refuse_undeclared({"max_step": 1}, {"max_steps"})
