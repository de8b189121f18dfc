# Among fragments of other digits: tools/make_digits.py --clutter 2.
_base_ = "./faster-rcnn_r18_fpn_pretrained_digits.py"

data_root = "data/digits_clutter-2/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/val.json")
test_evaluator = val_evaluator
