"""CSV and TSV in the dialect that they have: no row is merged, shifted, padded or renamed; else the line is named."""

import csv
import gzip
import io
import random

import pytest

TABLES = {  # name, text, rows as lists of cells
    "a cell that begins with a quote": (
        "a.tsv",
        'instruction\toutput\nShelf\t"12 inch\nMetal\tZinc\nGas\tNeon" they said\n',
        [["Shelf", '"12 inch'], ["Metal", "Zinc"], ["Gas", 'Neon" they said']],
    ),
    "the last cell begins with one": ("a.tsv", 'q\ta\nx\t1\ny\t"2', [["x", "1"], ["y", '"2']]),
    "quotes around words": ("a.tsv", 'q\ta\n"So" it is\tx\nz\ty\n', [['"So" it is', "x"], ["z", "y"]]),
    "lone quotes between commas": ("a.csv", 'q,a\n"So" it is,x\n"y,z\n', [['"So" it is', "x"], ['"y', "z"]]),
    "lone quotes between semicolons": ("a.csv", 'q;a\n5";3"\n"x;y\n', [['5"', '3"'], ['"x', "y"]]),
    "a quote within a cell": ("a.csv", 'q,a\n12" pipe,"6"" pipe"\n', [['12" pipe', '6" pipe']]),
    "lines and separators in quotes": ("a.csv", 'q,a\n"x\ny, z","1,2"\n', [["x\ny, z", "1,2"]]),
    "prose that goes on with a comma": ("a.csv", 'q,a\nx,"Hello\nBye, now"\n', [["x", "Hello\nBye, now"]]),
    "prose with commas in its first line": ("a.csv", 'q,a\n"Hello, you\nBye",x\n', [["Hello, you\nBye", "x"]]),
    "more separators than columns": ("a.csv", 'q,a\n"x,y,z\nu",1\n', [["x,y,z\nu", "1"]]),
    "quotes elsewhere in pairs": ("a.tsv", 'q\ta\n"x\ty\nz"\t1\nk\t"l\tm"\n', [["x\ty\nz", "1"], ["k", "l\tm"]]),
    "one column of paragraphs": ("a.csv", 'text\n"one\ntwo"\nthree\n', [["one\ntwo"], ["three"]]),
    "tabs in quotes": ("a.tsv", 'q\ta\n"x\ty"\t"1\n2"\n', [["x\ty", "1\n2"]]),
    "semicolons, as Excel writes them": ("a.csv", "q;a\r\nx, y;1,5\r\n", [["x, y", "1,5"]]),
    "a line that tells the separator": ("a.csv", "sep=;\r\nq;a\r\nx;y\r\n", [["x", "y"]]),
    "tabs in a .csv": ("a.csv", "q\ta\nx, y\tz\n", [["x, y", "z"]]),
    "commas in a .tsv": ("a.tsv", "q,a\nx,y\n", [["x", "y"]]),
    "a separator of others in a cell": ("a.csv", "q;r,a\nx;y|z,b\n", [["x;y|z", "b"]]),
    "one column with marks": (
        "a.csv",
        "text\nfirst; second\nthird | fourth\n",
        [["first; second"], ["third | fourth"]],
    ),
    "blank lines": ("a.csv", "q,a\n\nx,y\n   \n\nz,\n", [["x", "y"], ["z", ""]]),
    "old line ends": ("a.csv", "q,a\rx,y\r", [["x", "y"]]),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case, load):
    name, text, cells = TABLES[case]
    assert [list(row.values()) for row in load(name, text)] == cells


REFUSED = {  # name, text, what is told
    "two dialects": ("a.csv", 'q,a\n"x, y",1\nz,"2\n', ["a.csv, line 3: a quote opens a cell", 'doubled ("")']),
    "a lone quote among quoted cells": ("a.tsv", 'q\ta\n"x"\t1\n"y\t2\n', ["a.tsv, line 3: a quote opens a cell"]),
    "quotes that could be both": ("a.tsv", 'q\ta\nx\t1\ny\t"2\nz\t3"\n', ["line 3: a quote opens a cell that goes"]),
    "the same between commas": ("a.csv", 'q,a\ny,"2\nz,3"\n', ["a.csv, line 2: a quote opens a cell that goes"]),
    "the same in a first cell": ("a.tsv", 'q\ta\n"h\tw\n5"\tinch\n', ["a.tsv, line 2: a quote opens a cell that goes"]),
    "the same in a CSV": ("d.csv", 'q,a\nx,y\n"Yes,sure\nno",never\n', ["d.csv, line 3: a quote opens a cell that"]),
    "in a middle one of three": ("d.csv", 'q,a,s\nx,"y,z\nu,v",w\n', ["line 2: a quote opens a cell that goes"]),
    "over three lines": ("d.csv", 'q;a\n"x;y\nx;y\nz";u\n', ["line 2: a quote opens a cell that goes"]),
    "blanks behind separators": ("d.csv", 'q, a\n"Yes, sure\nno", never\n', ["line 2: a quote opens a cell that goes"]),
    "too few cells": ("a.csv", "q,a,s\nx,y,z\nx,y\n", ["line 3: 2 cells, and the header has 3", "write the empty"]),
    "too few behind a cell of lines": ("a.csv", 'q,a\n"x\ny\nz",1\nw\n', ["line 5: 1 cell, and the header has 2"]),
    "too many cells": ("a.tsv", "q\ta\nx\ty\tz\n", ["a.tsv, line 2: 3 cells, and the header has 2", "needs quotes"]),
    "a name twice": ("a.csv", "q,a,q\n1,2,3\n", ["a.csv, line 1: the header has q more than once"]),
    "two names twice": ("a.tsv", "q\ta\tq\ta\n1\t2\t3\t4\n", ["line 1: the header has q, a more than once"]),
    "NUL in a name": ("a.tsv", "question\0b\ta\n1\t2\n", ["a.tsv, line 1: the header has a NUL character"]),
    "NUL alone": ("a.tsv", "\0" * 20, ["a.tsv, line 1: the header has a NUL character"]),
    "not UTF-8": ("a.csv", "q,a\nx,y\nГде,x\n".encode("cp1251"), ["a.csv, line 3: not UTF-8 (byte 1 of the line)"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table(case, load_error):
    name, content, told = REFUSED[case]
    message = load_error(name, content)
    assert all(part in message for part in told), message


def test_line_numbers_of_a_compressed_file_with_a_told_separator(load_error):
    text = 'sep=|\r\nq|a\r\n"x\r\ny"|1\r\nz\r\n'
    assert "a.csv.gz, line 5: 1 cell" in load_error("a.csv.gz", gzip.compress(text.encode()))


def test_columns_without_a_name_stay(load):
    assert load("a.csv", ",q,\n0,x,y\n") == [{"Unnamed: 0": "0", "q": "x", "Unnamed: 2": "y"}]


def test_files_whose_columns_stand_in_another_order(load):
    load("d/a.csv", "q,a\nx,1\n")
    load("d/b.csv", "a;q\n2;y\n")
    assert load("d") == [{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]
    assert load("d", split="train[1:]") == [{"q": "y", "a": "2"}]


def test_splits_of_other_columns(load, load_error):
    load("d/train.csv", "q,a\nx,1\n")
    load("d/test.csv", "question,a\ny,2\n")
    told = load_error("d", split="train+test")
    assert "datasets.0.split: other columns in train and test: " in told
    assert all(part in told for part in ("train.csv has q, a; ", "test.csv has question, a: make each a data set"))
    assert load("d", split="test") == [{"question": "y", "a": "2"}]
    load("d/test.csv", "a,q\n2,y\n")
    assert load("d", split="train+test") == [{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]


def test_what_csv_writers_write_is_read_as_pandas_reads_it(load):
    """All cells in quotes: the dialect is sure, whatever stands in them."""
    import pandas

    drawn = random.Random(20)
    for number in range(60):
        columns, end = drawn.choice([2, 3]), drawn.choice(["\n", "\r\n"])
        cells = [
            ["".join(drawn.choices('ab",;\n\t й', k=drawn.randrange(9))) for _ in range(columns)] for _ in range(4)
        ]
        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter="\t" if number % 2 else ",", lineterminator=end, quoting=csv.QUOTE_ALL)
        writer.writerows([[f"c{at}" for at in range(columns)], *cells])
        rows = load(f"{number}.{'tsv' if number % 2 else 'csv'}", text.getvalue())
        given = io.StringIO(text.getvalue(), newline="")
        read = pandas.read_csv(given, sep="\t" if number % 2 else ",", dtype=str, keep_default_na=False)
        assert [list(row.values()) for row in rows] == read.to_numpy().tolist() == cells


def test_the_command_reads_cells_that_begin_with_a_quote(composed, files, texts, tmp_path):
    name, text, cells = TABLES["a cell that begins with a quote"]
    (tmp_path / name).write_text(text)
    done = composed(data=name, dedup={"method": "none"})
    assert sorted(texts(done.train)) == sorted(files.rendered(("user", q), ("assistant", a)) for q, a in cells)


def test_the_command_names_the_line_and_makes_nothing(refused, tmp_path):
    (tmp_path / "d.csv").write_text("question,answer\na,b\nc\n")
    message = refused(data="d.csv")
    assert "datasets.0: " in message
    assert "d.csv, line 3: 1 cell, and the header has 2" in message
    assert not list((tmp_path / "cache").glob("datasets/*/*.arrow"))
