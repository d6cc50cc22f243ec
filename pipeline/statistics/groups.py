"""Groups of a set's images that are no independent evidence: identical files, those of one given group, such as frames
of one scene, and near-duplicates joined by pairs."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cache.index import ImageRecord

_LARGEST = 100  # images: beyond, a group is a chain of pairs rather than one picture


@dataclass(frozen=True)
class Groups:
    """`of` is the number of the group of each content, by its digest."""

    of: Mapping[str, int]

    def numbers(self, images: Sequence[ImageRecord]) -> npt.NDArray[np.int64]:
        """The group of each of some images of the set (N,), to keep in one fold or to resample together."""
        return np.array([self.of[image.digest] for image in images], dtype=np.int64)

    def names(self, images: Sequence[ImageRecord]) -> list[str]:
        """The lowest digest among `images` of the group of each of them: its own where it is alone."""
        lowest: dict[int, str] = {}
        for image in images:
            lowest[self.of[image.digest]] = min(image.digest, lowest.get(self.of[image.digest], image.digest))
        return [lowest[self.of[image.digest]] for image in images]


def join(images: Sequence[ImageRecord], links: Iterable[tuple[float, str, str]] = ()) -> Groups:
    """Connected components of `links`, each a cosine and two digests, the highest cosines first.

    Files of one content are always together, and so are those of one given group, whose number is that of its lowest
    digest. By a link two groups that would have more than a tenth of all images together, or more than `_LARGEST`, stay
    apart, so that a chain of pairs does not swallow a class; two images never do.
    """
    sizes = Counter(image.digest for image in images)
    largest = max(2, min(_LARGEST, sizes.total() // 10))
    parent = {digest: digest for digest in sizes}

    def top(digest: str) -> str:
        while parent[digest] != digest:
            parent[digest] = digest = parent[parent[digest]]
        return digest

    def unite(a: str, b: str, most: float) -> None:
        first, second = sorted((top(a), top(b)))
        if first != second and sizes[first] + sizes[second] <= most:
            parent[second] = first
            sizes[first] += sizes[second]

    of_group: dict[str, str] = {}
    for image in images:
        if image.group:
            unite(image.digest, of_group.setdefault(image.group, image.digest), math.inf)
    for _, a, b in sorted(links, key=lambda link: (-link[0], *sorted(link[1:]))):
        unite(a, b, largest)
    numbers = {digest: number for number, digest in enumerate(sorted({top(digest) for digest in parent}))}
    return Groups({digest: numbers[top(digest)] for digest in parent})
