_base_ = [
    "../_base_/models/scaled-cnn.py",
    "../_base_/datasets/scaled_mnist.py",
    "../_base_/schedules/schedule_10e_sgd.py",
    "../_base_/default_runtime.py",
]
