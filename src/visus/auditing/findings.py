"""What an audit says: findings, for people, as JSON, as a table, and as a list of what to leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from visus.display import ONE_LINE, plural
from visus.tables import writing_table

Kind = Literal[
    "unreadable",
    "exact_duplicate",
    "near_duplicate",
    "leakage",
    "conflicting_label",
    "label_error",
    "imbalance",
    "odd_image",
    "shortcut",
    "group_leakage",
]
Severity = Literal["high", "medium", "low"]
"""`high` makes a figure wrong, `medium` a model worse, `low` is to be looked at."""

_MEANING: dict[str, str] = {
    "unreadable": "The file holds no whole image, or one of more pixels than --max-pixels allows, so nothing is learnt from it.",
    "exact_duplicate": "These files have the same pixels: the image counts as often as it is there.",
    "near_duplicate": "One image seems to be made from the other, so that they say the same thing twice.",
    "leakage": "The image, or nearly the same, is in several parts: a score on the later part is too good.",
    "conflicting_label": "The same image has several labels, of which all but one must be wrong.",
    "label_error": "A model that has not seen the image is sure of another class.",
    "imbalance": "Classes are small, or of very different sizes; accuracy then says little of the small ones.",
    "odd_image": "The image is unlike the others, by its look or in its file.",
    "shortcut": "The label can be told without looking at the subject, and a model will learn to do that.",
    "group_leakage": "Images of one group are in several parts: a score on the later part is too good.",
}
_ADVICE: dict[str, str] = {
    "unreadable": "Copy the file again, or leave it out; visus train takes what is only too large with a higher --max-pixels.",
    "exact_duplicate": "Keep one of them.",
    "near_duplicate": "Look at them, and keep one.",
    "leakage": "Leave it out of the training part.",
    "conflicting_label": "Decide which label is right, or leave all of them out.",
    "label_error": "Look at it, and correct the label or leave it out.",
    "imbalance": "Collect more of the small classes, and look at the accuracy of each class.",
    "odd_image": "Look at it; leave it out if it is not what you mean.",
    "shortcut": "Look at these images side by side, and crop, mask or collect others.",
    "group_leakage": "Put all images of a group into one part.",
}
_SHOWN = 5
_ALL = "all, with every file: --json, or --csv FILE; what to leave out: --fix-list FILE"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that somebody should look at."""

    kind: Kind
    severity: Severity
    message: str
    """One sentence, with the figures."""
    paths: tuple[str, ...] = ()
    """Every file concerned; of a shortcut those that it gives away, the surest first."""
    figure: float | None = None
    """What the finding rests on; the message says what it is."""
    drop: tuple[str, ...] = ()
    """Those of `paths` to leave out, if the advice is taken."""

    def to_json(self) -> dict[str, Any]:
        """As plain values, with what the kind means and what to do."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {**values, "meaning": _MEANING[self.kind], "advice": _ADVICE[self.kind]}


@dataclass(frozen=True)
class Audit:
    """What was found in a data set."""

    images: int
    """Files that could be read or not, in all parts."""
    classes: tuple[str, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    """What was understood, and what was not looked for."""
    form: Literal["whole", "short"] = "whole"
    """`short`: that before training, which looks for broken files, exact copies, sizes of classes and groups only."""

    def to_json(self) -> dict[str, Any]:
        """The document of `visus audit --json`."""
        return {
            "images": self.images,
            "classes": list(self.classes),
            "findings": [each.to_json() for each in self.findings],
            "notes": list(self.notes),
            "form": self.form,
        }

    def _of(self) -> str:
        return f"{plural(self.images, 'image')}, {plural(len(self.classes), 'class', 'classes')}"

    def counts(self) -> dict[str, int]:
        """How many findings there are of each kind."""
        found = Counter(each.kind for each in self.findings)
        return {kind: found[kind] for kind in _MEANING if found[kind]}  # type: ignore[index]

    def summary(self, most: int = 3) -> list[str]:
        """A line with how many findings of which kind there are, and the first serious ones; none where there are none."""
        if not self.findings:
            return []
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts().items())
        serious = [each.message for each in self.findings if each.severity == "high"]
        more = len(serious) - most
        return [counts, *serious[:most], *[f"and {more} more as serious"] * (more > 0)]

    def to_text(self, most: int = _SHOWN) -> str:
        """For people: each kind that was found, what it means, the first `most` findings, what to do, and where all of them are."""
        if not self.findings:
            return f"{self._of()}: nothing found"
        lines = [f"{self._of()}: {plural(len(self.findings), 'finding')}"]
        for kind, count in self.counts().items():
            lines += ["", f"{kind} ({count}). {_MEANING[kind]}"]
            some = [each for each in self.findings if each.kind == kind]
            lines += [f"  {each.severity}: {each.message.translate(ONE_LINE)}" for each in some[:most]]
            lines += [f"  and {count - most} more"] * (count > most)
            lines += [f"  {_ADVICE[kind]}"]
        if hidden := sum(max(0, count - most) for count in self.counts().values()):
            lines += ["", f"{len(self.findings) - hidden} of {len(self.findings)} findings are shown; {_ALL}"]
        return "\n".join(lines)


def write_findings(audit: Audit, path: Path) -> None:
    """A table (CSV or Parquet) with a row for each file of each finding."""
    header = ["finding", "kind", "severity", "path", "figure", "drop", "message"]
    with writing_table(path, header) as write:
        for number, each in enumerate(audit.findings, start=1):
            rest = [each.figure, each.message]
            write(
                [number, each.kind, each.severity, name, rest[0], name in each.drop, rest[1]]
                for name in each.paths or ("",)
            )


def write_fix_list(audit: Audit, path: Path) -> None:
    """What to leave out, a row for each file with the gravest reason, of equal ones the first; `visus train --exclude` reads it."""
    reasons: dict[str, Finding] = {}
    grave: tuple[Severity, ...] = ("high", "medium", "low")
    for each in sorted(audit.findings, key=lambda finding: grave.index(finding.severity)):
        for name in each.drop:
            reasons.setdefault(name, each)
    with writing_table(path, ["path", "kind", "reason"]) as write:
        write([name, each.kind, each.message] for name, each in reasons.items())


def some_names(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + f" and {more} more" * (more > 0)
