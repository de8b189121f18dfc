# Written by tools/make_rows.py.
_base_ = [
    "../_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_detection_1000px.py",
    "../_base_/schedules/schedule_16e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        norm_cfg=dict(requires_grad=False),
        deform=dict(stages=(False, True, True, True), conv="dconv"),
    ),
    roi_head=dict(bbox_roi_extractor=dict(pool="dpool", deform=dict(per_level=True))),
)
