"""Errors of the pipeline: messages for the person at the keyboard, codes for a script."""

from cache.errors import HeadgraftError


class PipelineError(HeadgraftError, code="pipeline-error"):
    """The pipeline cannot do what was asked."""


class ConfigError(PipelineError, code="wrong-usage"):
    """Wrong usage: an option or argument is unknown or missing, or has a value that it cannot have."""


class DecodeError(PipelineError, code="undecodable-images"):
    """Image files cannot be decoded."""


class ImageSetError(PipelineError, code="unusable-data"):
    """A data set cannot be used as it is."""


class WeightsError(PipelineError, code="weights-error"):
    """Pretrained weights cannot be had, or are not what they should be."""


class RunError(PipelineError, code="run-error"):
    """A run cannot be made, read, or used with this cache."""


class TargetExists(RunError, code="target-exists"):
    """There is something where a run or file is to be written, and `--overwrite` was not given."""


class DataChanged(RunError, code="data-changed"):
    """The images are not as they were extracted: `extract` brings the cache up to date."""


class LabelError(PipelineError, code="label-error"):
    """A label cannot be given as it was asked."""


class BundleError(PipelineError, code="model-error"):
    """A model file cannot be made or read."""


class ParityError(PipelineError, code="parity-error"):
    """An exported model does not predict what was trained."""
