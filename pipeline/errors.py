"""Errors of the pipeline: messages for the person at the keyboard, codes for a script."""

from cache.errors import HeadgraftError


class PipelineError(HeadgraftError):
    """The pipeline cannot do what was asked."""

    code = "pipeline-error"


class ConfigError(PipelineError):
    """Wrong usage: an option or argument has a value that it cannot have, is unknown or is missing."""

    code = "wrong-usage"


class DecodeError(PipelineError):
    """Image files cannot be decoded."""

    code = "undecodable-images"


class ImageSetError(PipelineError):
    """A data set cannot be used as it is."""

    code = "unusable-data"


class WeightsError(PipelineError):
    """Pretrained weights cannot be had, or are not what they should be."""

    code = "weights-error"


class RunError(PipelineError):
    """A run cannot be made, read, or used with this cache."""

    code = "run-error"


class TargetExists(RunError):
    """There is something where a run or file is to be written, and `--overwrite` was not given."""

    code = "target-exists"


class DataChanged(RunError):
    """The images are not as they were extracted: `extract` brings the cache up to date."""

    code = "data-changed"


class BundleError(PipelineError):
    """A model file cannot be made or read."""

    code = "model-error"


class ParityError(PipelineError):
    """An exported model does not predict what was trained."""

    code = "parity-error"
