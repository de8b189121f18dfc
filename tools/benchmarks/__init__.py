"""What tools/benchmark.py measures, and how. mmcv and mmdet are asked for only where needed."""
