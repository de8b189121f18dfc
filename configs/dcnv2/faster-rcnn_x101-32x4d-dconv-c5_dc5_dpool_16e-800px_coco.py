# Written by tools/make_rows.py.
_base_ = [
    "../_base_/models/faster-rcnn_r50_dc5.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_16e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type="DeformResNeXt",
        depth=101,
        groups=32,
        base_width=4,
        init_cfg=dict(checkpoint="open-mmlab://resnext101_32x4d"),
        style="pytorch",
        deform=dict(stages=(False, False, False, True), conv="dconv"),
    ),
    roi_head=dict(bbox_roi_extractor=dict(pool="dpool")),
)
