"""Files of rows: every format, encoding and delimiter that people have, and what is refused in which words."""

from __future__ import annotations

import csv
import gzip
import json

import pytest

from helpers.core.errors import DataError
from helpers.data.readers import plain_value, read_file

TWO = [{"instruction": "Say “ü”.", "input": "", "output": "ü\nÜ"}, {"instruction": "a, b", "input": "x", "output": "c"}]


def write(path, rows, encoding="utf-8", delimiter=","):
    """Write rows in the format that the end of the file's name says; return the path."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding=encoding, newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        text = "\n".join(lines) + "\n" if kind in ("jsonl", "ndjson") else f"[{', '.join(lines)}]"
        path.write_bytes(text.encode(encoding))
    if path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


def error_of(path) -> DataError:
    """Return the error that reading a file raises."""
    with pytest.raises(DataError) as caught:
        read_file(path)
    return caught.value


class TestFormats:
    """What is read, and how it is said."""

    @pytest.mark.parametrize(
        ("name", "read_as"),
        [
            ("a.json", "JSON"),
            ("A.JSON", "JSON"),
            ("a.jsonl", "JSON lines"),
            ("a.ndjson", "JSON lines"),
            ("a.csv", "CSV, separated by commas"),
            ("a.parquet", "Parquet"),
            ("a.json.gz", "JSON, gzip"),
            ("a.jsonl.gz", "JSON lines, gzip"),
            ("a.csv.gz", "CSV, separated by commas, gzip"),
            ("a.parquet.gz", "Parquet, gzip"),
        ],
    )
    def test_every_format_gives_the_same_rows(self, tmp_path, name, read_as):
        """Line breaks, commas, quotes and Unicode survive each format."""
        table = read_file(write(tmp_path / name, TWO))
        assert (table.rows, table.read_as) == (TWO, read_as)

    @pytest.mark.parametrize(
        ("name", "delimiter", "word"),
        [
            ("a.csv", ";", "semicolons"),
            ("a.csv", "\t", "tabs"),
            ("a.tsv", "\t", "tabs"),
            ("a.tsv", ",", "commas"),
            ("a.csv", "|", "vertical bars"),
        ],
    )
    def test_the_delimiter_is_the_header_s(self, tmp_path, name, delimiter, word):
        """Commas, semicolons and tabs are told apart, whatever the file's name ends in."""
        table = read_file(write(tmp_path / name, TWO, delimiter=delimiter))
        assert (table.rows, table.read_as) == (TWO, f"CSV, separated by {word}")

    def test_a_delimiter_inside_a_quoted_name_does_not_count(self, tmp_path):
        """What stands in quotation marks is a name."""
        (tmp_path / "a.csv").write_text('"a, or b, or c";output\nx;y\n', encoding="utf-8")
        assert read_file(tmp_path / "a.csv").rows == [{"a, or b, or c": "x", "output": "y"}]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", '{"a": "1"}\n{"a": "2"}\n'),
            ("a.json", '{"data": [{"a": "1"}, {"a": "2"}], "version": 3}'),
            ("a.json", '{"rows": {"train": [{"a": "1"}, {"a": "2"}], "none": []}}'),
            ("a.csv", "sep=;\r\na\r\n1\r\n2\r\n"),
            ("a.jsonl", '[{"a": "1"}, {"a": "2"}]'),
        ],
    )
    def test_json_s_forms_are_told_apart(self, tmp_path, name, text):
        """A list, one object a line and rows under a key are read, whichever of these the name promises."""
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_file(tmp_path / name).rows == [{"a": "1"}, {"a": "2"}]

    def test_the_train_part_is_taken_of_several(self, tmp_path):
        """Of several lists under keys the one called train is read, and the others are named."""
        (tmp_path / "a.json").write_text('{"test": [{"a": "1"}], "train": [{"a": "2"}]}', encoding="utf-8")
        table = read_file(tmp_path / "a.json")
        assert (table.rows, table.read_as) == ([{"a": "2"}], "JSON, rows under 'train' (not read: test)")

    def test_several_lists_of_rows_are_an_error(self, tmp_path):
        """Nobody guesses between them."""
        (tmp_path / "a.json").write_text('{"one": [{"a": "1"}], "two": [{"a": "2"}]}', encoding="utf-8")
        assert error_of(tmp_path / "a.json").got.endswith("a.json with one dict of the lists one, two")


class TestValues:
    """All values are text."""

    def test_numbers_are_written_as_in_the_file(self, tmp_path):
        """Zeros at the front and the end stay; so do 5,000 digits."""
        (tmp_path / "a.csv").write_text("a,b\n007,1.50\n", encoding="utf-8")
        assert read_file(tmp_path / "a.csv").rows == [{"a": "007", "b": "1.50"}]
        (tmp_path / "a.json").write_text(f'[{{"a": 0, "b": 1.50, "c": 2e-4, "d": {"9" * 5000}}}]', encoding="utf-8")
        assert read_file(tmp_path / "a.json").rows == [{"a": "0", "b": "1.50", "c": "2e-4", "d": "9" * 5000}]

    @pytest.mark.parametrize(
        ("text", "as_text"),
        [('[{"a": "1", "b": null}]', True), ('[{"a": 1}]', False), ('[{"a": [{"b": true}]}]', False), ("a\n1\n", True)],
    )
    def test_whether_the_file_has_text_everywhere_is_said(self, tmp_path, text, as_text):
        """A library that reads the same file would find numbers where this is false."""
        path = tmp_path / ("a.json" if text.startswith("[") else "a.csv")
        path.write_text(text, encoding="utf-8")
        assert read_file(path).as_text is as_text

    def test_null_and_nan_are_empty(self, tmp_path):
        """A truth value is spelled as JSON does."""
        text = '{"a": null, "b": NaN, "c": true, "d": {"e": null, "f": [false, null, 1]}}'
        (tmp_path / "a.jsonl").write_text(text, encoding="utf-8")
        expected = {"a": "", "b": "", "c": "true", "d": {"e": "", "f": ["false", "", "1"]}}
        assert read_file(tmp_path / "a.jsonl").rows == [expected]

    def test_the_words_none_and_n_a_are_text(self, tmp_path):
        """Answers may be "None", "N/A" or "null"."""
        (tmp_path / "a.csv").write_text("a,b,c\nNone,N/A,null\n", encoding="utf-8")
        assert read_file(tmp_path / "a.csv").rows == [{"a": "None", "b": "N/A", "c": "null"}]

    def test_parquet_s_types_become_text(self, tmp_path):
        """Whole numbers, fractions, missing values and nested ones."""
        rows = [{"a": 7, "b": 0.5, "c": None, "d": [{"e": 1}]}, {"a": 8, "b": float("nan"), "c": "x", "d": []}]
        assert read_file(write(tmp_path / "a.parquet", rows)).rows == [
            {"a": "7", "b": "0.5", "c": "", "d": [{"e": "1"}]},
            {"a": "8", "b": "", "c": "x", "d": []},
        ]

    def test_a_value_of_the_hub_s(self):
        """What comes from a data set of the hub is made text in the same way."""
        assert plain_value({"a": 3, "b": (None, True), "c": float("nan")}) == {"a": "3", "b": ["", "true"], "c": ""}

    def test_line_separators_inside_a_value_end_no_line(self, tmp_path):
        """Unicode's own line separators are part of the text."""
        rows = [{"instruction": "a\u2028b\x85c", "input": "", "output": "d\x0ce"}]
        assert read_file(write(tmp_path / "a.jsonl", rows)).rows == rows

    @pytest.mark.parametrize("text", ["a;b\nx;y\n;\n\n;\n", "a,b\nx,y\n,\n,,,,\n"])
    def test_blank_rows_at_the_end_are_skipped(self, tmp_path, text):
        """Spreadsheets write them, also with more fields than the header."""
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
        assert read_file(tmp_path / "a.csv").rows == [{"a": "x", "b": "y"}]

    def test_empty_columns_without_a_name_are_dropped(self, tmp_path):
        """Spreadsheets write these, too."""
        (tmp_path / "a.csv").write_text("a,b,,\nx,y,,\n", encoding="utf-8")
        assert read_file(tmp_path / "a.csv").rows == [{"a": "x", "b": "y"}]


class TestEncodings:
    """UTF-8, and what Windows writes."""

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
    @pytest.mark.parametrize(
        ("encoding", "said"),
        [
            ("utf-8-sig", ""),
            ("utf-16", ", UTF-16"),
            ("utf-16-le", ", UTF-16-LE"),
            ("utf-16-be", ", UTF-16-BE"),
            ("cp1252", ", cp1252"),
        ],
    )
    def test_it_is_recognised(self, tmp_path, name, encoding, said):
        """UTF-16 with and without its mark, and Western European text; all but UTF-8 is named."""
        table = read_file(write(tmp_path / name, TWO, encoding))
        assert table.rows == TWO
        assert table.read_as.endswith(said)
        assert ("UTF" in table.read_as or "cp" in table.read_as) == bool(said)

    @pytest.mark.parametrize(
        ("text", "encoding"),
        [("Привет, мир", "cp1251"), ("これは日本語", "shift-jis"), ("中文的回答", "gbk"), ("pół złotego", "cp1250")],
    )
    def test_other_encodings_are_not_taken_for_cp1252(self, tmp_path, text, encoding):
        """The error names the first byte that is not UTF-8, where it stands, and the remedy."""
        path = write(tmp_path / "a.csv", [{"instruction": text, "output": "x"}], encoding)
        error = error_of(path)
        place = next(i for i, byte in enumerate(path.read_bytes()) if byte > 127)
        assert error.expected == "a file in UTF-8"
        assert error.got.endswith(f"with byte 0x{path.read_bytes()[place]:02x} at {place}")
        assert error.remedy == "Save the file again with encoding UTF-8."

    def test_a_null_byte_is_named(self, tmp_path):
        """Text has none."""
        (tmp_path / "a.csv").write_bytes(b"instruction,output\na,b\0\n")
        assert error_of(tmp_path / "a.csv").got.endswith("with a null byte at 22")


class TestErrors:
    """What cannot be read."""

    @pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
    @pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
    def test_an_empty_file(self, tmp_path, name, content):
        """A file without rows is called that."""
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert error_of(tmp_path / name).expected == "a file with at least one row"

    @pytest.mark.parametrize(
        ("name", "content", "expected"),
        [
            ("a.json", '{"instruction": "a"}', "a JSON list of rows, or an object with one"),
            ("a.json", '"text"', "a JSON list of rows, or an object with one"),
            ("a.json", "[1, 2", "valid JSON"),
            ("a.json", "[" * 100_000, "valid JSON"),
            ("a.jsonl", '{"a": 1}\n{"a": ', "one JSON object a line"),
            ("a.csv", "a,b\n1,2\n1,2,3\n", "as many fields in each row as in the header"),
            ("a.csv", "a,b\n1,2\n1\n", "as many fields in each row as in the header"),
            ("a.csv", 'a,b\n"1,2\n', "valid CSV with a header line"),
            ("a.csv", "a,a\n1,2\n", "each column once"),
            ("a.parquet", "no parquet", "a Parquet file"),
            ("a.parquet", "", "a Parquet file"),
            ("a.csv", "PK\x03\x04", "a file of rows"),
            ("a.json", '{"a": {"0": "x"}, "b": {"0": "y"}}', "a JSON list of rows, or an object with one"),
            ("a.json", "version https://git-lfs.github.com/spec/v1\n", "a file of rows"),
            ("a.jsonl", "<!DOCTYPE html><html>", "a file of rows"),
        ],
    )
    def test_what_is_not_what_its_name_says(self, tmp_path, name, content, expected):
        """The error says what the file should have been, and names it."""
        (tmp_path / name).write_text(content, encoding="utf-8")
        error = error_of(tmp_path / name)
        assert (error.field, error.expected) == ("dataset_name", expected)
        assert name in error.got

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("a.jsonl", '{"a": 1}\n\n{"a": \n', 3),
            ("a.json", '{"a": 1}\n{"a": \n', 2),
            ("a.csv", "a,b\n1,2\n1,2,3\n", 3),
            ("a.csv", 'a,b\n"1\n\n2",3\n1,2,3\n', 5),
            ("a.csv", 'a,b\n"1","2"\n"3","He said "hi"."\n"5","6"\n', 3),
            ("a.csv", 'a,b\n1,2\n"3,4\n5,6\n', 3),
            ("a.csv", "sep=,\na,b\n1,2\n1,2,3\n", 4),
            ("a.csv", 'sep=,\na,b\n"1","He said "hi"."\n', 3),
        ],
    )
    def test_the_bad_line_is_named(self, tmp_path, name, content, line):
        """Lines count from 1; a quotation mark that is never closed is looked for where its row begins."""
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert f"{name}, line {line}" in error_of(tmp_path / name).got

    def test_a_table_by_columns_has_a_remedy_of_its_own(self, tmp_path):
        """This is what pandas writes unless it is told otherwise."""
        (tmp_path / "a.json").write_text('{"question": {"0": "x"}, "answer": {"0": "y"}}')
        assert error_of(tmp_path / "a.json").remedy.endswith(
            "(with pandas: to_json(path, orient='records', lines=True))."
        )

    def test_an_old_excel_file(self, tmp_path):
        """Whatever its name ends in."""
        (tmp_path / "a.csv").write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20))
        assert "save it as CSV in UTF-8" in error_of(tmp_path / "a.csv").remedy

    @pytest.mark.parametrize("name", ["a.xlsx", "a.xls", "a.ods"])
    def test_a_spreadsheet(self, tmp_path, name):
        """The error says how to save it."""
        (tmp_path / name).write_bytes(b"PK\x03\x04")
        assert error_of(tmp_path / name).remedy == (
            "Open it in the spreadsheet program and save it as CSV in UTF-8 (Excel: Save As, CSV UTF-8)."
        )

    def test_a_damaged_gzip_file(self, tmp_path):
        """Half a download is called that."""
        path = write(tmp_path / "a.json.gz", TWO)
        path.write_bytes(path.read_bytes()[:-12])
        assert error_of(path).expected == "a whole gzip file"

    def test_a_missing_file(self, tmp_path):
        """A path that leads nowhere is not taken for a hub id."""
        assert error_of(tmp_path / "missing.json").expected == "an existing file"

    @pytest.mark.parametrize("name", ["a.txt", "a.json.zip", "folder"])
    def test_other_files(self, tmp_path, name):
        """The error lists the formats."""
        (tmp_path / "folder").mkdir()
        (tmp_path / "a.txt").write_text("x")
        (tmp_path / "a.json.zip").write_text("x")
        expected = "a file that ends in .json, .jsonl, .ndjson, .csv, .tsv, .parquet or .gz"
        assert error_of(tmp_path / name).expected == expected
