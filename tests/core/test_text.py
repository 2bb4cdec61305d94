"""Numbers, bytes and tables as people read them."""

from __future__ import annotations

from helpers.core.text import format_bytes, format_number, format_table


def test_numbers_are_readable():
    """Two or three figures, a true minus sign, a dash for nothing."""
    written = [format_number(value) for value in (1234.5, 12.34, 0.254, -0.0184, 0, None, float("nan"), "1")]
    assert written == ["1,234", "12.3", "0.254", "\u22120.018", "0", "\u2014", "\u2014", "\u2014"]
    assert format_number(0.5, sign=True) == "+0.500"
    assert format_number(0.125, share=True) == "12 %"
    assert [format_number(value) for value in (0.00001234, 0.0123456, 99.94)] == ["0.00001", "0.012", "99.9"]


def test_decimals_and_a_unit_can_be_set():
    """What rounds to zero has no minus sign, and one does."""
    assert format_number(-9.0, places=0) == "\u22129"
    assert format_number(-0.2074, places=3, unit="nats a token") == "\u22120.207 nats a token"
    assert format_number(-0.0004, places=3) == "0.000"


def test_bytes_are_gibibytes_or_mebibytes():
    """Below a tenth of a GiB they are MiB."""
    written = {75_024_199_680: "69.9 GiB", 15_784_000_000: "14.7 GiB", 3 * 2**20: "3.0 MiB", 0: "0.0 MiB"}
    written |= {107_374_182: "102.4 MiB", 107_374_183: "0.1 GiB", 100 * 2**20: "100.0 MiB"}
    assert {each: format_bytes(each) for each in written} == written


def test_tables_are_columns_two_spaces_apart():
    """Spaces before a cell's text stay; lines have no trailing spaces; numbers are left as they are written."""
    assert format_table([("a", "10", ""), ("  bb", "9", "x")]) == "a     10\n  bb  9   x"
    assert format_table([("1.50", "007")]) == "1.50  007"
