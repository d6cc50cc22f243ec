"""Stage one of 10^9 images on many workers, simulated: shares, one queue, and one queue with backup tasks.

`make simulate`; about 10 minutes. A worker's rate, failures and slowness are assumptions; the rate of the finish is
what `make bench-scale` measures of opening, merging, counting passes and writing the index, in one process.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from simulation import Outcome, Setting, simulate

HOUR, DAY, WEEK = 3600.0, 86400.0, 7 * 86400.0
FULL_ROW, REDUCED_ROW = 25088 * 2 + 48, 512 * 2 + 48  # bytes, with the key
USUAL = Setting(
    noise=0.1, slow_share=0.02, phase_every=4 * HOUR, mtbf=DAY, row_bytes=REDUCED_ROW, store=5e9, finish_rate=1.6e5
)
WAYS = {"shares": {"static": True}, "queue": {}, "queue, backups": {"backups": True}}


def settings() -> Iterator[tuple[str, Setting]]:
    """What varies in each table, and its settings."""
    for workers, unit in product((8, 64, 512, 1000), (1_000, 10_000, 100_000)):
        yield "workers and rows of a unit", replace(USUAL, workers=workers, unit=unit)
    for mtbf, share in product((HOUR, DAY, WEEK), (0.0, 0.02, 0.05)):
        yield "failures and slow workers", replace(USUAL, workers=64, mtbf=mtbf, slow_share=share)
    for row, store in product((REDUCED_ROW, FULL_ROW), (1e9, 10e9, 100e9)):
        yield "bytes of a row, and of the store a second", replace(USUAL, row_bytes=row, store=store)


def show(setting: Setting, way: str, outcome: Outcome) -> None:
    """A line."""
    given = (
        f"{setting.workers:5} {setting.unit:7,} {setting.mtbf / HOUR:4.0f} h {setting.slow_share:4.0%} "
        f"{setting.row_bytes:6,} {setting.store / 1e9:4.0f}"
    )
    again = outcome.rows_again / setting.images
    print(
        f"{given}  {way:14} {outcome.makespan / HOUR:7.2f} h {outcome.total / HOUR:7.2f} h {outcome.efficiency:6.1%} "
        f"{outcome.tail / 60:7.1f} min {again:7.3%} {outcome.worker_hours:7.0f} {outcome.failures:6}",
        flush=True,
    )


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=USUAL.images)
    parser.add_argument("--rate", type=float, default=USUAL.rate, help="images a second of a worker")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    shown = ""
    for table, setting in settings():
        if table != shown:
            shown = table
            print(f"\n{table}\n work.    unit   mtbf slow  bytes GB/s  way             makespan     total", end="")
            print(" effic.        tail   again   hours failed")
        for way, changes in WAYS.items():
            tried = replace(setting, images=options.images, rate=options.rate, **changes)
            outcome = simulate(tried)
            show(tried, way, outcome)
            found.append({"table": table, "way": way, "setting": asdict(tried), "outcome": asdict(outcome)})
    if options.json:
        options.json.write_text(json.dumps({"command": "make simulate", "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
