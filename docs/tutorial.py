# %% [markdown]
# # From a folder of photographs to a served model
#
# This notebook trains a classifier on a frozen VGG16, checks it and its labels, and serves it.
# Its source is `docs/tutorial.py`; `make notebook` runs it. [python.md](python.md) and [api.md](api.md) explain
# the functions. The set is small, so that everything takes few minutes: the figures are examples, not results.

# %%
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import requests
from cleanlab.filter import find_label_issues
from PIL import Image
from sklearn.datasets import load_sample_image
from sklearn.metrics import ConfusionMatrixDisplay

import pipeline as hg

plt.rcParams["figure.dpi"] = 64

# %% [markdown]
# ## Images
#
# `HEADGRAFT_FLOWERS` is a folder with `train/`, `valid/` and `test/`, and a folder of images for each class. The nine
# largest classes are copied; the tenth is kept for later, as pictures of an unknown class.

# %%
source = Path(os.environ["HEADGRAFT_FLOWERS"]).resolve()
os.chdir(tempfile.mkdtemp(prefix="tutorial-"))
file = source / "cat_to_name.json"
names = json.loads(file.read_text("utf-8")) if file.exists() else {}
counts = {folder.name: len(list(folder.iterdir())) for folder in sorted((source / "train").iterdir())}
*classes, left_out = sorted(counts, key=lambda name: -counts[name])[:10]

# %%
for split, most in {"train": 24, "valid": 12, "test": 8}.items():
    for name in classes:
        folder = Path("images", split, names.get(name, name))
        folder.mkdir(parents=True)
        for path in sorted((source / split / name).iterdir())[:most]:
            shutil.copy(path, folder)

# %% [markdown]
# ## Features
#
# The backbone sees every image once, and one augmented view of each training image; the features stay in the cache.

# %%
cache = Path("features")
hg.extract(Path("images"), cache, set="flowers", passes=1)

# %% [markdown]
# ## One head
#
# A head is trained from the cache in seconds. A result shows what its command says; its fields can be unfolded.

# %%
run = hg.train_head(cache, Path("runs/head"), set="flowers")
run

# %%
epochs = [one.epoch for one in run.epochs]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(epochs, [one.train_loss for one in run.epochs], label="training")
left.plot(epochs, [one.valid_loss for one in run.epochs], label="validation")
left.set(xlabel="epoch", ylabel="loss", yscale="log")
left.legend()
right.plot(epochs, [one.valid_accuracy for one in run.epochs])
right.set(xlabel="epoch", ylabel="validation accuracy")
plt.show()

# %% [markdown]
# ## A sweep
#
# A sweep tries heads with other settings, retrains the best one and the default one with several seeds, and keeps the
# better one.

# %%
hg.sweep(cache, Path("runs/sweep"), set="flowers", heads=8, epochs=20, seeds=2)

# %% [markdown]
# ## Cross-validation
#
# Every training and validation image is predicted by a head that did not see it.

# %%
cv = hg.cv(cache, set="flowers", epochs=20)
cv

# %%
found = np.load(cv.predictions)  # arrays: paths, labels, classes, log_probs, folds, groups
labels, predicted = (found["classes"][places] for places in (found["labels"], found["log_probs"].argmax(1)))
figure, axes = plt.subplots(figsize=(6, 5.5), layout="constrained")
ConfusionMatrixDisplay.from_predictions(labels, predicted, ax=axes, xticks_rotation="vertical", colorbar=False)
plt.show()

# %% [markdown]
# ## Label issues
#
# Six training images get the label of another class, in a CSV of the same images. Their features are in the cache
# already: nothing is computed again.

# %%
train = hg.load_features(cache, "train", set="flowers", regions="pool")
wrong = train.y.copy()
planted = np.random.default_rng(0).choice(len(wrong), 6, replace=False)
wrong[planted] = (wrong[planted] + 1) % len(train.classes)
rows = [f"images/{path},{train.classes[place]},train" for path, place in zip(train.paths, wrong, strict=True)]
Path("wrong.csv").write_text("\n".join(["path,label,split", *rows]), "utf-8")
hg.extract(Path("wrong.csv"), cache, set="wrong", passes=1)

# %% [markdown]
# [cleanlab](https://docs.cleanlab.ai) compares the labels with out-of-fold probabilities. `hg.label` opens a page to
# correct them by hand. Above each picture are its label and, below it, the class predicted.

# %%
found = np.load(hg.cv(cache, set="wrong", epochs=20).predictions)
issues = find_label_issues(
    found["labels"], np.exp(found["log_probs"]), return_indices_ranked_by="self_confidence", n_jobs=1
)
hits = {f"images/{path}" for path in train.paths[planted]} & set(found["paths"][issues])
print(f"{len(issues)} label issues, {len(hits)} of the {len(planted)} planted ones among them")

# %%
figure, grid = plt.subplots(1, 6, figsize=(11, 2.4), layout="constrained")
for axes in grid:
    axes.axis("off")
for axes, place in zip(grid, issues, strict=False):
    label, suggested = (found["classes"][one] for one in (found["labels"][place], found["log_probs"][place].argmax()))
    axes.imshow(Image.open(found["paths"][place]))
    axes.set_title(f"{label}?\n{suggested}", fontsize=9)
plt.show()

# %% [markdown]
# ## Learning curve
#
# Heads of an eighth to all of the images say what more of them would bring.

# %%
curve = hg.curve(cache, set="flowers", folds=3, epochs=20)
curve

# %%
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for points, style, label in ((curve.points, "o-", "measured"), (curve.forecast, "s--", "forecast")):
    errors = np.array([[one.error, one.low, one.high] for one in points])
    (line,) = axes.plot([one.images for one in points], errors[:, 0], style, label=label)
    axes.fill_between([one.images for one in points], errors[:, 1], errors[:, 2], color=line.get_color(), alpha=0.2)
axes.set(xlabel="training images", ylabel="error", xscale="log")
axes.legend()
plt.show()

# %% [markdown]
# ## The model
#
# Export writes the head with its backbone as one file and verifies it. The model leaves out answers until at most 10 %
# of the others are wrong, and it detects pictures of none of its classes.

# %%
model = Path("model.safetensors")
hg.export(Path("runs/sweep"), model, max_error=0.1, false_alarms=0.05)

# %% [markdown]
# It predicts files, bytes and images of Pillow: here a test image of each of four classes, two pictures of the class
# that was left out, and a palace.

# %%
bundle = hg.load_model(model)
test = [min(folder.iterdir()) for folder in sorted(Path("images/test").iterdir())[:4]]
others = sorted((source / "test" / left_out).iterdir())[:2]
pictures = [*map(Image.open, [*test, *others]), Image.fromarray(load_sample_image("china.jpg"))]
predictions = bundle.predict(pictures, top_k=1)

# %%
figure, grid = plt.subplots(1, len(pictures), figsize=(12, 2.6), layout="constrained")
for axes, picture, one in zip(grid, pictures, predictions, strict=True):
    axes.imshow(picture, cmap="grey")
    axes.axis("off")
    said = one.top[0].name if one.answered else "no answer"
    axes.set_title(f"{said}\nunknown: p = {one.unknown_p:.2f}", fontsize=9)
plt.show()

# %% [markdown]
# ## Evidence
#
# `explain` draws which cells of the feature map speak for the class rather than for the runner-up.

# %%
explained = hg.predict(model, test[:2], top_k=2, explain=Path("evidence"))
explained

# %%
figure, grid = plt.subplots(1, 2, figsize=(8, 5), layout="constrained")
for axes, path in zip(grid, sorted(Path("evidence").iterdir()), strict=True):
    axes.imshow(Image.open(path))
    axes.axis("off")
plt.show()

# %% [markdown]
# ## The service
#
# `headgraft serve` answers over HTTP, and its page takes pictures. It says on standard error where it listens.

# %%
command = [sys.executable, "-m", "cli", "serve", str(model), "--port", "0"]
service = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
assert service.stderr
url = next(word for line in service.stderr for word in line.split() if word.startswith("http://"))
answer = requests.post(f"{url}predict", files={"files": test[0].read_bytes()}, timeout=60)
service.terminate()
service.wait()
answer.json()["predictions"][0]["top"][:2]
