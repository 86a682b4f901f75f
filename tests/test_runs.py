import os
import subprocess
import sys
from pathlib import Path

import pytest

from visus.errors import DataError, UsageError
from visus.runs import check_out, create_run, open_run, read_history


def record(epoch, phase, accuracy, loss=0.5):
    return {
        "epoch": epoch,
        "phase": phase,
        "loss": loss,
        "accuracy": accuracy,
        "n": 10,
        "lr": 0.1,
        "seconds": 1.0,
        "images_per_second": 10.0,
    }


@pytest.fixture
def run(tmp_path):
    run = create_run(tmp_path, "digits")
    run.config.write_text("model: small\n")
    run.write_records(
        [
            record(epoch, phase, accuracy)
            for epoch, best in [(1, 0.5), (2, 0.7), (3, 0.9)]
            for phase, accuracy in [("train", best), ("val", best / 2)]
        ]
    )
    return run


def test_an_old_run_is_never_overwritten(tmp_path):
    names = [create_run(tmp_path, "a").path.name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_a_file_where_runs_should_go_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UsageError, match="expected a folder"):
        create_run(tmp_path / "out", "a")


def test_history_is_read_as_the_notes_kept_it(run):
    assert read_history(run.path)["acc"] == {"train": [0.5, 0.7, 0.9], "val": [0.25, 0.35, 0.45]}
    assert read_history(str(run.path))["loss"]["val"] == [0.5, 0.5, 0.5]


def test_metrics_are_cut_back_to_the_checkpoint(run):
    run.cut_back(2)
    assert [each["epoch"] for each in run.records()] == [1, 1, 2, 2]


def test_a_line_that_was_not_finished_is_left_out(run):
    with run.metrics.open("a") as file:
        file.write('{"epoch": 4, "pha')
    assert len(run.records()) == 6
    run.cut_back(3)
    assert run.metrics.read_text().endswith("}\n")


def test_a_damaged_line_is_named(run):
    run.metrics.write_text("nonsense\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        run.records()


def test_a_folder_without_a_config_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="expected a run's folder"):
        open_run(tmp_path)


def test_one_process_at_a_time_writes(run):
    code = (
        "import sys\nfrom visus.runs import open_run\nfrom visus.errors import UsageError\n"
        "try:\n    with open_run(sys.argv[1]).locked():\n        print('taken')\n"
        "except UsageError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(run.path)]
    with run.locked():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    free = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "another process is writing" in held
    assert free == "taken\n"


def test_runs_are_read_without_torch():
    code = "import sys, visus.runs; print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"


def test_a_place_where_no_folder_can_be_made_is_said_before_any_work(tmp_path):
    check_out(tmp_path / "new" / "runs")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="expected a folder for runs, found a file"):
        check_out(tmp_path / "file" / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="choose another with --out"):
        check_out(tmp_path / "runs")


@pytest.mark.skipif(
    not Path("/proc").is_dir(), reason="Linux alone has a folder that not even root can write to"
)
def test_so_is_one_that_only_seems_to_be_writable():
    with pytest.raises(UsageError, match="choose another with --out"):
        check_out("/proc/runs")
