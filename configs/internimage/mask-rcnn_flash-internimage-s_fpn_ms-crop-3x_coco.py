_base_ = "./mask-rcnn_flash-internimage-t_fpn_ms-crop-3x_coco.py"

model = dict(
    backbone=dict(
        arch="S",
        drop_path_rate=0.4,
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_s_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
