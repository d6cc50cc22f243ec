"""Stage two: one head, trained from the cache."""

from dataclasses import fields

from pipeline.config.heads import TrainConfig
from pipeline.run_record import TrainResult
from pipeline.training import trained_run


def train_head(config: TrainConfig) -> TrainResult:
    """Train one head and keep it as it is after the last epoch.

    The learning rate falls to 0: an earlier epoch that validates better owes that to the validation images
    (docs/performance.md). Where another process writes the run, this waits, and replaces what it wrote.

    Raises:
        RunError: the run exists, the set lacks train or valid, or its folder no longer agrees with the index.
        CacheError: the folder of the run cannot be written.
        MissingRows: rows of the passes asked for are not in the cache.
    """
    record = trained_run(config).record
    return TrainResult(**{field.name: getattr(record, field.name) for field in fields(TrainResult)})
