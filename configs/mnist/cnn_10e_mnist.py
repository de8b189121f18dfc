# The article's plain network, trained on MNIST as it is.
_base_ = [
    "../_base_/models/cnn.py",
    "../_base_/datasets/mnist.py",
    "../_base_/schedules/schedule_10e_adam.py",
    "../_base_/default_runtime.py",
]
