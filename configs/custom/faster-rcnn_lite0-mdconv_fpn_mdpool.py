_base_ = "./faster-rcnn_lite0_fpn.py"

# The six convolutions that a laptop affords: all of stride 32 and the last of stride 16.
model = dict(
    backbone=dict(deform=dict(layers=6)),
    roi_head=dict(bbox_roi_extractor=dict(pool="mdpool", deform=dict(fc_channels=256))),
)
