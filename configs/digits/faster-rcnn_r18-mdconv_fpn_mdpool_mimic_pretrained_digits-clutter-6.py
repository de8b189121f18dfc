# The whole of DCNv2, as in the quickstart.
_base_ = "./faster-rcnn_r18_fpn_pretrained_digits-clutter-6.py"

model = dict(
    backbone=dict(deform=dict(layers=12)),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=256))),
    mimic=dict(num_rois=2, crop_size=96),
)
