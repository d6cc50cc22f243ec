"""Backbones that there are, and what each takes and gives."""

import logging
from dataclasses import dataclass

from cache.result import Result
from pipeline.backbones.catalog import names, similar
from pipeline.backbones.facts import BackboneFacts, facts_of
from pipeline.console import progress
from pipeline.errors import ConfigError, PipelineError

logger = logging.getLogger("headgraft.backbones")


@dataclass(frozen=True)
class BackboneList(Result):
    """What `list_backbones` found.

    Attributes:
        backbones: by name, each with its default weights.
    """

    backbones: list[BackboneFacts]

    def in_words(self) -> str:
        """A table with a line for each."""
        titles = ("name", "parameters", "GMACs", "row", "layer", "input", "weights", "licence")
        rows = [titles, *map(_row, self.backbones)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(one: BackboneFacts) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.parameters / 1e6:.1f} M",
        f"{one.gmacs:.2f}",
        " x ".join(map(str, one.row_shape)),
        one.layer,
        str(one.input_size),
        "here" if one.weights_present else "–",
        one.licence or "unknown",
    )


def list_backbones(pattern: str = "") -> BackboneList:
    """List backbones whose names match `pattern` or contain it; those of timm where it begins with `timm/`.

    One that cannot be had is logged with the reason.

    Raises:
        ConfigError: none matches.
    """
    matching, found = names(pattern), []
    if not matching:
        hint = f"did you mean {name}?" if (name := similar(pattern)) else "try a part of a name, such as resnet"
        raise ConfigError(f"no backbone matches {pattern!r}, those of timm begin with timm/; {hint}")
    with progress(len(matching), "backbones") as advance:
        for name in matching:
            try:
                found.append(facts_of(name))
            except PipelineError as error:
                logger.warning(f"{name}: {error}")
            advance(1)
    return BackboneList(found)
