"""What a file is that cannot be read as an image, told by its first bytes."""

import re

from cache.errors import install_hint

_HTML = re.compile(rb"\s*(<\?xml[^>]*>\s*)?(?>(?><!--.*?-->\s*)*)<(!doctype\s+html|html|head|body)\b", re.DOTALL | re.I)
_LOSSLESS_FRAMES = re.compile(rb"\xff[\xc3\xc7\xcb\xcf]\x00[\x0b-\x17]")  # start of a lossless frame, and its length
_MEDIA_BRANDS = {  # of the ISO base media file format
    b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC",
    b"mif1": "HEIF", b"msf1": "HEIF", b"avif": "AVIF", b"avis": "AVIF", b"crx ": "Canon raw (CR3)",
    b"jxl ": "JPEG XL",
}  # fmt: skip
_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the image: run 'git lfs pull'",
    b"\xff\x0a": "a JPEG XL image, which is not supported: convert it",
    b"\0\0\0\x0cJXL ": "a JPEG XL image, which is not supported: convert it",
    b"\0\0\0\x0cjP  ": "a damaged JPEG 2000 image",
    b"\x89PNG\r\n": "a damaged PNG image",
    b"GIF8": "a damaged GIF image",
    b"II*\0": "a TIFF image that is damaged or of an unsupported kind, such as 32-bit float or raw: convert it",
    b"MM\0*": "a TIFF image that is damaged or of an unsupported kind, such as 32-bit float or raw: convert it",
    b"II+\0": "a BigTIFF image that is damaged or of an unsupported kind: convert it",
    b"8BPS": "a Photoshop document: export it as an image",
    b"%PDF": "a PDF document: export its pages as images",
    b"<svg": "an SVG drawing: export it as an image",
    b"PK\x03\x04": "a ZIP archive: unpack it",
    b"\x1f\x8b": "a gzip archive: unpack it",
}


def describe(data: bytes, heif: bool) -> str:
    """What `data` is, as "a …" or "not an image of a known format", with what to do where that is known.

    `heif` says whether HEIC and HEIF files can be read here.
    """
    if not any(data[:4096]):
        return "not an image but zero bytes, as an interrupted copy leaves them: copy it again"
    if _HTML.match(data[:1024]):
        return "an HTML page in place of the image, as a failed download leaves it: download it again"
    for start, said in _STARTS.items():
        if data.startswith(start):
            return said
    if data[4:8] == b"ftyp":
        brand = _MEDIA_BRANDS.get(data[8:12], "")
        if not brand:
            return "a video or audio file, not an image"
        if brand in ("HEIC", "HEIF") and not heif:
            return f"a {brand} image, which needs pillow-heif: {install_hint('heif')}"
        if brand in ("HEIC", "HEIF", "AVIF"):
            return f"a damaged {brand} image, or of a kind that this installation cannot read"
        return f"a {brand} image, which is not supported: convert it"
    if data.startswith(b"\xff\xd8"):
        lossless = _LOSSLESS_FRAMES.search(data[:65536])
        return "a lossless JPEG, which is not supported: convert it" if lossless else "a damaged JPEG image"
    return "not an image of a known format"
