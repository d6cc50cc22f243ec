"""The labels that were given by hand, and all labels of a set as a CSV."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from cache.files import write_atomically
from cache.index import UNLABELLED
from cache.labels import VERDICTS, LabelJournal
from cache.result import Result
from cache.store import FeatureCache
from pipeline.console import counted
from pipeline.run_folder import check_target


@dataclass
class LabelsResult(Result):
    """What was labelled by hand.

    Attributes:
        set: name of the image set.
        labels: `{class, unsure, bad, none}`: images by the verdict in force.
        changed: images whose label is another one than in the data.
        outdated: verdicts that no longer hold, since the data gives these images a third label.
        splits: `{train, valid, test, unlabelled}`: images as they are now.
        csv: path of the table that was written; "" for none.
    """

    set: str
    labels: dict[str, int]
    changed: int
    outdated: int
    splits: dict[str, int]
    csv: str

    def in_words(self) -> str:
        """A line on the verdicts, one on the splits, and what was written."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.labels.items() if count) or "none"
        splits = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        lines = [f"set {self.set}: labels given by hand: {kinds}; {counted(self.changed, 'label')} changed"]
        lines += [f"images now: {splits}"]
        if self.outdated:
            lines.append(f"verdicts that no longer hold, since the data gives a third label: {self.outdated}")
        return "\n".join([*lines, *([f"{self.csv}: written"] if self.csv else [])])


def labels(cache: Path, name: str | None, file: Path | None, overwrite: bool = False) -> LabelsResult:
    """Count the verdicts on a set; with `file`, write path,label,split of its images as they are now.

    Paths are absolute, so that the table may lie anywhere; images that are bad or of no class are left out, and those
    without a label have an empty one. RunError where `file` exists and is not to be overwritten.
    """
    if file is not None:
        check_target(file, overwrite)
    opened = FeatureCache.open(cache)
    extracted, index = opened.extracted(name), opened.index(name)
    journal = LabelJournal.load(cache, index.name)
    before = {image.path: image.label for image in extracted.images}
    if file is not None:
        grouped = any(image.group for image in index.images)
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["path", "label", "split", *(["group"] if grouped else [])])
        for image in index.images:
            path = os.path.normpath(Path(index.root) / image.path)
            writer.writerow([path, image.label, image.split, *([image.group] if grouped else [])])
        write_atomically(file, table.getvalue().encode("utf-8", "surrogateescape"))
    counts, splits = journal.counts(extracted), Counter(image.split for image in index.images)
    return LabelsResult(
        set=index.name,
        labels={kind: counts[kind] for kind in VERDICTS},
        changed=sum(image.label != before[image.path] for image in index.images),
        outdated=journal.outdated(extracted),
        splits={split: splits[split] for split in ("train", "valid", "test", UNLABELLED) if splits[split]},
        csv=str(file) if file else "",
    )
