import json

import pyarrow
import pyarrow.csv
import pyarrow.parquet
from made_runs import make_run

from visus.reporting.reading import read_run


def test_predictions_are_read_alike_from_csv_and_parquet(tmp_path):
    run = make_run(tmp_path / "run", ["x, y", "قطة", "3"])
    before = read_run(run).predictions
    texts = dict.fromkeys(("path", "label", "prediction"), pyarrow.string())
    table = pyarrow.csv.read_csv(
        run / "predictions.csv", convert_options=pyarrow.csv.ConvertOptions(column_types=texts)
    )
    pyarrow.parquet.write_table(table, run / "predictions.parquet")
    (run / "predictions.csv").unlink()
    after = read_run(run).predictions
    assert after.classes == before.classes == ("x, y", "قطة", "3")
    assert after.paths == before.paths
    for name in ("true", "predicted", "confidence", "true_probability"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist()


def test_a_line_of_metrics_that_was_cut_short_is_left_out(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], epochs=3)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "pha')
    assert read_run(run).epochs_done == 3
    assert read_run(run).notes == ()


def test_an_epoch_is_over_once_it_is_validated(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"], epochs=4, done=3)
    records = read_run(run).records
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**records[-2], "epoch": 4, "phase": "train"}) + "\n")
    results = read_run(run)
    assert len(results.records) == len(records) + 1
    assert results.epochs_done == 3


def test_reading_a_run_loads_no_torch(tmp_path):
    import subprocess
    import sys

    run = make_run(tmp_path / "run", ["x", "y"])
    code = f"import sys; from visus.reporting.reading import read_run; read_run({str(run)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_probability_that_is_no_number_is_kept_as_such(tmp_path):
    run = make_run(tmp_path / "run", ["x", "y"])
    lines = (run / "predictions.csv").read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:3], "nan", "nan"])
    (run / "predictions.csv").write_text("\n".join(lines) + "\n")
    found = read_run(run).predictions
    assert [str(each) for each in found.confidence[:1]] == ["nan"]
    assert json.dumps(found.paths[:1]) == '["0"]'
