_base_ = "./mask-rcnn_flash-internimage-t_fpn_ms-crop-3x_coco.py"

model = dict(
    backbone=dict(
        arch="B",
        init_cfg=dict(
            checkpoint="https://huggingface.co/OpenGVLab/DCNv4/resolve/main/flash_intern_image_b_1k_224.pth"
        ),
    ),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
# The release's learning rates also fall by a factor of 0.9 from block to block, from the output to
# the input, and its offsets learn at a hundredth. Here all of the network learns at one rate.
optim_wrapper = dict(optimizer=dict(lr=2e-4))
auto_scale_lr = dict(base_batch_size=64)
