"""What could make a head more accurate, each tried by five folds of the training and validation images.

`make bench-levers CACHE=features ARGS="--set flowers102 --passes 1"`. Each line: accuracy over all images, mean over
seeds, and how much that is above the default head (merged ones: above the default head merged over seeds), with the
corrected interval of Nadeau and Bengio over folds and draws of them. `--flipped` is a cache of the mirror images, in
files named DIGEST.png after the images: without it, flip-averaged features are left out.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from beside import hardware, say
from scipy.stats import t as student
from torch import Tensor
from torch.nn import functional as F

from cache.layout import CLEAN_VIEW
from cache.store import FeatureCache
from pipeline.bases.basis import Basis
from pipeline.bases.data import HeadData
from pipeline.bases.fit import start_basis
from pipeline.bases.trainset import TrainingSet
from pipeline.config.heads import HeadSettings, SweepConfig
from pipeline.cross_validation.prepare import folds_of
from pipeline.cross_validation.rows import ImageRows
from pipeline.heads.fit import default_epochs, hyperparameters_of, matmul_dtype_on, predict_validation, shape_of
from pipeline.heads.group import HeadGroup, HeadState
from pipeline.heads.head import Head
from pipeline.heads.seeds import shuffle_rng
from pipeline.machine.device import CPU, available_cpus
from pipeline.search.choice import default_settings
from pipeline.search.proposals import start_search
from pipeline.search.space import default_space
from pipeline.statistics.groups import join

FOLDS, POOL, MEMBERS = 5, 12, 8
MEMORY = 16 << 30
Batch = tuple[Tensor, Tensor, Tensor | None]  # rows, labels, weights
Batches = Callable[[HeadData, int, torch.Generator], Iterable[Batch]]


@dataclass(frozen=True)
class Folds:
    """Rows of each fold in a basis, and the places of its images among all."""

    datas: Sequence[HeadData]
    places: Sequence[Tensor]
    labels: Tensor

    @classmethod
    def of(cls, rows: ImageRows, folds: Tensor) -> "Folds":
        every, found, places = torch.arange(len(folds)), [], []
        sums = rows.sums(every)
        for fold in range(FOLDS):
            held_out = every[folds == fold]
            basis = rows.basis_without(sums, held_out)
            found.append(rows.data(basis, every[folds != fold], held_out))
            places.append(held_out)
        return cls(found, places, rows.labels)

    def predicted(self, head_of: Callable[..., Head], *given: object, **options: object) -> Tensor:
        """Log-probabilities (N, C) of each image by what `head_of` makes of the other folds and what is given."""
        found = torch.empty(len(self.labels), self.datas[0].num_classes)
        for data, places in zip(self.datas, self.places, strict=True):
            found[places] = predict_validation(head_of(data, *given, **options), data)
        return found

    def right(self, log_probs: Tensor) -> Tensor:
        """Share of each fold's images that are right, (K,)."""
        hits = (log_probs.argmax(1) == self.labels).double()
        return torch.stack([hits[places].mean() for places in self.places])


def plain(data: HeadData, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """As heads are trained."""
    return ((x, labels, None) for x, labels in data.batches(size, generator))


def mixed(data: HeadData, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Each row mixed with another of its batch, both labels counted (mixup: Zhang et al., ICLR 2018)."""
    beta = torch.distributions.Beta(0.2, 0.2)
    for x, labels in data.batches(size, generator):
        share, other = beta.sample((len(x),)), torch.randperm(len(x), generator=generator)
        rows = torch.lerp(x[other], x, share[:, None])
        yield rows.repeat(2, 1), torch.cat([labels, labels[other]]), 2 * torch.cat([share, 1 - share])


def between_passes(data: HeadData, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Each row between two passes of its image."""
    images, views = data.train_rows.shape
    for some in torch.randperm(images, generator=generator).split(size):
        one, two = (data.train_rows[some, torch.randint(views, (len(some),), generator=generator)] for _ in range(2))
        share = torch.rand(len(some), 1, generator=generator)
        yield torch.lerp(data.rows[one], data.rows[two], share), data.train_labels[some], None


def trained(
    data: HeadData, settings: HeadSettings, epochs: int, seed: int, batches: Batches = plain, decay: float = 0.0
) -> Head:
    """A head; with `decay`, of weights averaged over the steps with it."""
    torch.manual_seed(seed)
    shape, products = shape_of(settings, data, epochs), matmul_dtype_on(CPU)
    group = HeadGroup([HeadState.new(hyperparameters_of(settings, seed), shape)], shape, None, products)
    average = {name: tensor.clone() for name, tensor in group.tensors.items()}
    for epoch in range(1, epochs + 1):
        for x, labels, weights in batches(data, settings.batch_size, shuffle_rng(seed, epoch)):
            group.step(x.to(products or x.dtype), labels, weights)
            if decay:
                for name, tensor in average.items():
                    tensor.lerp_(group.tensors[name], 1 - decay)
    tensors = {name: tensor[0] for name, tensor in average.items()} if decay else group.weights(0)
    return Head.from_tensors(tensors, settings.dropout)


def distilled(data: HeadData, settings: HeadSettings, epochs: int, seed: int, teachers: int = 5) -> Head:
    """A head of the same size that learns the logits of several, on rows and mixed rows (Hinton et al., 2015)."""
    heads = [trained(data, settings, epochs, 100 * seed + number) for number in range(teachers)]
    student = Head.new(data.in_features, settings.hidden, data.num_classes, settings.dropout)
    steps = epochs * math.ceil(len(data.train_labels) / settings.batch_size)
    optimizer = torch.optim.AdamW(student.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    student.train()
    for epoch in range(1, epochs + 1):
        generator = shuffle_rng(seed, epoch)
        for x, _ in data.batches(settings.batch_size, generator):
            other, share = torch.randperm(len(x), generator=generator), torch.rand(len(x), 1, generator=generator)
            rows = torch.cat([x, torch.lerp(x[other], x, share)])
            with torch.no_grad():
                wanted = torch.stack([head(rows) for head in heads]).mean(0) / 2
            told = F.log_softmax(student(rows) / 2, 1)
            optimizer.zero_grad()
            (4 * F.kl_div(told, F.log_softmax(wanted, 1), reduction="batchmean", log_target=True)).backward()
            optimizer.step()
            schedule.step()
    return student.eval()


def to_norm(x: Tensor) -> Tensor:
    """Each row divided by its L2 norm."""
    return F.normalize(x) * 100


def to_root(x: Tensor) -> Tensor:
    """The square root of each value, its sign kept."""
    return x.sign() * x.abs().sqrt()


def transformed(trainset: TrainingSet, rows: ImageRows, change: Callable[[Tensor], Tensor]) -> ImageRows:
    """Rows of the same images and views, each changed before its regions are taken."""
    images, cache = trainset.index.split("train", "valid"), trainset.cache
    keys = list(dict.fromkeys((image.key, view) for image in images for view in trainset.views))
    place = {key: number for number, key in enumerate(keys)}
    found = torch.empty(len(keys), rows.rows.shape[1])
    for positions, block in cache.blocks(keys, 256):
        found[torch.from_numpy(positions)] = rows.start.transform(change(torch.from_numpy(block.astype(np.float32))))
    views = torch.tensor([[place[image.key, view] for view in trainset.views] for image in images])
    return replace(rows, rows=found, views=views)


def flip_averaged(trainset: TrainingSet, rows: ImageRows, flipped: Path) -> ImageRows:
    """Clean rows averaged with those of the mirror image, mirrored back; augmented ones as they are."""
    cache = FeatureCache.open(flipped)
    key_of = {Path(image.path).stem: image.key for image in cache.index().images}
    images, regions = trainset.index.split("train", "valid"), rows.rows.clone()
    for start in range(0, len(images), 256):
        some = images[start : start + 256]
        mirrored = cache.read([(key_of[image.digest], CLEAN_VIEW) for image in some]).astype(np.float32)
        maps = torch.from_numpy(mirrored).view(len(some), *trainset.cache.row_shape).flip(-1)
        places = rows.views[start : start + 256, 0]
        regions[places] = (rows.rows[places] + rows.start.transform(maps.flatten(1))) / 2  # regions are linear
    return replace(rows, rows=regions)


def greedy(pool: Sequence[Tensor], folds: Folds) -> Tensor:
    """Members chosen by loss, with replacement (Caruana et al., ICML 2004): those of a fold's heads on the others."""
    found, every = torch.empty_like(pool[0]), torch.arange(len(folds.labels))
    for places in folds.places:
        others = torch.ones(len(every), dtype=torch.bool)
        others[places] = False
        total = torch.zeros_like(pool[0])
        for count in range(1, MEMBERS + 1):
            losses = [F.nll_loss(F.log_softmax((total + one)[others] / count, 1), folds.labels[others]) for one in pool]
            total += pool[int(torch.stack(losses).argmin())]
        found[places] = F.log_softmax(total[places] / MEMBERS, 1)
    return found


def line(name: str, right: Tensor, base: Tensor) -> None:
    """Accuracy, and the difference with its corrected interval; one value a fold, of all draws."""
    apart = (right - base).numpy()
    error = math.sqrt((1 / len(apart) + 1 / (FOLDS - 1)) * apart.var(ddof=1))
    reach = float(student.ppf(0.975, len(apart) - 1)) * error
    low, middle, high = (100 * (apart.mean() + bound) for bound in (-reach, 0, reach))
    say(f"{name:42} {100 * float(right.mean()):6.2f} %  {middle:+.2f} ({low:+.2f} to {high:+.2f})")


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--set", help="its image set")
    parser.add_argument("--passes", type=int)
    parser.add_argument("--flipped", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="draws of the folds; merging has one")
    parser.add_argument("--only", default="", help="what to try besides the default head: a part of its name")
    parser.add_argument("--distil", action="store_true", help="train a head on the logits of five, too: slow")
    asked = parser.parse_args()
    print(hardware(), flush=True)
    torch.set_num_threads(available_cpus())
    trainset = TrainingSet.open(asked.cache, asked.set, asked.passes, validated=False)
    images, settings = trainset.index.split("train", "valid"), default_settings(trainset)
    rows = ImageRows.load(trainset, images, settings.basis, MEMORY)
    draws = [folds_of(trainset.index, images, join(images), FOLDS, repeat) for repeat in range(asked.repeats)]
    epochs = default_epochs(round(len(images) * (1 - 1 / FOLDS)), settings.batch_size)

    def right_of(head_of: Callable[..., Head], some: ImageRows, options: dict[str, object]) -> Tensor:
        found = []
        for draw in draws:
            folds = Folds.of(some, draw)
            each = [folds.predicted(head_of, settings, epochs, seed, **options) for seed in range(asked.seeds)]
            found.append(torch.stack(list(map(folds.right, each))).mean(0))
        return torch.cat(found)

    def tried(
        name: str,
        head_of: Callable[..., Head] = trained,
        made: Callable[[], ImageRows] = lambda: rows,
        **options: object,
    ) -> None:
        if asked.only in name:
            line(name, right_of(head_of, made(), options), base)

    base = right_of(trained, rows, {})
    line("default", base, base)
    tried("average of weights, 0.99 a step", decay=0.99)
    tried("mixup, Beta(0.2, 0.2)", batches=mixed)
    if trainset.passes:
        tried("rows between passes", batches=between_passes)
    if asked.distil:
        tried("distilled from 5 heads", distilled)
    tried("L2 norm of the row", made=lambda: transformed(trainset, rows, to_norm))
    tried("signed square root", made=lambda: transformed(trainset, rows, to_root))
    tried("square root, then L2", made=lambda: transformed(trainset, rows, lambda x: to_norm(to_root(x))))
    if asked.flipped:
        tried("flip-averaged clean rows", made=lambda: flip_averaged(trainset, rows, asked.flipped))
    if asked.only in "merged":
        merging(trainset, rows, draws[0], settings, epochs)


def merging(trainset: TrainingSet, rows: ImageRows, of_each: Tensor, settings: HeadSettings, epochs: int) -> None:
    """Seeds of the default settings, and members of other settings chosen greedily, all but one fold choosing."""
    folds = Folds.of(rows, of_each)
    seeds = [folds.predicted(trained, settings, epochs, seed) for seed in range(MEMBERS)]
    merged = folds.right(torch.stack(seeds).mean(0))
    line(f"{MEMBERS} seeds merged, above one", merged, torch.stack([folds.right(one) for one in seeds]).mean(0))
    space = default_space(settings.basis, rows.num_classes, 64)
    others = start_search(SweepConfig(Path(), Path(), heads=POOL), space, []).ask()
    pool = seeds[:2]
    for basis in dict.fromkeys(one.basis for one in others):
        start = start_basis(basis, trainset.layout)
        in_basis = Folds.of(replace(rows, start=Basis(basis, start.stages)), of_each)
        for one in (one for one in others if one.basis == basis):
            pool.append(in_basis.predicted(trained, one, epochs, 7))
    line(f"{MEMBERS} of {len(pool)} settings, chosen greedily", folds.right(greedy(pool, folds)), merged)
    line(f"all {len(pool)} settings merged", folds.right(torch.stack(pool).mean(0)), merged)


if __name__ == "__main__":
    main()
