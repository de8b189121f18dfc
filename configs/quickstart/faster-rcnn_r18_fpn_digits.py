# The regular network, sized to train from scratch in minutes on two cores.
_base_ = [
    "../_base_/models/faster-rcnn_r18_fpn.py",
    "../_base_/datasets/digits.py",
    "../_base_/schedules/schedule_6e_adamw.py",
    "../_base_/default_runtime.py",
]

model = dict(
    # From scratch: every layer trains, and so do the normalisation statistics.
    backbone=dict(
        base_channels=32,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[6]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(
            out_channels=64,
            sampling_ratio=2,
            finest_scale=24,
        ),
        bbox_head=dict(in_channels=64, fc_out_channels=512, num_classes=10),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64, pos_fraction=0.5)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100)),
)
train_cfg = dict(max_epochs=4, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
auto_scale_lr = dict(base_batch_size=8)
default_hooks = dict(logger=dict(interval=25), visualization=dict(interval=10))
