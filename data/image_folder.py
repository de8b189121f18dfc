"""Classification datasets: one folder of images per class."""

from mmdet.registry import DATASETS
from mmengine.dataset import BaseDataset
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from .errors import DataError


@DATASETS.register_module()
class ImageFolder(BaseDataset):
    """Images in ``data_root/data_prefix['img']/<class>/``, as torchvision's ImageFolder has them.

    Takes BaseDataset's arguments. ``metainfo['classes']`` names the folders in the order of the
    labels; without it they are all folders in alphabetical order. Each sample has ``img_path`` and
    ``gt_label``.

    Raises:
        DataError: the folder is missing, its folders are not the classes, or one has no image.
    """

    def load_data_list(self):
        folder = self.data_prefix["img"]
        try:
            found, _ = find_classes(folder)
        except OSError as error:
            raise DataError(f"no folder of images per class in {folder}: {error}") from error
        classes = list(self.metainfo.get("classes", found))
        if sorted(classes) != found:
            raise DataError(
                f"the classes of the config ({', '.join(classes)}) are not the folders in {folder} "
                f"({', '.join(found)})"
            )
        self._metainfo["classes"] = tuple(classes)
        labels = {name: label for label, name in enumerate(classes)}
        try:
            samples = make_dataset(folder, labels, IMG_EXTENSIONS)
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {error}") from error
        return [{"img_path": path, "gt_label": label} for path, label in samples]
