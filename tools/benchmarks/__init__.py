"""What tools/benchmark.py measures, and how. Needs torch and torchvision; mmcv and mmdet join in."""
