"""Pascal VOC annotations of a picture of 40x30 pixels, most of them bad."""

from collections.abc import Callable
from pathlib import Path

SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"
SIDES = ("xmin", "ymin", "xmax", "ymax")


def box(*sides: object, name: str = "dog") -> str:
    """An object."""
    sides = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(SIDES, sides, strict=False))
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def xml(*parts: str, size: str = SIZE, before: str = "") -> bytes:
    """An annotation."""
    return f"{before}<annotation>{size}{''.join(parts)}</annotation>".encode()


GOOD = xml(box(1, 1, 20, 20))
LAUGHS = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))

FILES: dict[str, bytes | Callable[[Path], object]] = {
    "good.xml": GOOD,
    "no_object.xml": xml(),
    # no XML
    "directory.xml": Path.mkdir,
    "link_to_itself.xml": lambda path: path.symlink_to(path),
    "empty.xml": b"",
    "blank.xml": b" \n",
    "text.xml": b"1 0.5 0.5 0.2 0.2\n",
    "json.xml": b'{"images": []}',
    "truncated.xml": GOOD[:-20],
    "two_roots.xml": GOOD + GOOD,
    "tag_not_closed.xml": GOOD.replace(b"</size>", b""),
    "nul.xml": GOOD.replace(b"dog", b"d\0g"),
    "control_character.xml": GOOD.replace(b"dog", b"d\x1bg"),
    "bare_ampersand.xml": GOOD.replace(b"dog", b"cat & dog"),
    # encodings
    "utf8_bom.xml": b"\xef\xbb\xbf" + GOOD,
    "utf16.xml": GOOD.decode().encode("utf-16"),
    "latin1.xml": b'<?xml version="1.0" encoding="latin-1"?>' + GOOD.replace(b"dog", b"caf\xe9"),
    "latin1_not_declared.xml": GOOD.replace(b"dog", b"caf\xe9"),
    "unknown_encoding.xml": b'<?xml version="1.0" encoding="klingon"?>' + GOOD,
    "wrong_encoding.xml": b'<?xml version="1.0" encoding="utf-16"?>' + GOOD,
    "unicode_name.xml": xml(box(1, 1, 20, 20, name="犬")),
    # attacks
    "billion_laughs.xml": xml(
        box(1, 1, 20, 20, name="&e11;"), before=f'<!DOCTYPE a [<!ENTITY e0 "ha">{LAUGHS}]>'
    ),
    "quadratic.xml": xml(
        box(1, 1, 20, 20, name="&e;" * 20_000),
        before=f'<!DOCTYPE a [<!ENTITY e "{"a" * 20_000}">]>',
    ),
    "external_entity.xml": xml(
        box(1, 1, 20, 20, name="&e;"),
        before='<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    ),
    "external_dtd.xml": xml(
        box(1, 1, 20, 20), before='<!DOCTYPE a SYSTEM "http://localhost/absent.dtd">'
    ),
    "undefined_entity.xml": xml(box(1, 1, 20, 20, name="&e;")),
    "nested.xml": xml("<a>" * 50_000 + "</a>" * 50_000),
    # sizes
    "no_size.xml": xml(box(1, 1, 20, 20), size=""),
    "no_height.xml": xml(box(1, 1, 20, 20), size="<size><width>40</width></size>"),
    "size_of_another.xml": xml(size=SIZE.replace("40", "41")),
    "size_swapped.xml": xml(size="<size><width>30</width><height>40</height></size>"),
    "size_nan.xml": xml(size=SIZE.replace("40", "nan")),
    "size_negative.xml": xml(size=SIZE.replace("40", "-40")),
    "size_text.xml": xml(size=SIZE.replace("40", "forty")),
    "size_of_6000_digits.xml": xml(size=SIZE.replace("40", "4" * 6000)),
    "other_root.xml": xml(box(1, 1, 20, 20)).replace(b"annotation>", b"html>"),
    # boxes
    "box_nan.xml": xml(box("nan", 1, 20, 20)),
    "box_infinity.xml": xml(box(1, 1, "inf", 20)),
    "box_1e400.xml": xml(box(1, 1, "1e400", 20)),
    "box_of_6000_digits.xml": xml(box(1, 1, "9" * 6000, 20)),
    "box_text.xml": xml(box("one", 1, 20, 20)),
    "box_empty.xml": xml(box("", "", "", "")),
    "box_of_three.xml": xml(box(1, 1, 20)),
    "box_missing.xml": xml("<object><name>dog</name></object>"),
    "box_inverted.xml": xml(box(20, 20, 1, 1)),
    "box_of_no_area.xml": xml(box(5, 5, 5, 9)),
    "box_outside.xml": xml(box(41, 1, 60, 20)),
    "box_beyond.xml": xml(box(0, 1, 1e308, 20)),
    "name_missing.xml": xml(box(1, 1, 20, 20).replace("<name>dog</name>", "")),
    "name_empty.xml": xml(box(1, 1, 20, 20, name=" ")),
    "name_with_newline.xml": xml(box(1, 1, 20, 20, name="d\ng")),
    "difficult_text.xml": xml(
        box(1, 1, 20, 20).replace("<name>", "<difficult>yes</difficult><name>")
    ),
}
