"""The whole way on real handwriting: scikit-learn's digits as image folders, extract, train, export, predict."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PER_CLASS = {"train": 24, "valid": 8, "test": 8}
FOLDER = Path("demo")


def write_images(folder: Path) -> None:
    """Write the first digits of every class, 8 x 8 pixels enlarged to 64 x 64, into folder/split/digit/."""
    digits = load_digits()
    splits = [split for split, count in PER_CLASS.items() for _ in range(count)]
    for label in range(10):
        for number, (split, place) in enumerate(zip(splits, np.flatnonzero(digits.target == label), strict=False)):
            path = folder / split / str(label) / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = (digits.images[place] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(path)


def headgraft(*arguments: str) -> None:
    """Run one command of the program, shown as it would be typed."""
    print(f"\n$ headgraft {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "cli.py", *arguments], check=True)


def main() -> None:
    """Make the images and go the whole way."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    images, cache, run, model = (str(FOLDER / name) for name in ("digits", "features", "run", "model.safetensors"))
    write_images(Path(images))
    headgraft("weights", "fetch", "vgg16")
    headgraft("extract", images, "--cache", cache, "--passes", "1", "--image-size", "96")
    headgraft("train-head", "--cache", cache, "--run", run)
    headgraft("evaluate", run)
    headgraft("export", run, model)
    headgraft("predict", model, *(f"{images}/test/{digit}/032.png" for digit in (3, 5, 8)), "--top-k", "3")
    print(f"\nEverything is in {FOLDER}/; the model is {model}.")


if __name__ == "__main__":
    main()
