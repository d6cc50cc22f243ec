"""How frequent classes are taken to be in a model's probabilities: as its head was trained, or as is asked for."""

from dataclasses import replace

import torch

from cache.index import SetIndex
from pipeline.bases.rows import label_tensor
from pipeline.errors import ConfigError
from pipeline.heads.head import with_class_prior
from pipeline.run import Run


def for_class_prior(run: Run, index: SetIndex, prior: str) -> Run:
    """The run with its probabilities for `prior`, one of `config.CLASS_PRIORS`; its files stay as they are.

    A head with class weights "balanced" was trained as if all classes were equally frequent, another for the
    frequencies of the training images. ConfigError where that is `prior` already.
    """
    if prior == "none":
        return run
    counts = torch.bincount(label_tensor(index, index.split("train")), minlength=len(index.classes)).double()
    frequencies = {"train": counts.clamp_min(1) / counts.clamp_min(1).sum()}  # as class weights count
    frequencies["uniform"] = torch.full_like(counts, 1 / len(counts))
    weights = run.record["config"].get("class_weights", "none")
    trained = frequencies["uniform" if weights == "balanced" else "train"]
    if torch.allclose(trained, frequencies[prior]):
        same = counts.min() == counts.max()
        found = "its classes have equally many training images" if same else f"its class weights were {weights}"
        raise ConfigError(f"--class-prior {prior} changes nothing of {run.path}: {found}; leave it out")
    return replace(run, head=with_class_prior(run.head, trained, frequencies[prior]))
