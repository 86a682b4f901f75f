"""Run folders with any classes, made without training: what a run would have written, on images of noise."""

import csv
import json

import numpy as np
import torch
import yaml

from visus.data.listing import split_rows
from visus.data.sources import open_source
from visus.evaluation import score
from visus.outcomes import collect, follow
from visus.runs import RunFolder


def make_images(folder, classes, n=60, side=12):
    """An `.npz` of `n` images of noise, whose class is their brightness; classes take turns. Half are set aside for validation."""
    labels = np.arange(n) % len(classes)
    noise = np.random.default_rng(0).integers(0, 60, (len(labels), side, side, 3))
    bright = labels[:, None, None, None] * (190 // max(1, len(classes) - 1))
    path = folder / "images.npz"
    np.savez(path, images=(noise + bright).astype(np.uint8), labels=labels, classes=np.array(classes))
    return path


def make_run(folder, classes, *, n=60, epochs=3, done=None, wrong=0.2, source=None, seed=0, lr=0.1):
    """A run of `epochs`, of which `done` are over, wrong about the share `wrong` of what it was evaluated on.

    That is the validation part of `source`, made by `make_images`; without one, `n` test images that are nowhere.
    """
    folder.mkdir(parents=True)
    run = RunFolder(folder)
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(classes)
    settings = {
        "data": str(source or folder / "gone"),
        "val_fraction": 0.5,
        "model": "small",
        "epochs": epochs,
        "lr": lr,
    }
    run.config.write_text(
        yaml.safe_dump(settings | {"batch_size": 50, "optimizer": "sgd", "seed": seed}), encoding="utf-8"
    )
    environment = {
        "visus": "0.1.0",
        "torch": "2.15.0",
        "seed": seed,
        "data": "0" * 64,
        "not_deterministic": [],
    }
    run.environment.write_text(
        json.dumps(environment | {"devices": [{"device": "cpu", "name": "a CPU", "memory_mb": 1}]})
    )
    with run.split.open("w", newline="", encoding="utf-8") as file:
        rows = (
            list(split_rows(open_source(source, val_fraction=0.5)))
            if source
            else [
                (str(i), classes[label], part)
                for part in ("train", "val", "test")
                for i, label in enumerate(labels)
            ]
        )
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    done = epochs if done is None else done
    run.write_records(list(records(done, n, lr)))
    if done == epochs:
        evaluate(run, classes, [row for row in rows if row[2] == ("val" if source else "test")], wrong, rng)
    return folder


def records(epochs, n, lr):
    for epoch in range(1, epochs + 1):
        for phase, shift in (("train", 0.0), ("val", 0.05)):
            yield {
                "epoch": epoch,
                "phase": phase,
                "loss": 2 / epoch + shift,
                "accuracy": 1 - 0.5 / epoch - shift,
                "n": n,
                "lr": lr / epoch,
                "seconds": 2.0,
                "images_per_second": n / 2,
            }


def evaluate(run, classes, rows, wrong, rng):
    """What a run says of the images in `rows`, of one part."""
    labels = np.array([classes.index(label) for _, label, _ in rows])
    logits = rng.normal(0, 0.5, (len(labels), len(classes)))
    said = np.where(rng.random(len(labels)) < wrong, (labels + 1) % len(classes), labels)
    logits[np.arange(len(labels)), said] += 4 + rng.random(len(labels))
    scores = score(collect(follow([(torch.from_numpy(logits), torch.from_numpy(labels))])), classes)
    run.evaluation.write_text(json.dumps({"split": rows[0][2], **scores.to_json()}), encoding="utf-8")
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy().round(6)
    with (run.path / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file)
        write.writerow(["path", "label", "prediction", *(f"p_{name}" for name in classes)])
        for (path, label, _), row in zip(rows, probabilities, strict=True):
            write.writerow([path, label, classes[int(row.argmax())], *row])
