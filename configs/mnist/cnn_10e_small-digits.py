# The article's plain network on scikit-learn's digits: no download, minutes.
_base_ = "./cnn_10e_mnist.py"

train_dataloader = dict(dataset=dict(type="SmallDigits"))
val_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                type="SmallDigits",
                train=False,
                group="regular",
                test_mode=True,
                pipeline=[{{_base_.load}}, {{_base_.gray}}, {{_base_.pack}}],
            ),
            dict(
                type="SmallDigits",
                train=False,
                group="zoomed",
                test_mode=True,
                pipeline=[{{_base_.same_zoom}}, {{_base_.pack}}],
            ),
        ]
    )
)
test_dataloader = val_dataloader
