"""Whether the file of an image is all there, without decoding it where its format tells."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from senet.data.sources.pictures import IMAGE_FORMATS, read_image

_PNG_END = b"IEND\xaeB`\x82"
_OPEN_RANGE = ("I", "F")  # modes whose pixels must be seen to know whether they are from 0 to 255; also I;16


def refuse_damaged(content: bytes) -> None:
    """Look at the header and for the mark at the end. Decoded are only images without such a mark, which may be whole
    all the same (some writers forget it; BMP, PPM and TIFF have none), and those of 16 or 32 bits.

    Raises:
        What ``read_image`` does, but for damage between header and end.
    """
    with Image.open(BytesIO(content), formats=IMAGE_FORMATS) as opened:
        kind, mode = opened.format, opened.mode
    if mode.startswith(_OPEN_RANGE) or not _ends(content, kind or ""):
        read_image(BytesIO(content))


def _ends(content: bytes, kind: str) -> bool:
    """Whether the mark at the end is there; some files have more behind it."""
    if kind in ("JPEG", "MPO"):
        return content.find(b"\xff\xd9", _scan_of(content)) >= 0
    if kind == "PNG":
        return _PNG_END in content
    if kind == "WEBP":
        return int.from_bytes(content[4:8], "little") + 8 <= len(content)
    return kind == "GIF" and content.rstrip(b"\0").endswith(b";")


def _scan_of(content: bytes) -> int:
    """Where the pixels of a JPEG begin: a thumbnail before them has an end of its own."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xDA:
            return at
        at += 1 if content[at + 1] == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return len(content)
