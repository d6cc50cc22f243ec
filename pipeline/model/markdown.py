"""A model's card in words, as Markdown: what it is, what it was made of, how good it is, how to use it."""

from collections.abc import Iterator
from typing import Any

from pipeline.model.bundle import Bundle

_SAID_BEFORE = ("basis", "set")
_PRIORS = {
    "none": "as trained",
    "train": "corrected to the class frequencies of the training images, in the last bias",
    "uniform": "corrected to equally frequent classes, in the last bias",
}
SHOWN = 30  # classes that are listed


def model_card(bundle: Bundle) -> str:
    """The card of a model file. It says what the file says; a file of an earlier version may say less."""
    card = bundle.card
    base = card["manifest"]["base"]
    lines = [f"# {bundle.path.name}", "", _purpose(bundle), ""]
    lines += ["## What it is", ""]
    lines += [
        f"- {card['backbone']} up to `{base['layer']}`, frozen, then {bundle.head.architecture}",
        f"- input: {bundle.preprocessing}",
        f"- weights of the backbone: {base['weights_digest'][:16]}; licence: {_licence(card)}",
        f"- trained on features computed in {base['precision']}; the file's numbers are float32",
        f"- tensors: {_checked(card)}",
        "",
        "## How it was trained",
        "",
    ]
    lines += [f"- images: {_images(card)}"] if "images" in card else []
    lines += [f"- basis: {card['basis']}, folded into the first layer"] if "basis" in card else []
    lines += [f"- class prior: {_PRIORS.get(card.get('class_prior', 'none'), 'not known')}"]
    lines += [
        f"- {name.replace('_', ' ')}: {value}"
        for name, value in sorted(card.get("training", {}).items())
        if name not in _SAID_BEFORE and value is not None
    ]
    lines += ["", "## How good it is", "", *_scores(card), "", *_calibration(card)]
    lines += [
        "## Classes",
        "",
        _classes(bundle),
        "",
        "## Use",
        "",
        f"    headgraft predict {bundle.path.name} IMAGE...",
    ]
    return "\n".join(lines) + "\n"


def _purpose(bundle: Bundle) -> str:
    data = f", those of {bundle.card['set']}" if "set" in bundle.card else ""
    return f"Tells {len(bundle.classes)} classes of images apart{data}. Exported by headgraft through its parity gate."


def _checked(card: dict[str, Any]) -> str:
    return f"checked, {card['digest']}" if "digest" in card else "not checked, exported without a digest"


def _licence(card: dict[str, Any]) -> str:
    return str(card.get("weights", {}).get("licence", "not stated"))


def _images(card: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {split}" for split, count in card["images"].items())
    skipped = f"; {len(card['skipped'])} files skipped" if card["skipped"] else ""
    return f"{counts}{skipped}"


def _scores(card: dict[str, Any]) -> list[str]:
    scores = card.get("scores", {})
    lines = [f"- validation, last epoch: {scores['valid_accuracy']:.2%}"] if "valid_accuracy" in scores else []
    for one in scores.get("scored", []):
        accuracies = ", ".join(_accuracies(one, len(card["classes"])))
        lines.append(f"- {one['split']}, {one['images']} images: {accuracies} (evaluated {one['when'][:10]})")
    return lines or ["- not scored"]


def _accuracies(scored: dict[str, Any], classes: int) -> Iterator[str]:
    """Each with its 95 % interval, where the file has those; an earlier file has a top-5 of five classes too."""
    intervals = scored.get("intervals", {})
    for name, key in (("top-1", "top1"), ("top-5", "top5"), ("mean per class", "mean_per_class")):
        if scored[key] is not None and (key != "top5" or classes > 5):
            bounds = [f"{bound:.2%}" for bound in intervals.get(key, ())]
            yield f"{name} {scored[key]:.2%}" + (f" (95 % interval {' to '.join(bounds)})" if bounds else "")


def _calibration(card: dict[str, Any]) -> list[str]:
    found = card.get("calibration", {})
    if not found.get("ece"):
        return []
    return [f"Temperature {found['temperature']:.3f}, fitted on validation; {errors_in_words(found)}.", ""]


def errors_in_words(calibration: dict[str, Any]) -> str:
    """The calibration errors of a card, by split, before and after, each with its floor where the card has that."""

    def shown(split: str, place: int) -> str:
        floors = calibration.get("floor", {})
        floor = f" (floor {floors[split][place]:.3f})" if split in floors else ""
        return f"{calibration['ece'][split][place]:.3f}{floor}"

    each = (f"{one.replace('_', ' ')} {shown(one, 0)} before and {shown(one, 1)} after" for one in calibration["ece"])
    return f"calibration error: {', '.join(each)}"


def _classes(bundle: Bundle) -> str:
    shown = [bundle.names.get(name, name) for name in bundle.classes[:SHOWN]]
    more = len(bundle.classes) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
