_base_ = "./mask-rcnn_flash-internimage-t_fpn_1x_coco.py"

model = dict(
    backbone=dict(
        arch="B",
        drop_path_rate=0.3,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
