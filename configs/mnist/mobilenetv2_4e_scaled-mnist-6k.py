# MobileNetV2, half as wide; as resnet50dw_4e_scaled-mnist-6k.py.
_base_ = "./scaled-cnn_4e_scaled-mnist-6k.py"

model = dict(
    data_preprocessor=dict(mean=[33.3] * 3, std=[78.6] * 3),
    backbone=dict(
        _delete_=True,
        type="DeformMobileNetV2",
        widen_factor=0.5,
        out_indices=(6,),
        # As in torch: mmdet's own would reach regular convolutions, but not all that replace them.
        init_cfg=dict(type="Constant", val=1, layer=["_BatchNorm"]),
    ),
    in_channels=160,
)
pipeline = [{{_base_.zoom}}, dict(type="ToChannels", channels=3), {{_base_.pack}}]
train_dataloader = dict(dataset=dict(pipeline=pipeline))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
