import cv2
import numpy as np
import pytest
import torch
from dcndet.models.visualization import BoxVisualizer, draw_boxes, side_by_side
from dcndet.models.visualization.boxes import colour
from mmdet.structures import DetDataSample
from mmengine.structures import BaseDataElement, InstanceData

GREY = np.full((64, 128, 3), 90, np.uint8)
BOX = [40, 20, 80, 50]


def changed(drawn, image=GREY):
    """Which pixels were drawn on, as a mask of `image`'s size."""
    step = drawn.shape[0] // image.shape[0]
    return (drawn[step // 2 :: step, step // 2 :: step] != image).any(-1)


@pytest.mark.parametrize(("size", "expected"), [((64, 128), 640), ((700, 500), 700)])
def test_small_pictures_are_enlarged(size, expected):
    image = np.zeros((*size, 3), np.uint8)
    drawn = draw_boxes(image, [], [], None, ["a"])
    assert max(drawn.shape) == expected
    assert drawn.dtype == np.uint8
    assert drawn.shape[0] * size[1] == drawn.shape[1] * size[0]
    assert drawn.max() == 0


def test_large_pictures_are_reduced_if_asked():
    drawn = draw_boxes(np.zeros((100, 900, 3), np.uint8), [], [], None, [], max_side=450)
    assert drawn.shape == (50, 450, 3)


def test_a_box_is_drawn_in_its_place_and_its_inside_is_left_free():
    drawn = draw_boxes(GREY, [BOX], [0], [0.5], ["ace"])
    mask = changed(drawn)
    assert mask[21:49, 40].all()
    assert mask[21:49, 79].all()
    assert not mask[22:48, 42:78].any()
    assert mask[10:19, 42:48].any()  # the label, above it
    assert (drawn == colour(0, 1)).all(-1).any()


@pytest.mark.parametrize("box", [[40, 0, 80, 50], [100, 20, 128, 50], [0, 20, 30, 64]])
def test_labels_of_boxes_at_the_border_leave_the_object_free(box):
    mask = changed(draw_boxes(GREY, [box], [0], [0.5], ["a longer name"]))
    x1, y1, x2, y2 = box
    assert not mask[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].any()


def test_a_box_as_large_as_the_picture_has_its_label_inside():
    mask = changed(draw_boxes(GREY, [[0, 0, 128, 64]], [0], None, ["ace"]))
    assert mask[2:6, 2:12].any()
    assert not mask[10:60, 3:125].any()


def test_labels_do_not_cover_each_other():
    """Both boxes begin at one corner, and each label is as large as if it were alone."""
    boxes, names = [[40, 20, 80, 50], [40, 20, 82, 52]], ["ace", "ten"]
    together = draw_boxes(GREY, boxes, [0, 1], [0.9, 0.8], names)

    def ground(image, label):  # of a label: brighter and flatter than anything else
        blend = np.array(colour(label, 2)) * 216 / 255 + 90 * 39 / 255
        return (abs(image - blend) < 2).all(-1).sum()

    for label in (0, 1):
        alone = draw_boxes(GREY, [boxes[label]], [label], [0.9 - label / 10], names)
        assert ground(together, label) == pytest.approx(ground(alone, label), rel=0.05)


def test_the_better_box_lies_on_top():
    drawn = draw_boxes(GREY, [BOX, BOX], [0, 1], [0.9, 0.1], ["a", "b"])
    assert tuple(drawn[175, 400]) == colour(0, 2)


def test_classes_have_colours_of_their_own():
    for count in (2, 12, 80):
        assert len({colour(i, count) for i in range(count)}) == count


def test_side_by_side_titles_each_picture():
    left, right = np.full((60, 80, 3), 10, np.uint8), np.full((60, 40, 3), 20, np.uint8)
    row = side_by_side({"annotated": left, "found": right})
    top = row.shape[0] - 60
    np.testing.assert_array_equal(row[top:, :80], left)
    np.testing.assert_array_equal(row[top:, -40:], right)
    assert (row[:top, :80] < 128).any()
    assert (row[:top, -40:] < 128).any()


def test_the_visualizer_shows_what_a_classifier_says(tmp_path):
    sample = BaseDataElement(metainfo={"gt_label": 1})
    visualizer = BoxVisualizer()
    visualizer.dataset_meta = {"classes": ("ace", "ten")}
    image = np.full((64, 64, 3), (200, 90, 10), np.uint8)
    around = [[0, 0, 63, 63]]
    annotated = draw_boxes(image, around, [1], None, ("ace", "ten"))
    found = draw_boxes(image, around, [0], [0.75], ("ace", "ten"))
    for panels in ([annotated], [annotated, found]):
        visualizer.add_datasample("a", image, sample, out_file=str(tmp_path / "a.png"))
        drawn = cv2.imread(str(tmp_path / "a.png"))[-640:, ..., ::-1]
        np.testing.assert_array_equal(drawn[:, :640], panels[0])
        np.testing.assert_array_equal(drawn[:, -640:], panels[-1])
        sample.pred_label, sample.pred_scores = 0, torch.tensor([0.75, 0.25])


def test_the_visualizer_shows_annotated_beside_found(tmp_path):
    """Without what scores too little, and in the colours of the file."""
    sample = DetDataSample()
    sample.gt_instances = InstanceData(bboxes=torch.tensor([BOX]), labels=torch.tensor([0]))
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor([[8.0, 8, 30, 30], [90, 20, 120, 50]]),
        labels=torch.tensor([1, 1]),
        scores=torch.tensor([0.5, 0.4]),
    )
    visualizer = BoxVisualizer()
    visualizer.dataset_meta = {"classes": ("ace", "ten")}
    image = np.full((64, 128, 3), (200, 90, 10), np.uint8)
    visualizer.add_datasample("a", image, sample, out_file=str(tmp_path / "a.png"))
    both = cv2.imread(str(tmp_path / "a.png"))[..., ::-1]
    visualizer.add_datasample(
        "a", image, sample, out_file=str(tmp_path / "b.png"), pred_score_thr=0.5
    )
    strict = cv2.imread(str(tmp_path / "b.png"))[..., ::-1]
    top = both.shape[0] - 320
    boxes = sample.pred_instances.bboxes
    left = draw_boxes(image, [BOX], [0], None, ("ace", "ten"))
    for picture, count in ((both, 2), (strict, 1)):
        np.testing.assert_array_equal(picture[top:, :640], left)
        right = draw_boxes(image, boxes[:count], [1] * count, [0.5, 0.4][:count], ("ace", "ten"))
        np.testing.assert_array_equal(picture[top:, -640:], right)
    assert (both[:top] != strict[:top]).any()  # the threshold is in the title
