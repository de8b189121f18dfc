"""What the tests of several tools run on."""

import json

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder)
    return folder


def write_squares(folder):
    """Six images of one bright square each, in COCO format."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(6):
        image = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, size = (int(v) for v in rng.integers([4, 4, 16], [30, 30, 30]))
        image[y : y + size, x : x + size] = 220
        cv2.imwrite(str(folder / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "width": 64, "height": 64})
        annotations.append(
            {"id": i + 1, "image_id": i, "category_id": 1, "iscrowd": 0, "area": size * size}
            | {"bbox": [x, y, size, size]}
            | {"segmentation": [[x, y, x + size, y, x + size, y + size, x, y + size]]}
        )
    categories = [{"id": 1, "name": "square"}]
    (folder / "annotations.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
