import pytest
from dcndet.data.errors import DataError
from dcndet.data.image_folder import ImageFolder
from PIL import Image


@pytest.fixture
def root(tmp_path):
    for name, images in {"cat": ["b.png", "a.jpg"], "ant": ["c.png"]}.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for image in images:
            Image.new("RGB", (4, 4)).save(tmp_path / "train" / name / image)
        (tmp_path / "train" / name / "notes.txt").write_text("")
    return tmp_path


def read(root, **settings):
    return ImageFolder(data_root=str(root), data_prefix=dict(img="train"), **settings)


def contents(dataset):
    infos = map(dataset.get_data_info, range(len(dataset)))
    return [(info["img_path"].split("train/")[1], info["gt_label"]) for info in infos]


def test_labels_follow_the_folders(root):
    dataset = read(root)
    assert dataset.metainfo["classes"] == ("ant", "cat")
    assert contents(dataset) == [("ant/c.png", 0), ("cat/a.jpg", 1), ("cat/b.png", 1)]


def test_labels_follow_the_classes_of_the_config(root):
    dataset = read(root, metainfo=dict(classes=("cat", "ant")))
    assert sorted(contents(dataset)) == [("ant/c.png", 1), ("cat/a.jpg", 0), ("cat/b.png", 0)]


@pytest.mark.parametrize("classes", [("ant",), ("ant", "cat", "dog"), ("ant", "dog")])
def test_other_classes_are_refused(root, classes):
    with pytest.raises(DataError, match=r"classes of the config \(ant.* are not .* \(ant, cat\)"):
        read(root, metainfo=dict(classes=classes))


def test_missing_and_empty_folders_are_refused(root):
    with pytest.raises(DataError, match=r"no folder of images per class in .*val"):
        ImageFolder(data_root=str(root), data_prefix=dict(img="val"))
    (root / "train" / "dog").mkdir()
    with pytest.raises(DataError, match="dog"):
        read(root)


def test_the_pipeline_packs_the_label(root):
    keys = ("img_path", "gt_label")
    pipeline = [
        dict(type="mmdet.LoadImageFromFile"),
        dict(type="mmdet.PackDetInputs", meta_keys=keys),
    ]
    sample = read(root, pipeline=pipeline)[2]
    assert sample["inputs"].shape == (3, 4, 4)
    assert sample["data_samples"].gt_label == 1
