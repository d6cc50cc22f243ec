"""BasisName: what a basis is called and what that asks for; free of torch, as `config` is."""

import re
from dataclasses import dataclass

from pipeline.errors import ConfigError

VECTORS = ("cls", "mean")  # one vector of several that a row has: the class token, or the mean of the others
REGIONS = ("full", "pool", "pyramid", *VECTORS)
_G = r"\d{1,9}(?:\.\d{1,9})?"
_NAME = re.compile(rf"({'|'.join(REGIONS)})(?:\+(white)(?::({_G}))?)?(?:\+(lda)(?::({_G}))?)?(?:\+pca:(\d{{1,9}}))?")
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
        """Regions (`full`, `pool`, …), then `+white[:G]`, then `+pca:R` or `+lda[:G]` or both, `+lda[:G]+pca:R`.

        `pca:R` is `full+pca:R`, `lda` is `full+lda`. ConfigError for any other name, and for a G or R of 0.
        """
        found = _NAME.fullmatch(name if name.startswith(REGIONS) else f"full+{name}")
        if found is None or name.startswith("white"):
            raise ConfigError(
                f"{name[:60]!r} is not a basis: expected full, pool, pyramid, cls or mean, then +white[:G], then "
                "+pca:R, +lda[:G] or +lda[:G]+pca:R"
            )
        regions, white, white_shrinkage, lda, lda_shrinkage, count = found.groups()
        shrinkage = float(white_shrinkage or WHITE_SHRINKAGE) if white else None
        discriminant = float(lda_shrinkage or LDA_SHRINKAGE) if lda else None
        components = int(count) if count else None
        if 0 in (shrinkage, discriminant):
            raise ConfigError(f"{name!r}: the shrinkage must be above 0")
        if components == 0:
            raise ConfigError(f"{name!r}: pca needs one component or more")
        return cls(regions, shrinkage, components, discriminant)
