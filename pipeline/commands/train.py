"""Stage two: one head, trained from the cache."""

from dataclasses import fields

from pipeline.config.heads import TrainConfig
from pipeline.run_record import TrainResult
from pipeline.training import trained_run


def train_head(config: TrainConfig) -> TrainResult:
    """Train one head and keep it as it is after the last epoch.

    The learning rate falls to 0: an earlier epoch that validates better owes that to the validation images
    (docs/performance.md). Errors as of `trained_run`.
    """
    record = trained_run(config).record
    return TrainResult(**{field.name: getattr(record, field.name) for field in fields(TrainResult)})
