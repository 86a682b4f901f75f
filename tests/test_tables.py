import csv
import subprocess
import sys

import numpy as np
import pytest

from visus.errors import DataError, UsageError
from visus.tables import read_columns, writing_columns, writing_table


def test_rows_come_back_whatever_is_in_them(tmp_path):
    rows = [["a,b", 'c"d', "e\nf"], ["é中", "", "1.5"]]
    with writing_table(tmp_path / "t.csv", ["x", "y", "z"]) as write:
        write(rows[:1])
        write(rows[1:])
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["x", "y", "z"], *rows]


def test_what_fails_leaves_the_old_table(tmp_path):
    (tmp_path / "t.csv").write_text("old")
    with pytest.raises(RuntimeError), writing_table(tmp_path / "t.csv", ["x"]) as write:
        write([[1]])
        raise RuntimeError
    assert (tmp_path / "t.csv").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]


@pytest.mark.parametrize(("name", "sentence"), [("t.xls", ".csv or .parquet"), ("no/t.csv", "make it first")])
def test_where_nothing_can_be_written_is_said(tmp_path, name, sentence):
    with pytest.raises(UsageError, match=sentence), writing_table(tmp_path / name, ["x"]):
        pass


def test_parquet_comes_back_with_its_types(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    with writing_table(tmp_path / "t.parquet", ["path", "p"]) as write:
        write([["a", 0.25]])
        write([["b", 0.5]])
    assert parquet.read_table(tmp_path / "t.parquet").to_pydict() == {"path": ["a", "b"], "p": [0.25, 0.5]}


def test_parquet_is_what_pyarrow_makes_of_the_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    names = ["text", "single", "double", "number", "truth"]
    values = np.random.default_rng(0).random((7, 2))
    values[3] = np.nan
    columns = [["", "é", "a" * 300, "\n", "z", "", "y"], values[:, 0].astype(np.float32), values[:, 1]]
    columns += [np.arange(7), values[:, 0] > 0.5]
    with writing_columns(tmp_path / "t.parquet", names) as write:
        write(columns)
    pyarrow.parquet.write_table(pyarrow.table(columns, names=names), tmp_path / "whole.parquet")
    assert (tmp_path / "t.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_predictions_are_written_without_pandas(tmp_path):
    pytest.importorskip("pyarrow")
    path = str(tmp_path / "t.parquet")
    code = (
        "import sys, numpy as np; from visus.tables import writing_columns\n"
        f"with writing_columns({path!r}, ['path', 'p']) as write: write([['a', 'b'], np.ones(2, np.float32)])\n"
        "print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_read_back_by_name(tmp_path, suffix):
    table = tmp_path / f"t{suffix}"
    with writing_columns(table, ["path", "p", "label"]) as write:
        write([["a", "b\udcff"], [0.25, 0.5], ["é,\n", ""]])
        write([["c"], [1.0], ["x"]])
    labels, paths = read_columns(table, ["label", "path"])
    assert labels == ["é,\n", "", "x"]
    # Parquet holds text only, so that a byte that is none is spelt out.
    assert paths == ["a", "b\udcff" if suffix == ".csv" else "b\\xff", "c"]
    with pytest.raises(DataError, match="a column nothing"):
        read_columns(table, ["nothing"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_rows_has_its_columns(tmp_path, suffix):
    with writing_columns(tmp_path / f"t{suffix}", ["path", "label"]):
        pass
    assert read_columns(tmp_path / f"t{suffix}", ["path", "label"]) == [[], []]


def test_a_table_that_is_none_is_said(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_columns(tmp_path / "t.parquet", ["path"])
    with pytest.raises(DataError, match="cannot be read as a table"):
        read_columns(tmp_path / "none.csv", ["path"])
