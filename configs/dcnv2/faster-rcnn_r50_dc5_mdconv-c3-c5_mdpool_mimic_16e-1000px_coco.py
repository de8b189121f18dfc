_base_ = "./faster-rcnn_r50_dc5_mdconv-c3-c5_mdpool_16e-1000px_coco.py"

model = dict(mimic=dict(on="foreground"))
