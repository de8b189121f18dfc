_base_ = "./mask-rcnn_internimage-t_fpn.py"

model = dict(
    backbone=dict(
        type="FlashInternImage",
        with_cp=True,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_t_1k_224.pth"
        ),
    ),
    neck=dict(norm_cfg=dict(type="LN2d")),  # for stability, as the release says, not for accuracy
)
