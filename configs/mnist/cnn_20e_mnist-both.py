# One network for both: trained on digits of which every other one, by chance, is zoomed.
_base_ = "./cnn_10e_mnist.py"

train_dataloader = dict(
    dataset=dict(
        pipeline=[
            dict(type="RandomApply", transforms=[{{_base_.zoom}}], prob=0.5),
            {{_base_.pack}},
        ]
    )
)
train_cfg = dict(max_epochs=20)
# A float is a share of the run.
param_scheduler = [
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=1.0, convert_to_iter_based=True)
]
