# Images of other sizes, to train on and to test on: the shorter side from 400 to 1400 pixels.
title = "COCO: the shorter side of the images"
base = "../dcnv2/faster-rcnn_r50_dc5_16e-1000px_coco.py"


def _row(name, side, **settings):
    scale = (round(side * 5 / 3), side)
    places = dict(train="2", val="1", test="1")  # of the step that resizes
    keys = {f"{k}_dataloader.dataset.pipeline.{v}.scale": scale for k, v in places.items()}
    return dict(name=f"{name}, {side} px", **settings, **keys)


rows = [
    _row(name, side, **settings)
    for side in range(400, 1401, 200)
    for name, settings in (
        ("regular", dict(layers=0, pool="align")),
        ("mdconv c3-c5 + mdpool", dict(layers=13, conv="mdconv", pool="mdpool")),
    )
]
baseline = dict(name="regular, 1000 px")
seeds = [0, 1, 2]
