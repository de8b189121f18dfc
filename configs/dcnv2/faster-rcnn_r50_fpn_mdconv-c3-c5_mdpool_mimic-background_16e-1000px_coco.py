_base_ = "./faster-rcnn_r50_fpn_mdconv-c3-c5_mdpool_16e-1000px_coco.py"

model = dict(mimic=dict(on="background"))
