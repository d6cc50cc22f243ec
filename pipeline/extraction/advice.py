"""What more augmented passes cost, and what they brought on the flowers (docs/performance.md): said by --dry-run."""

from pipeline.console import counted
from pipeline.extraction.plan import ExtractionPlan

FEW = 30  # images a class; measured with 10 and 64


def advice(plan: ExtractionPlan) -> str:
    """One line."""
    images = len({image.key for image in plan.images.images if image.split == "train"})
    brought = (
        "each up to 4 brought something on flowers with 10 images a class"
        if images < FEW * len(plan.images.classes)
        else "the first brought a point, further ones nothing, on flowers with 64 images a class"
    )
    return f"an augmented pass is {counted(images, 'view')} to compute; {brought}"
