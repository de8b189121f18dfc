# As ../custom/faster-rcnn_lite0_fpn.py is for this set.
_base_ = [
    "../_base_/models/faster-rcnn_lite0_fpn.py",
    "../_base_/datasets/cards.py",
    "../_base_/schedules/schedule_6e_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(
    roi_head=dict(bbox_roi_extractor=dict(sampling_ratio=2), bbox_head=dict(num_classes=6)),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=500),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
train_cfg = dict(max_epochs=8, val_interval=2)
default_hooks = dict(logger=dict(interval=10))
