_base_ = "./mask-rcnn_internimage-t_fpn_ms-crop-3x_coco.py"

model = dict(
    backbone=dict(
        arch="B",
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_b_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
