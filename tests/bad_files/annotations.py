"""COCO files for training and evaluation, most of them bad."""

import copy
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = ("cat", "dog")
PICTURES = ("a.png", "b.png", "写真.png")  # of SIZE
SIZE = (40, 30)
GOOD = {
    "info": {"description": "a good set"},
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {
            "id": i,
            "image_id": i,
            "category_id": i,
            "bbox": [5, 5, 10, 10],
            "area": 100,
            "iscrowd": 0,
            "segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]],
        }
        for i in (1, 2)
    ],
}
GONE = object()


def write_pictures(folder: Path) -> None:
    """The images that the files are of."""
    for name in PICTURES:
        Image.new("RGB", SIZE).save(folder / name)


def changed(changes: dict[str, Any]) -> bytes:
    """The good set with other values by dotted key; GONE removes one."""
    content = copy.deepcopy(GOOD)
    for where, value in changes.items():
        *steps, last = [int(step) if step.isdigit() else step for step in where.split(".")]
        holder = content
        for step in steps:
            holder = holder[step]
        if value is GONE:
            del holder[last]
        else:
            holder[last] = value
    return json.dumps(content).encode()


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(path.with_name(target or path.name))


TEXT = changed({})
nan, inf = float("nan"), float("inf")
deep: list = []
for _ in range(900):
    deep = [deep]

FILES: dict[str, bytes | Callable[[Path], None]] = {
    "good.json": TEXT,
    # no file, no text, no JSON
    "directory.json": Path.mkdir,
    "link_to_itself.json": _link(""),
    "link_to_nothing.json": _link("nothing"),
    "empty.json": b"",
    "blank.json": b" \n\t\n",
    "utf8_bom.json": b"\xef\xbb\xbf" + TEXT,
    "utf16.json": TEXT.decode().encode("utf-16"),
    "utf16_no_bom.json": TEXT.decode().encode("utf-16-le"),
    "latin1.json": TEXT.replace(b"cat", b"caf\xe9"),
    "nul_bytes.json": bytes(1000),
    "nul_inside.json": TEXT.replace(b"cat", b"c\0t"),
    "png.json": b"\x89PNG\r\n\x1a\n",
    "gzip.json": gzip.compress(TEXT, mtime=0),
    "text.json": b"1 0.5 0.5 0.2 0.2\n",
    "xml.json": b"<annotation><size/></annotation>",
    "truncated.json": TEXT[:-40],
    "two_objects.json": TEXT + TEXT,
    "trailing_comma.json": TEXT.replace(b'"dog"}', b'"dog"},'),
    "single_quotes.json": TEXT.replace(b'"', b"'"),
    "comment.json": b"// a set\n" + TEXT,
    "nested_lists.json": b"[" * 100_000,
    "nested_objects.json": b'{"images":' * 100_000,
    "int_of_6000_digits.json": TEXT.replace(b"[5, 5, 10", b"[5, 5, 1" + b"0" * 6000, 1),
    "lone_minus.json": TEXT.replace(b"[5, 5, 10", b"[-, 5, 10", 1),
    # no COCO
    "null.json": b"null",
    "number.json": b"1e5",
    "string.json": b'"images"',
    "list.json": b"[]",
    "list_of_lists.json": json.dumps([[GOOD]]).encode(),
    "empty_object.json": b"{}",
    "results.json": json.dumps([{"image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9]}]).encode(),
    "images_missing.json": changed({"images": GONE}),
    "images_null.json": changed({"images": None}),
    "images_object.json": changed({"images": {"1": GOOD["images"][0]}}),
    "images_lists.json": changed({"images": [[1, "a.png", 40, 30]]}),
    "images_none.json": changed({"images": [], "annotations": []}),
    "images_unlisted.json": changed({"images": []}),
    "images_twice.json": b'{"images": [], ' + TEXT[1:],  # JSON has the last of two count
    "image_null.json": changed({"images.1": None}),
    "categories_missing.json": changed({"categories": GONE}),
    "categories_none.json": changed({"categories": [], "annotations": []}),
    "categories_names.json": changed({"categories": ["cat", "dog"]}),
    "annotations_missing.json": changed({"annotations": GONE}),
    "annotations_null.json": changed({"annotations": None}),
    "annotations_object.json": changed({"annotations": {}}),
    "annotations_none.json": changed({"annotations": []}),
    "annotation_number.json": changed({"annotations.1": 2}),
    "info_junk.json": changed({"info": [None, {"": nan}], "licenses": deep}),
    # fields of images
    "image_without_id.json": changed({"images.1.id": GONE}),
    "image_id_string.json": changed({"images.1.id": "2"}),
    "image_id_float.json": changed({"images.1.id": 2.0}),
    "image_id_bool.json": changed({"images.0.id": True}),
    "image_id_null.json": changed({"images.1.id": None}),
    "image_id_list.json": changed({"images.1.id": [2]}),
    "image_id_huge.json": changed({"images.1.id": 10**400}),
    "image_id_repeated.json": changed({"images.1.id": 1}),
    "width_missing.json": changed({"images.1.width": GONE}),
    "width_nan.json": changed({"images.1.width": nan}),
    "width_infinity.json": changed({"images.1.width": inf}),
    "width_1e30.json": changed({"images.1.width": 1e30}),
    "width_10_to_400.json": changed({"images.1.width": 10**400}),
    "width_negative.json": changed({"images.1.width": -40}),
    "width_zero.json": changed({"images.1.width": 0}),
    "width_bool.json": changed({"images.1.width": True}),
    "width_string.json": changed({"images.1.width": "40"}),
    "width_null.json": changed({"images.1.width": None}),
    "width_fraction.json": changed({"images.1.width": 39.5}),
    "width_float.json": changed({"images.1.width": 40.0}),
    "width_of_another.json": changed({"images.1.width": 41}),
    "height_nan.json": changed({"images.1.height": nan}),
    "height_bool.json": changed({"images.1.height": True}),
    "height_negative.json": changed({"images.1.height": -30}),
    "sides_swapped.json": changed({"images.1.width": 30, "images.1.height": 40}),
    "file_name_missing.json": changed({"images.1.file_name": GONE}),
    "file_name_number.json": changed({"images.1.file_name": 2}),
    "file_name_null.json": changed({"images.1.file_name": None}),
    "file_name_list.json": changed({"images.1.file_name": ["b.png"]}),
    "file_name_empty.json": changed({"images.1.file_name": ""}),
    "file_name_nul.json": changed({"images.1.file_name": "b\0.png"}),
    "file_name_surrogate.json": changed({"images.1.file_name": "b\ud800.png"}),
    "file_name_newline.json": changed({"images.1.file_name": "b\n.png"}),
    "file_name_escape.json": changed({"images.1.file_name": "\x1b[2Jb.png"}),
    "file_name_unicode.json": changed({"images.1.file_name": "写真.png"}),
    "file_name_long.json": changed({"images.1.file_name": "b" * 300}),
    "file_name_absent.json": changed({"images.1.file_name": "c.png"}),
    "file_name_folder.json": changed({"images.1.file_name": "."}),
    "file_name_url.json": changed({"images.1.file_name": "http://localhost/b.png"}),
    "file_name_home.json": changed({"images.1.file_name": "~/b.png"}),
    "file_name_backslash.json": changed({"images.1.file_name": "..\\b.png"}),
    "file_name_twice.json": changed({"images.1.file_name": "a.png"}),
    "file_name_absolute.json": changed({"images.1.file_name": "/etc/passwd"}),
    "file_name_above.json": changed({"images.1.file_name": "../../etc/passwd"}),
    "file_name_above_below.json": changed({"images.1.file_name": "x/../../b.png"}),
    "file_name_inside.json": changed({"images.1.file_name": ".//./b.png"}),
    # fields of categories
    "category_without_id.json": changed({"categories.1.id": GONE}),
    "category_id_bool.json": changed({"categories.0.id": True}),
    "category_id_repeated.json": changed({"categories.1.id": 1}),
    "category_without_name.json": changed({"categories.1.name": GONE}),
    "category_name_number.json": changed({"categories.1.name": 2}),
    "category_name_null.json": changed({"categories.1.name": None}),
    "category_name_surrogate.json": changed({"categories.1.name": "d\udc00g"}),
    "category_name_newline.json": changed({"categories.1.name": "d\ng"}),
    "category_name_repeated.json": changed({"categories.1.name": "cat"}),
    "category_name_other.json": changed({"categories.1.name": "Dog"}),
    "categories_swapped.json": changed({"categories": GOOD["categories"][::-1]}),
    "category_more.json": changed({"categories": [*GOOD["categories"], {"id": 3, "name": "fox"}]}),
    # fields of annotations
    "id_missing.json": changed({"annotations.1.id": GONE}),
    "id_bool.json": changed({"annotations.0.id": True}),
    "id_string.json": changed({"annotations.1.id": "2"}),
    "id_zero.json": changed({"annotations.1.id": 0}),
    "id_negative.json": changed({"annotations.1.id": -2}),
    "id_huge.json": changed({"annotations.1.id": 2**63}),
    "id_repeated.json": changed({"annotations.1.id": 1}),
    "image_of_none.json": changed({"annotations.1.image_id": GONE}),
    "image_of_bool.json": changed({"annotations.0.image_id": True}),
    "image_of_string.json": changed({"annotations.1.image_id": "2"}),
    "image_of_unknown.json": changed({"annotations.1.image_id": 3}),
    "category_of_none.json": changed({"annotations.1.category_id": GONE}),
    "category_of_bool.json": changed({"annotations.0.category_id": True}),
    "category_of_unknown.json": changed({"annotations.1.category_id": 0}),
    "iscrowd_missing.json": changed({"annotations.1.iscrowd": GONE}),
    "iscrowd_string.json": changed({"annotations.1.iscrowd": "0"}),
    "iscrowd_null.json": changed({"annotations.1.iscrowd": None}),
    "iscrowd_two.json": changed({"annotations.1.iscrowd": 2}),
    "iscrowd_bool.json": changed({"annotations.1.iscrowd": False}),
    "crowd.json": changed({"annotations.1.iscrowd": 1}),
    "crowds_only.json": changed({"annotations.0.iscrowd": 1, "annotations.1.iscrowd": 1}),
    "area_missing.json": changed({"annotations.1.area": GONE}),
    "area_nan.json": changed({"annotations.1.area": nan}),
    "area_null.json": changed({"annotations.1.area": None}),
    "area_string.json": changed({"annotations.1.area": "100"}),
    "area_zero.json": changed({"annotations.1.area": 0}),
    "area_10_to_400.json": changed({"annotations.1.area": 10**400}),
    "segmentation_string.json": changed({"annotations.1.segmentation": "junk"}),
    "segmentation_number.json": changed({"annotations.1.segmentation": 5}),
    "segmentation_nan.json": changed({"annotations.1.segmentation": [[nan] * 6]}),
    "segmentation_empty.json": changed({"annotations.1.segmentation": []}),
    "segmentation_rle.json": changed(
        {"annotations.1.segmentation": {"size": [30, 40], "counts": [1200]}}
    ),
    "segmentation_nested.json": TEXT.replace(b"[[5", b"[" * 50_000 + b"5", 1).replace(
        b"15]]", b"15" + b"]" * 50_000, 1
    ),
    # boxes
    "box_missing.json": changed({"annotations.1.bbox": GONE}),
    "box_null.json": changed({"annotations.1.bbox": None}),
    "box_string.json": changed({"annotations.1.bbox": "5 5 10 10"}),
    "box_object.json": changed({"annotations.1.bbox": {"x": 5, "y": 5, "w": 10, "h": 10}}),
    "box_empty.json": changed({"annotations.1.bbox": []}),
    "box_of_three.json": changed({"annotations.1.bbox": [5, 5, 10]}),
    "box_of_five.json": changed({"annotations.1.bbox": [5, 5, 10, 10, 0.5]}),
    "box_of_points.json": changed({"annotations.1.bbox": [[5, 5], [15, 15]]}),
    "box_of_strings.json": changed({"annotations.1.bbox": ["5", "5", "10", "10"]}),
    "box_of_bools.json": changed({"annotations.1.bbox": [True, True, 10, 10]}),
    "box_nested.json": changed({"annotations.1.bbox": deep}),
    "box_nan.json": changed({"annotations.1.bbox": [nan, 5, 10, 10]}),
    "box_infinity.json": changed({"annotations.1.bbox": [5, 5, inf, 10]}),
    "box_10_to_400.json": changed({"annotations.1.bbox": [5, 5, 10**400, 10]}),
    "box_1e400.json": TEXT.replace(b"[5, 5, 10", b"[5, 5, 1e400", 1),
    "box_1e308.json": changed({"annotations.1.bbox": [5, 5, 1e308, 10]}),
    "box_of_infinite_area.json": changed(
        {"annotations.1.bbox": [5, 5, 1e308, 1e308], "annotations.1.area": GONE}
    ),
    "box_of_no_width.json": changed({"annotations.1.bbox": [5, 5, 0, 10]}),
    "box_of_negative_height.json": changed({"annotations.1.bbox": [5, 5, 10, -10]}),
    "box_below_a_pixel.json": changed({"annotations.1.bbox": [5, 5, 0.5, 0.5]}),
    "box_outside.json": changed({"annotations.1.bbox": [40, 5, 10, 10]}),
    "box_outside_left.json": changed({"annotations.1.bbox": [-10, 5, 10, 10]}),
    "box_beyond.json": changed({"annotations.1.bbox": [30, 20, 300, 300]}),
    "box_beyond_left.json": changed({"annotations.1.bbox": [-5, 5, 10, 10]}),
    "box_beyond_by_a_pixel.json": changed({"annotations.1.bbox": [-1, 20, 10, 11]}),
    "box_hardly_inside.json": changed({"annotations.1.bbox": [39.5, 5, 10, 10]}),
}
