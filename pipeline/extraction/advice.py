"""What more stage one could buy for its time, said by --dry-run: augmented passes, or a dense view.

Measured on both splits of the flowers: docs/performance.md.
"""

from pipeline.backbones.backbone import map_shape
from pipeline.console import counted
from pipeline.extraction.plan import Plan

DENSE = 9 / 7  # of the input size: one with a map of 9 x 9 in place of 7 x 7, the one that was measured
FEW = 30  # images a class; measured with 10 and 64


def advice(plan: Plan) -> list[str]:
    """Lines on what further views of the training images cost, and brought on the flowers."""
    config, base = plan.config, plan.manifest.base
    images = len({image.key for image in plan.images.images if image.split == "train"})
    few = images < FEW * len(plan.images.classes)
    brought = (
        "each up to 4 brought something on flowers with 10 images a class"
        if few
        else "the first brought a point, further ones nothing, on flowers with 64 images a class"
    )
    lines = [f"an augmented pass is {counted(images, 'view')} to compute; {brought}"]
    if map_shape(config.backbone, base.input_size) == base.row_shape and not config.dense:
        size = round(DENSE * base.input_size)
        cost = (size / base.input_size) ** 2
        gain = "as much as its time in passes, somewhat more from 4 passes on" if few else "less than one pass"
        lines.append(f"--dense {size} takes as long as {cost:.2f} passes, and there brought {gain}")
    return lines
