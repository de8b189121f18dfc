_base_ = "./faster-rcnn_lite0-mdconv_fpn_mdpool.py"

# Sized for a CPU: fewer RoIs, in smaller crops.
model = dict(mimic=dict(num_rois=4, crop_size=96))
