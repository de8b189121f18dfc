# The network of the article on ConvOffset2D, for images of 28×28.
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(type="ImgDataPreprocessor", mean=[0.0], std=[255.0]),
    backbone=dict(
        type="SmallCNN", channels=(32, 64, 128, 128), strides=(1, 2, 1, 2), norm_first=False
    ),
    in_channels=128,
    num_classes=10,
)
