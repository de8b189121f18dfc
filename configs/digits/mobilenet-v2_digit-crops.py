# MobileNetV2, half as wide; as resnet50dw_digit-crops.py.
_base_ = "./resnet18_digit-crops.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="DeformMobileNetV2",
        widen_factor=0.5,
        out_indices=(6,),
    ),
    in_channels=160,
)
