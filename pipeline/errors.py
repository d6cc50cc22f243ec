"""Errors of the pipeline whose message is meant for the person at the keyboard.

HeadgraftError
└── PipelineError
    ├── ConfigError      an option has a value it cannot have: wrong usage
    ├── DecodeError      an image file cannot become pixels
    ├── ImageSetError    a data set cannot be used as it is
    ├── WeightsError     pretrained weights cannot be had, or are not what they should be
    ├── RunError         a run cannot be made, read or used with this cache
    ├── BundleError      a model file cannot be made or read
    └── ParityError      an exported model differs from what was trained
"""

from cache.errors import HeadgraftError


class PipelineError(HeadgraftError):
    """The pipeline cannot do what was asked."""


class ConfigError(PipelineError):
    """An option has a value it cannot have: wrong usage."""


class DecodeError(PipelineError):
    """An image file cannot become pixels."""


class ImageSetError(PipelineError):
    """A data set cannot be used as it is."""


class WeightsError(PipelineError):
    """Pretrained weights cannot be had, or are not what they should be."""


class RunError(PipelineError):
    """A run cannot be made, read, or used with this cache."""


class BundleError(PipelineError):
    """A model file cannot be made or read."""


class ParityError(PipelineError):
    """An exported model does not predict what was trained."""
