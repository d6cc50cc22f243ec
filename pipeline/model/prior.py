"""How frequent classes are taken to be in a model's probabilities: as its head was trained, or as is asked for."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cache.index import SetIndex
from pipeline.errors import ConfigError
from pipeline.run import Run


@dataclass(frozen=True)
class ClassPrior:
    """Class frequencies, (C,) each: of the training images, that the head was trained for, and that are wanted.

    A temperature is fitted on images as frequent as those of training; the wanted frequencies come in after it.
    """

    train: Tensor
    trained: Tensor
    wanted: Tensor

    @property
    def of_training_images(self) -> Tensor:
        """What is added to scaled logits so that they are for the training images' frequencies, (C,)."""
        return (self.train / self.trained).log()

    @property
    def added(self) -> Tensor:
        """What is added to scaled logits so that they are for the wanted frequencies, (C,)."""
        return (self.wanted / self.trained).log()

    @property
    def from_wanted(self) -> Tensor:
        """The same, of logits that are for the wanted frequencies already, (C,)."""
        return (self.train / self.wanted).log()

    def corrected(self, run: Run, temperature: float) -> Run:
        """The run with a head that, at `temperature`, is for the wanted frequencies; its files stay as they are."""
        return replace(run, head=run.head.with_class_prior(self.trained, self.wanted, temperature))


def class_prior(run: Run, index: SetIndex, prior: str) -> ClassPrior | None:
    """Frequencies for `prior`, one of `config.CLASS_PRIORS`; None for "none".

    A head with class weights "balanced" was trained as if all classes were equally frequent, another for the
    frequencies of the training images. ConfigError where that is `prior` already.
    """
    if prior == "none":
        return None
    images = index.split(*run.record.trained_splits)
    counts = torch.bincount(torch.from_numpy(index.labels(images)), minlength=len(index.classes)).double()
    frequencies = {"train": counts.clamp_min(1) / counts.clamp_min(1).sum()}  # as class weights count
    frequencies["uniform"] = torch.full_like(counts, 1 / len(counts))
    weights = run.record.config.class_weights
    trained = frequencies["uniform" if weights == "balanced" else "train"]
    if torch.allclose(trained, frequencies[prior]):
        same = counts.min() == counts.max()
        found = "its classes have equally many training images" if same else f"its class weights were {weights}"
        raise ConfigError(f"--class-prior {prior} changes nothing of {run.path}: {found}; leave it out")
    return ClassPrior(frequencies["train"], trained, frequencies[prior])
