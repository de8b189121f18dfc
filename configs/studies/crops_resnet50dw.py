# Single digits: other layers in place of the last three depthwise convolutions.
title = "Single digits: ResNet-50-DW"
base = "../digits/resnet50dw_digit-crops.py"
rows = [dict(layers=0)]
rows += [dict(layers=3, conv=conv) for conv in ("mdconv", "dk_local", "dk_mdconv", "condconv")]
seeds = [0, 1, 2]
options = {"train_cfg.max_epochs": 2}
