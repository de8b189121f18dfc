# Written by tools/make_rows.py.
_base_ = [
    "../_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_instance_1000px.py",
    "../_base_/schedules/schedule_16e.py",
    "../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        norm_cfg=dict(requires_grad=False),
        type="DeformResNeXt",
        depth=101,
        groups=64,
        base_width=4,
        init_cfg=dict(checkpoint="open-mmlab://resnext101_64x4d"),
        deform=dict(stages=(False, False, False, True), conv="dconv"),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(pool="dpool", deform=dict(per_level=True)),
        mask_roi_extractor=dict(pool="dpool", deform=dict(per_level=True)),
    ),
)
