# ResNet-50-DW, a quarter as wide. Layers of dcn.LAYERS replace its depthwise convolutions:
# --cfg-options model.backbone.deform.layers=3 model.backbone.deform.conv=dk_local
_base_ = "./scaled-cnn_4e_scaled-mnist-6k.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="ResNet50DW",
        in_channels=1,
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        # As in torch: mmdet's own would reach regular convolutions, but not all that replace them.
        init_cfg=dict(type="Constant", val=1, layer=["_BatchNorm"]),
    ),
    in_channels=512,
)
