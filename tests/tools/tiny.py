# The smallest run of tools/train.py and tools/test.py, on six images in the current folder.
default_scope = "mmdet"
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(64, 64)),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
dataset = dict(
    type="CocoDataset",
    ann_file="annotations.json",
    data_prefix=dict(img=""),
    metainfo=dict(classes=("square",)),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, pipeline=pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", metric="bbox", ann_file="annotations.json")
test_evaluator = val_evaluator
train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=2, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.02, momentum=0.9))
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=4)]
auto_scale_lr = dict(enable=False, base_batch_size=4)
default_hooks = dict(
    logger=dict(type="LoggerHook", interval=1),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1, save_best="auto"),
)
visualizer = dict(
    type="BoxVisualizer",
    vis_backends=[dict(type="LocalVisBackend"), dict(type="TensorboardVisBackend")],
)
randomness = dict(seed=0)
model = dict(
    type="FasterRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[127.5] * 3,
        std=[64.0] * 3,
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="ResNet",
        depth=18,
        base_channels=16,
        num_stages=3,
        out_indices=(2,),
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
    ),
    rpn_head=dict(
        type="RPNHead",
        in_channels=64,
        feat_channels=16,
        anchor_generator=dict(type="AnchorGenerator", scales=[1, 2], ratios=[1.0], strides=[16]),
        loss_bbox=dict(type="L1Loss"),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="DeformRoIExtractor",
            pool="align",
            output_size=3,
            out_channels=64,
            featmap_strides=[16],
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=64,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=1,
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
            sampler=dict(type="RandomSampler", num=32, pos_fraction=0.5, add_gt_as_proposals=False),
            allowed_border=-1,
            pos_weight=-1,
        ),
        rpn_proposal=dict(nms_pre=100, max_per_img=20, nms=dict(type="nms", iou_threshold=0.7)),
        rcnn=dict(
            assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type="RandomSampler", num=16, pos_fraction=0.25, add_gt_as_proposals=True),
            pos_weight=-1,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=20, nms=dict(type="nms", iou_threshold=0.7)),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10),
    ),
)
