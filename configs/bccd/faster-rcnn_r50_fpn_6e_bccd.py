_base_ = [
    "../_base_/models/faster-rcnn_r50_fpn.py",
    "../_base_/datasets/bccd.py",
    "../_base_/schedules/schedule_6e_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(
    # From scratch: every layer trains, and so do the normalisation statistics.
    backbone=dict(frozen_stages=-1, norm_eval=False, init_cfg=None),
    # Half of the usual channels, a quarter of the RoIs: sized for a CPU.
    neck=dict(out_channels=128),
    rpn_head=dict(in_channels=128, feat_channels=128),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=128, sampling_ratio=2),
        bbox_head=dict(in_channels=128, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=1000, max_per_img=500),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)
default_hooks = dict(logger=dict(interval=10))
