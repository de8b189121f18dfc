# A Mask R-CNN with deformable pooling and mimicking, as small.
_base_ = "./tiny.py"

train_pipeline, test_pipeline = _base_.pipeline, _base_.test_pipeline
train_pipeline[1].update(with_mask=True)
test_pipeline[2].update(with_mask=True)
train_dataloader = dict(dataset=dict(type="DetectionDataset", pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type="DetectionDataset", pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type="DetectionMetric", metric=["bbox", "segm"])
test_evaluator = val_evaluator
custom_hooks = [dict(type="OffsetStatisticsHook", interval=2)]
model = dict(
    type="MimicTwoStageDetector",
    data_preprocessor=dict(pad_mask=True),
    roi_head=dict(
        bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=8)),
        mask_roi_extractor=dict(
            type="DeformRoIExtractor",
            pool="mdpool",
            output_size=4,
            out_channels=64,
            featmap_strides=[16],
            deform=dict(fc_channels=8),
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=1,
            in_channels=64,
            conv_out_channels=8,
            num_classes=1,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    mimic=dict(num_rois=2, crop_size=64, with_gt=True),
    train_cfg=dict(rcnn=dict(mask_size=8)),
    test_cfg=dict(rcnn=dict(mask_thr_binary=0.5, score_thr=0.0)),
)
