_base_ = "./faster-rcnn_r50-mdconv-c3-c5_fpn_mdpool_6e_bccd.py"

# Sized for a CPU: fewer RoIs, in smaller crops.
model = dict(mimic=dict(num_rois=4, crop_size=96))
