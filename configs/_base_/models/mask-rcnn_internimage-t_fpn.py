_base_ = "./mask-rcnn_r50_fpn.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="InternImage",
        arch="T",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth",
        ),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
