data_root = "data/digit-crops/"
metainfo = dict(classes=tuple("0123456789"))

pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="PackDetInputs", meta_keys=("img_path", "ori_shape", "img_shape", "gt_label")),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ImageFolder",
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img="train"),
        pipeline=pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="ImageFolder",
        metainfo=metainfo,
        data_root=data_root,
        data_prefix=dict(img="val"),
        test_mode=True,
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="Accuracy")
test_evaluator = val_evaluator
