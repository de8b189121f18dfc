# The whole of DCNv2, sized to train from scratch in minutes on two cores.
_base_ = "./faster-rcnn_r18_fpn_digits.py"

model = dict(
    backbone=dict(deform=dict(layers=12)),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=256))),
    # 4 RoIs weigh as the paper's 32 do, in crops of less than half the size.
    mimic=dict(num_rois=4, crop_size=96, loss_mimic=dict(loss_weight=0.8)),
)
