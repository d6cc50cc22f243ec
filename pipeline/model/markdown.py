"""A model's card in words, as Markdown: what it is, how it was trained, how good it is, how to use it."""

from collections.abc import Iterator

from pipeline.model.bundle import Bundle
from pipeline.model.card import Calibration, Evaluation, ModelCard

_SAID_BEFORE = ("basis", "set")
_PRIORS = {
    "none": "as trained",
    "train": "corrected to the class frequencies of the training images, in the last bias",
    "uniform": "corrected to equally frequent classes, in the last bias",
}
SHOWN = 30  # classes that are listed


def model_card(bundle: Bundle) -> str:
    """The card of a model file. It says what the file says; a file of an earlier version may say less."""
    card, base, name = bundle.card, bundle.card.manifest.base, bundle.path.name
    hidden, features = bundle.head.state_dict()["0.weight"].shape
    shown = [card.names.get(label, label) for label in card.classes[:SHOWN]]
    more = f" and {len(card.classes) - SHOWN} more" if len(card.classes) > SHOWN else ""
    return f"""\
# {name}

Tells {len(card.classes)} classes of images apart{f", those of {card.set}" if card.set else ""}. Exported by headgraft \
through its parity gate.

## What it is

- {card.backbone} up to `{base.layer}`, frozen, then Linear({features}, {hidden}), ReLU, Dropout, \
Linear({hidden}, {len(card.classes)}), LogSoftmax
- input: {bundle.preprocessing}
- weights of the backbone: {base.weights_digest[:16]}; licence: {card.weights.get("licence", "not stated")}
- trained on features computed in {base.precision}; the file's numbers are float32
- tensors: {f"checked, {card.digest}" if card.digest else "not checked, exported without a digest"}

## How it was trained

{_joined(_training(card))}

## How good it is

{_joined(_scores(card))}

## Classes

{", ".join(shown)}{more}

## Use

    headgraft predict {name} IMAGE...
"""


def _joined(lines: Iterator[str]) -> str:
    return "\n".join(lines)


def _training(card: ModelCard) -> Iterator[str]:
    if card.images:
        counts = ", ".join(f"{count} {split}" for split, count in card.images.items())
        yield f"- images: {counts}" + (f"; {len(card.skipped)} files skipped" if card.skipped else "")
    if card.basis:
        yield f"- basis: {card.basis}, folded into the first layer"
    yield f"- class prior: {_PRIORS[card.class_prior]}"
    for name, value in sorted(card.training.items()):
        if name not in _SAID_BEFORE and value is not None:
            yield f"- {name.replace('_', ' ')}: {value}"


def _scores(card: ModelCard) -> Iterator[str]:
    evaluations = card.scores.evaluations
    if card.scores.valid_accuracy is not None:
        yield f"- validation, last epoch: {card.scores.valid_accuracy:.2%}"
    elif not evaluations:
        yield "- not scored"
    for one in evaluations:
        accuracies = ", ".join(_accuracies(one, len(card.classes)))
        yield f"- {one.split}, {one.images} images: {accuracies} (evaluated {one.when[:10]})"
    if card.calibration.ece:
        errors = errors_in_words(card.calibration)
        yield ""
        yield f"Temperature {card.calibration.temperature:.3f}, fitted on validation; {errors}."


def _accuracies(scored: Evaluation, classes: int) -> Iterator[str]:
    """Each with its 95 % interval, where the file has those; an earlier file has a top-5 of five classes too."""
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("mean per class", "mean_per_class")):
        value, bounds = getattr(scored, key), scored.intervals.get(key)
        if value is not None and (key != "top5" or classes > 5):
            interval = f" (95 % interval {bounds[0]:.2%} to {bounds[1]:.2%})" if bounds else ""
            yield f"{name} {value:.2%}{interval}"


def errors_in_words(calibration: Calibration) -> str:
    """The calibration errors by split, before and after, each with its floor where the card has that."""

    def shown(split: str, after: int) -> str:
        floors = calibration.floor.get(split)
        return f"{calibration.ece[split][after]:.3f}" + (f" (floor {floors[after]:.3f})" if floors else "")

    each = [f"{one.replace('_', ' ')} {shown(one, 0)} before and {shown(one, 1)} after" for one in calibration.ece]
    return f"calibration error: {', '.join(each)}"
