"""Pictures, most of them bad. An annotation gives each 40x30 pixels, or what its name says."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(image: Image.Image, kind: str = "PNG", **settings) -> bytes:
    """The image as a file's content."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def png(width: int, height: int, bits: int = 8, colour: int = 0, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _flipped(content: bytes, at: int) -> bytes:
    """With the bits of one byte turned over."""
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def _directory_with_a_file(path: Path) -> None:
    path.mkdir()
    (path / "a.png").touch()


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
PNG, JPEG = encoded(PHOTO), encoded(PHOTO, "JPEG")
GREY16 = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 54)
FRAMES = {"save_all": True, "append_images": [PHOTO.rotate(180)]}

FILES: dict[str, bytes | Callable[[Path], object]] = {
    "good.png": PNG,
    "good.jpg": JPEG,
    "named_jpg.jpg": PNG,
    "empty.png": b"",
    "text.jpg": b"no image\n",
    "html.jpg": b"<!DOCTYPE html><title>404 Not Found</title>",
    "svg.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"/>',
    "zeros.jpg": bytes(5000),
    "lfs_pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "signature.png": PNG[:8],
    "header.png": PNG[:33],
    "header.jpg": JPEG[:20],
    "half.png": PNG[: len(PNG) // 2],
    "half.jpg": JPEG[: len(JPEG) // 2],
    "without_its_last_100_bytes.jpg": JPEG[:-100],
    "half.gif": encoded(PHOTO, "GIF")[:700],
    "half.bmp": encoded(PHOTO, "BMP")[:2000],
    "half.webp": encoded(PHOTO, "WEBP")[:300],
    "half.tif": encoded(PHOTO, "TIFF")[:2000],
    "bad_crc_of_header.png": _flipped(PNG, 30),
    "bad_crc_of_pixels.png": _flipped(PNG, len(PNG) - 14),
    "bad_pixels.png": _flipped(PNG, len(PNG) // 2),
    "bad_bit_depth.png": png(40, 30, bits=3, pixels=bytes(31 * 30)),
    "no_pixels.png": png(40, 30),
    "no_width.png": png(0, 30),
    "bomb.png": png(50_000, 50_000),
    "bomb_of_text.png": PNG[:33]
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27)))
    + PNG[33:],
    "bomb.jpg": JPEG.replace(struct.pack(">HH", 30, 40), b"\xff\xff\xff\xff", 1),
    "larger.png": encoded(PHOTO.resize((41, 30))),
    "swapped.jpg": encoded(PHOTO.resize((30, 40)), "JPEG"),
    "one_1x1.png": encoded(PHOTO.resize((1, 1))),
    "column_1x30.png": encoded(PHOTO.resize((1, 30))),
    "row_40x1.jpg": encoded(PHOTO.resize((40, 1)), "JPEG"),
    "turned_30x40.jpg": encoded(PHOTO, "JPEG", exif=_turned(6)),
    "turned_against_its_size.jpg": encoded(PHOTO, "JPEG", exif=_turned(6)),
    "turned_30x40.png": encoded(PHOTO, exif=_turned(8)),
    "no_orientation.jpg": encoded(PHOTO, "JPEG", exif=_turned(99)),
    "broken_exif.jpg": encoded(PHOTO, "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "bilevel.png": encoded(PHOTO.convert("1")),
    "grey.png": encoded(PHOTO.convert("L")),
    "grey_alpha.png": encoded(PHOTO.convert("LA")),
    "palette.png": encoded(PHOTO.convert("P")),
    "alpha.png": encoded(PHOTO.convert("RGBA")),
    "cmyk.jpg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "ycbcr.tif": encoded(PHOTO.convert("YCbCr"), "TIFF"),
    "grey_16_bit.png": encoded(GREY16),
    "grey_16_bit.tif": encoded(GREY16, "TIFF"),
    "integers_of_32_bit.tif": encoded(PHOTO.convert("I"), "TIFF"),
    "floats.tif": encoded(PHOTO.convert("F"), "TIFF"),
    "still.gif": encoded(PHOTO, "GIF"),
    "animated.gif": encoded(PHOTO, "GIF", **FRAMES),
    "animated.png": encoded(PHOTO, **FRAMES),
    "pages.tif": encoded(PHOTO, "TIFF", **FRAMES),
    "directory.png": _directory_with_a_file,
    "link_to_itself.png": lambda path: path.symlink_to(path),
    "link_to_nothing.png": lambda path: path.symlink_to(path.with_name("nothing")),
}
