"""Small pictures as data URIs, each in the page once, as many as there is room for."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from cache.index import ImageRecord
from pipeline.errors import DecodeError
from pipeline.inputs.decode import FULL_RANGE, Decoding
from pipeline.inputs.pictures import picture_of
from pipeline.inputs.remarks import catching_warnings

SIDE = 96  # pixels
ROOM = 3_600_000  # bytes of all of them: a page has to go through the mail
_QUALITY = 60


@dataclass
class Thumbnails:
    """Of images below `root`; `uris` by the digest of the image, `missing` counts those that are no longer there."""

    root: Path
    decoding: Decoding = FULL_RANGE
    room: int = ROOM
    uris: dict[str, str] = field(default_factory=dict)
    missing: int = 0
    _tried: set[str] = field(default_factory=set, repr=False)

    def add(self, images: Iterable[ImageRecord]) -> None:
        """Make those of `images` that fit, in their order."""
        with catching_warnings():
            for image in images:
                if self.room <= 0 or image.digest in self._tried:
                    continue
                self._tried.add(image.digest)
                try:
                    uri = self._uri(image)
                except DecodeError:
                    self.missing += 1
                    continue
                self.room -= len(uri)
                if self.room > 0:
                    self.uris[image.digest] = uri

    def _uri(self, image: ImageRecord) -> str:
        """The middle square, as a backbone sees an image, in WebP."""
        picture = picture_of(self.root / image.path, image.digest, self.decoding)
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = (left, top, left + side, top + side)
        small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS, square, reducing_gap=2)
        target = BytesIO()
        small.save(target, "WEBP", quality=_QUALITY)
        return "data:image/webp;base64," + base64.b64encode(target.getvalue()).decode("ascii")
