"""Runs compared from their folders alone."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from visus.comparison import compare_runs, leaderboard
from visus.comparison_tables import describe_comparison, describe_leaderboard
from visus.errors import DataError, UsageError
from visus.ops.paired import mcnemar
from visus.tables import writing_table
from visus.tested_runs import find_runs, read_run

LABELS = list(np.random.default_rng(0).choice(list("abc"), 200))


def make_run(
    folder, seed=0, accuracy=0.9, *, labels=LABELS, suffix=".csv", fingerprint="x", lr=0.1, groups=None
):
    """A run's folder as training leaves it, as far as comparisons look at it."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"data: d\nmodel: small\nepochs: 3\nseed: {seed}\nlr: {lr}\nname: {folder.name}\n"
    )
    right = random.random(len(labels)) < accuracy
    predictions = [
        label if ok else "abca"["abc".index(label) + 1] for label, ok in zip(labels, right, strict=True)
    ]
    rows = [
        (f"{place:03}.png", label, said)
        for place, (label, said) in enumerate(zip(labels, predictions, strict=True))
    ]
    with writing_table(folder / f"predictions{suffix}", ["path", "label", "prediction"]) as write:
        write(rows)
    (folder / "evaluation.json").write_text(
        json.dumps({"split": "test", "loss": 0.5, "fingerprint": fingerprint})
    )
    if groups is not None:
        write_split(folder, labels, groups)
    return right


def write_split(folder, labels, groups):
    """As training does; images to train on may have the same names, and none needs to be in the order of the predictions."""
    tested = [(f"{place:03}.png", label, "test", groups[place]) for place, label in enumerate(labels)]
    trained = [(name, label, "train", "other") for name, label, *_ in tested]
    with writing_table(folder / "split.csv", ["path", "label", "split", "group"]) as write:
        write([*trained, *reversed(tested)])


def test_a_pair_is_what_a_table_of_both_says(tmp_path):
    a, b = make_run(tmp_path / "a", 0, 0.8), make_run(tmp_path / "b", 1, 0.95, suffix=".parquet", lr=0.2)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    (pair,) = found.pairs
    assert [run.accuracy for run in found.runs] == [a.mean(), b.mean()]
    assert pair.difference == pytest.approx(b.mean() - a.mean())
    assert (pair.only_a, pair.only_b) == ((a & ~b).sum(), (b & ~a).sum())
    assert pair.mcnemar_p == stats.binomtest(pair.only_a, pair.only_a + pair.only_b).pvalue
    assert pair.difference_ci95[0] < pair.difference < pair.difference_ci95[1]
    assert [each["path"] for each in pair.flipped] == [f"{place:03}.png" for place in np.flatnonzero(a != b)]
    assert sum(each["n"] * each["difference"] for each in pair.per_class) == pytest.approx(
        200 * pair.difference
    )
    assert len(found.pools) == 2
    assert f"{pair.only_b} with" in describe_comparison(found)
    document = json.loads(json.dumps(found.to_json()))
    assert set(document) >= {"runs", "pairs"}
    assert {"run", "accuracy", "accuracy_ci95"} <= set(document["runs"][0])
    names = ["a", "b", "n", "difference", "difference_ci95", "mcnemar_p", "flipped"]
    assert set(names) <= set(document["pairs"][0])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_groups_are_counted_where_images_share_one(tmp_path, suffix):
    groups = ["", *(f"patient {place // 4}" for place in range(1, 200))]
    a = make_run(tmp_path / "a", 0, 0.8, suffix=suffix, groups=groups)
    b = make_run(tmp_path / "b", 2, 0.82, lr=0.2)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    (pair,) = found.pairs
    # The first image, which has no group, is one, and the three beside it are another.
    assert pair.groups == 51
    difference = b.astype(int) - a
    sums = np.bincount([0, *(1 + place // 4 for place in range(1, 200))], difference)
    flipped = stats.permutation_test(
        (sums, np.zeros(51)),
        lambda one, other, axis: (one - other).sum(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    )
    # Of 20,000 shuffles a p-value of some per cent is known to a tenth of itself.
    assert 0.02 < flipped.pvalue < 0.9
    assert pair.mcnemar_p == pytest.approx(flipped.pvalue, rel=0.1)
    assert pair.mcnemar_p != mcnemar(pair.only_a, pair.only_b).exact
    assert pair.mcnemar_mid_p < pair.mcnemar_p
    mean = difference.mean()
    sizes = np.bincount([0, *(1 + place // 4 for place in range(1, 200))])
    half = stats.t.ppf(0.975, 50) * np.sqrt(((sums - mean * sizes) ** 2).sum() * 51 / 50) / 200
    assert pair.difference_ci95 == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    for each in pair.per_class:
        (place,) = np.nonzero(np.array(LABELS) == each["name"])
        assert each["difference"] == difference[place].mean()
        assert each["ci95"][0] < each["difference"] < each["ci95"][1]
    # Of both runs, though one alone knows the groups.
    for correct, row in zip((a, b), found.to_json()["runs"], strict=True):
        sums = np.bincount([0, *(1 + place // 4 for place in range(1, 200))], correct - correct.mean())
        near = stats.t.ppf(0.975, 50) * np.sqrt((sums**2).sum() * 51 / 50) / 200
        low, high = row["accuracy_ci95"]
        assert high - low == pytest.approx(2 * near, rel=0.1)
    text = describe_comparison(found)
    assert "on the same 200 images of 51 groups, which intervals and p-values count:" in text
    assert f"McNemar over groups, p = {pair.mcnemar_p:.3g}" in text
    assert json.loads(json.dumps(found.to_json()))["pairs"][0]["groups"] == 51
    assert "200 images (test) of 51 groups, which" in describe_leaderboard(
        leaderboard(find_runs(tmp_path))[0]
    )


def test_groups_that_speak_as_one_are_not_taken_for_their_images(tmp_path):
    labels, groups = ["a", "b"] * 100, [str(place // 20) for place in range(200)]
    runs = [make_run(tmp_path / name, 0, 1.0, labels=labels, lr=lr) for name, lr in (("a", 1), ("b", 2))]
    assert all(each.all() for each in runs)
    table = tmp_path / "a" / "predictions.csv"
    lines = table.read_text().split("\n")
    # Four whole groups are wrong in one run, so that all their images are right with the other alone.
    lines[1:81] = [line.replace(",a,a", ",a,b").replace(",b,b", ",b,a") for line in lines[1:81]]
    table.write_text("\n".join(lines))
    (pair,) = compare_runs([tmp_path / "a", tmp_path / "b"]).pairs
    assert (pair.groups, pair.only_b) == (None, 80)
    assert pair.mcnemar_p < 1e-20
    narrow = pair.difference_ci95
    write_split(tmp_path / "b", labels, groups)
    (pair,) = compare_runs([tmp_path / "a", tmp_path / "b"]).pairs
    assert (pair.groups, pair.mcnemar_p) == (10, pytest.approx(2 / 2**4))
    assert pair.difference_ci95[0] < 0 < narrow[0]
    assert [each["p"] for each in pair.per_class] == pytest.approx([2 / 2**4] * 2)
    # Six groups of ten must speak alike.
    assert pair.detectable == pytest.approx(0.6)


@pytest.mark.parametrize(("n", "groups"), [(100, 5), (5, None)])
def test_fewer_than_six_groups_or_images_can_show_no_difference(tmp_path, n, groups):
    labels = ["a", "b"] * (n // 2) + ["a"] * (n % 2)
    given = None if groups is None else [str(place % groups) for place in range(n)]
    for name, lr in (("a", 1), ("b", 2)):
        make_run(tmp_path / name, lr, 0.6, labels=labels, lr=lr, groups=given)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert found.pairs[0].detectable is None
    assert f"so few {'images' if groups is None else 'groups'} can show no difference" in describe_comparison(
        found
    )


@pytest.mark.parametrize(
    ("groups", "said"),
    [(["p"] * 200, "all of one group"), ([""] * 200, "images:"), (list(map(str, range(200))), "images:")],
)
def test_groups_that_tell_nothing_leave_the_figures_as_they_are(tmp_path, groups, said):
    for name, seed in (("a", 0), ("b", 1)):
        make_run(tmp_path / name, seed, lr=seed + 1)
    (plain,) = compare_runs([tmp_path / "a", tmp_path / "b"]).pairs
    write_split(tmp_path / "a", LABELS, groups)
    found = compare_runs([tmp_path / "a", tmp_path / "b"])
    assert found.pairs == [plain]
    assert plain.groups is None
    assert said in describe_comparison(found).partition("\n")[0]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_name_that_is_no_text_finds_its_group_in_either_kind_of_table(tmp_path, suffix):
    make_run(tmp_path / "a")
    (tmp_path / "a" / "predictions.csv").unlink()
    names = ["caf\udce9.png", "b.png", "c.png"]
    with writing_table(tmp_path / "a" / f"predictions{suffix}", ["path", "label", "prediction"]) as write:
        write([(name, "a", "a") for name in names])
    with writing_table(tmp_path / "a" / "split.csv", ["path", "label", "split", "group"]) as write:
        write([(name, "a", "test", group) for name, group in zip(names, ["p", "q", "p"], strict=True)])
    run = read_run(tmp_path / "a")
    assert dict(zip(run.paths, run.groups, strict=True))["b.png"] == "q"
    assert run.units.tolist() == [0, 1, 1]


def test_a_list_of_the_images_that_is_damaged_is_named(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        make_run(tmp_path / name, seed)
    (tmp_path / "b" / "split.csv").write_text("path,group\n000.png,p\n")
    with pytest.raises(DataError, match=r"split\.csv: expected a column split"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_seeds_of_the_same_settings_are_pooled(tmp_path):
    for seed in range(3):
        make_run(tmp_path / f"a{seed}", seed, 0.8)
        make_run(tmp_path / f"b{seed}", 10 + seed, 0.95, lr=0.2)
    found = compare_runs(sorted(tmp_path.iterdir()))
    assert [len(pool.runs) for pool in found.pools] == [3, 3]
    (pair,) = found.pool_pairs
    means = [np.mean([run.accuracy for run in found.runs[place : place + 3]]) for place in (0, 3)]
    assert pair.difference == pytest.approx(means[1] - means[0])
    assert pair.difference_ci95[0] < pair.difference < pair.difference_ci95[1]
    assert found.pools[0].accuracy_sd == pytest.approx(
        np.std([run.accuracy for run in found.runs[:3]], ddof=1)
    )
    assert "on average of 3" in describe_comparison(found)


def test_pools_that_are_equally_good_are_seldom_told_apart(tmp_path):
    from visus.comparison import _pool_pair

    class Run:
        def __init__(self, correct):
            self.correct, self.accuracy = correct, correct.mean()

    random = np.random.default_rng(0)
    outside = 0
    for _ in range(400):
        hard = random.normal(size=300)
        runs = [Run(hard + random.normal(0, 0.3) + random.normal(size=300) < 1.5) for _ in range(6)]
        low, high = _pool_pair([runs[:3], runs[3:]], 0, 1).difference_ci95
        outside += not low <= 0 <= high
    assert outside <= 0.06 * 400


def test_pools_count_groups(tmp_path):
    groups = [str(place // 4) for place in range(200)]
    made = {}
    for seed in range(2):
        made[f"a{seed}"] = make_run(tmp_path / f"a{seed}", seed, 0.8, groups=groups)
        made[f"b{seed}"] = make_run(tmp_path / f"b{seed}", 10 + seed, 0.95, lr=0.2, groups=groups)
    (pair,) = compare_runs(sorted(tmp_path.iterdir())).pool_pairs
    difference = (made["b0"] + 0.0 + made["b1"] - made["a0"] - made["a1"]) / 2
    sums = np.add.reduceat(difference, np.arange(0, 200, 4))
    terms = [(sums.var(ddof=1) * 50 / 200**2, 49)]
    for name in "ab":
        terms.append((np.var([made[f"{name}{seed}"].mean() for seed in range(2)], ddof=1) / 2, 1))
    variance = sum(each for each, _ in terms)
    freedom = variance**2 / sum(each**2 / degrees for each, degrees in terms)
    expected = stats.t.interval(0.95, freedom, difference.mean(), np.sqrt(variance))
    assert pair.difference_ci95 == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [(1, 5), (1, 1, 5)])
def test_a_single_run_varies_as_runs_of_several_seeds_do(sizes):
    from visus.comparison import _pool_pair

    random = np.random.default_rng(0)
    outside = 0
    for _ in range(1000):
        # Of many images little is chance but the seed.
        accuracies = [random.normal(0.9, 0.01, size).round(4) for size in sizes]
        pools = [
            [SimpleNamespace(correct=np.arange(10_000) < 10_000 * each, accuracy=each) for each in pool]
            for pool in accuracies
        ]
        low, high = _pool_pair(pools, 0, 1).difference_ci95
        outside += not low <= 0 <= high
    assert 0.03 * 1000 <= outside <= 0.065 * 1000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"labels": LABELS[:-1]}, "0 only in the one|1 only in the one"),
        ({"labels": LABELS[1:] + LABELS[:1]}, "other labels"),
        ({"fingerprint": "y"}, "another content"),
    ],
)
def test_other_test_images_are_refused(tmp_path, options, sentence):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **options)
    with pytest.raises(DataError, match=sentence):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_runs_that_cannot_be_compared_are_named(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "b" / "predictions.csv").unlink()
    with pytest.raises(DataError, match="finish it with visus train --resume"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="at least two different runs"):
        compare_runs([tmp_path / "a", tmp_path / "a"])
    for others in ([tmp_path / "a", tmp_path], [tmp_path / "nowhere"]):
        with pytest.raises(UsageError, match=r"config\.yaml"):
            compare_runs(others)
    (tmp_path / "b" / "predictions.parquet").write_bytes(b"no table")
    with pytest.raises(DataError, match="cannot be read as a table"):
        compare_runs([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b" / "predictions.parquet").unlink()
    (tmp_path / "b" / "predictions.csv").write_text("path,prediction\n1,a\n")
    with pytest.raises(DataError, match="a column label"):
        compare_runs([tmp_path / "a", tmp_path / "b"])


def test_a_leaderboard_has_the_best_first_and_leaves_out_what_it_names(tmp_path):
    for name, seed, accuracy in (("poor", 0, 0.6), ("good", 1, 0.95), ("fair", 2, 0.8)):
        make_run(tmp_path / name, seed, accuracy)
    make_run(tmp_path / "else", 3, 0.7, fingerprint="other")
    make_run(tmp_path / "half")
    (tmp_path / "half" / "predictions.csv").unlink()
    boards, left_out = leaderboard(find_runs(tmp_path))
    assert [[run.folder.path.name for run in board.runs] for board in boards] == [
        ["else"],
        ["good", "fair", "poor"],
    ]
    assert [pair.difference < 0 for pair in boards[1].pairs] == [True, True]
    assert list(left_out) == [str(tmp_path / "half")]
    text = describe_leaderboard(boards)
    assert text.index("good") < text.index("fair") < text.index("poor")
    assert find_runs(tmp_path / "good") == []
    assert find_runs(tmp_path / "nothing") == []


def test_a_prediction_that_was_none_is_wrong(tmp_path):
    make_run(tmp_path / "a", accuracy=1.0)
    make_run(tmp_path / "b", accuracy=1.0)
    table = tmp_path / "b" / "predictions.csv"
    table.write_text(
        table.read_text()
        .replace("000.png,a,a", "000.png,a,")
        .replace("000.png,b,b", "000.png,b,")
        .replace("000.png,c,c", "000.png,c,")
    )
    (pair,) = compare_runs([tmp_path / "a", tmp_path / "b"]).pairs
    assert (pair.only_a, pair.only_b, pair.mcnemar_p) == (1, 0, 1.0)
