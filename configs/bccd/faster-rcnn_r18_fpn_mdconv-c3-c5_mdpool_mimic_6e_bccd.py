_base_ = "./faster-rcnn_r18_fpn_mdconv-c3-c5_mdpool_6e_bccd.py"

# Sized for a CPU: 4 RoIs weigh as the paper's 32 do, in crops of less than half the size.
model = dict(mimic=dict(num_rois=4, crop_size=96, loss_mimic=dict(loss_weight=0.8)))
