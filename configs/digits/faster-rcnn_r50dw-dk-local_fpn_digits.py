# ResNet-50-DW, a quarter as wide, with local deformable kernels in conv5.
_base_ = "../quickstart/faster-rcnn_r18_fpn_digits.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet50DW",
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        deform=dict(layers=3, conv="dk_local"),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
