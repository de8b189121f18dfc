"""What tools/test.py does beyond mmengine's ``Runner.test``."""

import os
from pathlib import Path

from mmdet.evaluation import CocoMetric

from .errors import EngineError
from .optim import mixed_precision
from .runner import Runner


def evaluate(cfg, out=None, show_dir=None, show_score_thr=0.3, amp=None):
    """Test ``cfg.load_from``: print the COCO table and each class's AP, or the accuracy.

    Args:
        cfg (Config): What to run; it is changed.
        out (str, optional): File for the detections, as COCO result JSON. Masks go to a file
            beside it, ``NAME.segm.json``.
        show_dir (str, optional): Folder for the test images, drawn as annotated and as found.
        show_score_thr (float): Detections with a lower score are not drawn.
        amp (torch.dtype, optional): The type that autocast computes in.

    Returns:
        dict: The metrics.

    Raises:
        EngineError: ``out`` is given and ``cfg.test_evaluator`` has no CocoMetric, or ``show_dir``
            and the model is a classifier.
    """
    cfg.resume = False
    if show_dir is not None and cfg.model.type == "ImageClassifier":
        raise EngineError("--show-dir: pictures are of detections, and this model is a classifier")
    if show_dir is not None:
        cfg.default_hooks.visualization = {
            "type": "DetVisualizationHook",
            **cfg.default_hooks.get("visualization", {}),
            "draw": True,
            "score_thr": show_score_thr,
            "test_out_dir": os.path.abspath(show_dir),  # a relative one is put into the work dir
        }
        cfg.visualizer.type = "BoxVisualizer"
    runner = Runner.from_cfg(cfg)
    if amp is not None:
        model, step = runner.model, runner.model.test_step

        def test_step(data):
            with mixed_precision(model, amp):
                return step(data)

        model.test_step = test_step
    coco = [m for m in runner.test_evaluator.metrics if isinstance(m, CocoMetric)]
    for metric in coco:
        metric.classwise = True
    if out is None:
        return runner.test()
    if not coco:
        raise EngineError("--out: test_evaluator has no CocoMetric to write it")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    coco[0].outfile_prefix = out
    metrics = runner.test()
    if runner.rank == 0:
        os.replace(f"{out}.bbox.json", out)
        if (masks := Path(f"{out}.segm.json")).exists():
            os.replace(masks, Path(out).with_suffix(".segm.json"))
    return metrics
