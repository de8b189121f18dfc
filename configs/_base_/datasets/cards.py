# Photographs of playing cards, in Pascal VOC's folders: tools/convert_voc.py data/cards.
_base_ = "./custom_detection.py"

data_root = "data/cards/"
metainfo = dict(classes=("ace", "jack", "king", "nine", "queen", "ten"))

train_pipeline, test_pipeline = _base_.train_pipeline, _base_.test_pipeline
train_pipeline[2].update(scale=(384, 288))
train_pipeline[3].update(prob=0.0)  # a mirrored card is not a card
test_pipeline[1].update(scale=(384, 288))

train_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img="JPEGImages/"),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        metainfo=metainfo,
        data_root=data_root,
        ann_file="annotations/test.json",
        data_prefix=dict(img="JPEGImages/"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(type="DetectionMetric", ann_file=data_root + "annotations/test.json")
test_evaluator = val_evaluator
