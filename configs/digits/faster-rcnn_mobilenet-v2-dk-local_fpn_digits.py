# MobileNetV2, half as wide, with local deformable kernels in its last three depthwise convolutions.
_base_ = "../quickstart/faster-rcnn_r18_fpn_digits.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="DeformMobileNetV2",
        widen_factor=0.5,
        out_indices=(1, 2, 4, 6),
        deform=dict(layers=3, conv="dk_local"),
    ),
    neck=dict(in_channels=[16, 16, 48, 160]),
)
