# Written by tools/make_rows.py.
_base_ = [
    "../_base_/models/faster-rcnn_r50_dc5.py",
    "../_base_/datasets/coco_detection.py",
    "../_base_/schedules/schedule_16e.py",
    "../_base_/default_runtime.py",
]

model = dict(backbone=dict(deform=dict(stages=(False, False, False, True), conv="dconv")))
