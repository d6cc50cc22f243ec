"""BasisName: what a basis is called and what that asks for; free of torch, as `config` is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import ConfigError

REGIONS = ("full", "pool", "pyramid")
_PART = re.compile(r"(?P<kind>white|lda)(?::(?P<number>\d{1,9}(?:\.\d{1,9})?))?|(?P<pca>pca):(?P<count>\d{1,9})")
_LAST: tuple[list[str], ...] = ([], ["pca"], ["lda"], ["lda", "pca"])
_CHAINS = (*_LAST, *(["white", *last] for last in _LAST))
WHITE_SHRINKAGE = 6.0
LDA_SHRINKAGE = 4.0


@dataclass(frozen=True)
class BasisName:
    """A basis as its name says: regions, then what follows them, None where it does not."""

    regions: str
    shrinkage: float | None = None  # of the whitening
    components: int | None = None  # principal ones
    discriminant: float | None = None  # shrinkage of the linear discriminants

    @classmethod
    def parse(cls, name: str) -> "BasisName":
        """`full`, `pool` or `pyramid`, then `+white[:G]`, then `+pca:R` or `+lda[:G]` or both, `+lda[:G]+pca:R`.

        `pca:R` is `full+pca:R`, `lda` is `full+lda`.
        """
        parts = name.split("+")
        regions = parts.pop(0) if parts[0] in REGIONS else None
        found = [_PART.fullmatch(part) for part in parts]
        kinds = [match and (match["kind"] or match["pca"]) for match in found]
        _require(
            kinds in _CHAINS and (regions is not None or kinds in _LAST[1:]),
            f"{name[:60]!r} is not a basis: expected full, pool or pyramid, then +white[:G], then +pca:R, +lda[:G] or "
            "+lda[:G]+pca:R",
        )
        values = {kind: match["number"] or match["count"] for kind, match in zip(kinds, found, strict=True) if match}
        white, lda = (
            _shrinkage(name, values, *known) for known in (("white", WHITE_SHRINKAGE), ("lda", LDA_SHRINKAGE))
        )
        components = int(values["pca"]) if "pca" in values else None
        _require(components != 0, f"{name!r}: pca needs one component or more")
        return cls(regions or "full", white, components, lda)


def _shrinkage(name: str, values: Mapping[str | None, str | None], kind: str, default: float) -> float | None:
    if kind not in values:
        return None
    number = default if values[kind] is None else float(values[kind] or 0)
    _require(number > 0, f"{name!r}: the shrinkage must be above 0")
    return number


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)
