"""A model's card in words, as Markdown: the template card.md beside this file, filled in."""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from pipeline.model.bundle import Bundle
from pipeline.model.card import Calibration, Evaluation

_PRIORS = {
    "none": "as trained",
    "train": "corrected to the class frequencies of the training images, in the last bias",
    "uniform": "corrected to equally frequent classes, in the last bias",
}
SHOWN = 30  # classes that are listed


def model_card(bundle: Bundle) -> str:
    """The card of a model file. It says what the file says; a file of an earlier version may say less."""
    card = bundle.card
    markdown = Environment(  # noqa: S701  # not HTML
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = markdown.from_string((files("pipeline.model") / "card.md").read_text("utf-8"))
    return template.render(
        name=bundle.path.name,
        card=card,
        base=card.manifest.base,
        architecture=bundle.head.architecture,
        preprocessing=bundle.preprocessing,
        images=[f"{count} {split}" for split, count in card.images.items()],
        prior=_PRIORS.get(card.class_prior, "not known"),
        shown=[card.names.get(label, label) for label in card.classes[:SHOWN]],
        accuracies=lambda scored: _accuracies(scored, len(card.classes)),
        errors_in_words=errors_in_words,
    )


def _accuracies(scored: Evaluation, classes: int) -> list[str]:
    """Each with its 95 % interval, where the file has those; an earlier file has a top-5 of five classes too."""
    lines = []
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("mean per class", "mean_per_class")):
        value, bounds = getattr(scored, key), scored.intervals.get(key)
        if value is not None and (key != "top5" or classes > 5):
            interval = f" (95 % interval {bounds[0]:.2%} to {bounds[1]:.2%})" if bounds else ""
            lines.append(f"{name} {value:.2%}{interval}")
    return lines


def errors_in_words(calibration: Calibration) -> str:
    """The calibration errors by split, before and after, each with its floor where the card has that."""

    def shown(split: str, after: int) -> str:
        floors = calibration.floor.get(split)
        return f"{calibration.ece[split][after]:.3f}" + (f" (floor {floors[after]:.3f})" if floors else "")

    each = [f"{one.replace('_', ' ')} {shown(one, 0)} before and {shown(one, 1)} after" for one in calibration.ece]
    return f"calibration error: {', '.join(each)}"
