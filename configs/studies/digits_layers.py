# How many deformable layers, plain or modulated, on the warped digits of the quickstart.
title = "Digits: deformable layers"
base = "../quickstart/faster-rcnn_r18_fpn_digits.py"
axes = dict(layers=[0, 3, 6, 9, 12], conv=["dconv", "mdconv"])
seeds = [0, 1, 2]
