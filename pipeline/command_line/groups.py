"""The commands on models, caches and weights: groups of the command line."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from pipeline.command_line.command import PATH, Group, emit, options
from pipeline.config.extract import ExtractConfig
from pipeline.config.heads import ReduceConfig
from pipeline.errors import ConfigError


@click.group(cls=Group)
def model() -> None:
    """Model files: inspect."""


@model.command("info")
@click.argument("model", type=PATH)
@click.option("--card", type=PATH, help="Path of a Markdown file to write the card to.")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing card.")
def model_info(model: Path, card: Path | None, overwrite: bool) -> None:
    """Show the card of MODEL: architecture, training, scores."""
    from cache.files import write_atomically
    from pipeline.model.file import load_model
    from pipeline.model.markdown import model_card
    from pipeline.run_folder import check_target

    if card is not None:
        check_target(card, overwrite)
    bundle = load_model(model)
    text = model_card(bundle)
    if card is not None:
        card.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(card, text.encode("utf-8", "backslashreplace"))
    emit({"model": str(model), **bundle.stored}, text.rstrip("\n") if card is None else f"{card}: written")


@click.group(cls=Group)
def cache() -> None:
    """Feature caches: inspect, verify, repair, copy, reduce, prune."""


@cache.command("info")
@click.argument("cache", type=PATH)
@click.option("--duplicates", is_flag=True, help="Also list near-duplicate images.")
@click.option("--set", "name", help="With --duplicates: image set.  [default: the only one]")
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="With --duplicates: minimum cosine of whitened, pooled features.  [default: one false pair is expected]",
)
def cache_info(cache: Path, duplicates: bool, name: str | None, threshold: float | None) -> None:
    """Show the contents of CACHE."""
    from cache.info import info
    from cache.store import FeatureCache

    for option, value in (("--set", name), ("--threshold", threshold)):
        if value is not None and not duplicates:
            raise ConfigError(f"{option} is for --duplicates: add that, or leave {option} out")
    opened = FeatureCache.open(cache)
    found = info(opened)
    words = found.in_words()
    if duplicates:
        from pipeline.duplicates.near_duplicates import near_duplicates

        near = near_duplicates(opened, opened.index(name), threshold)
        found.duplicates, found.near_duplicates = [asdict(pair) for pair in near.pairs], near.threshold.as_json()
        words += f"\n{near.in_words()}"
    emit(found, words)


@cache.command("verify")
@click.argument("cache", type=PATH)
@click.option("--full", is_flag=True, help="Also hash every image and compare it with the index.")
def cache_verify(cache: Path, full: bool) -> None:
    """Check every file of CACHE against its digest. Exit status 1 if any is bad."""
    from cache.check import verify
    from pipeline.inputs.images import changed_files

    result = verify(cache, changed_files if full else None)
    emit(result)
    sys.exit(1 if result.bad or result.changed else 0)


@cache.command("repair")
@click.argument("cache", type=PATH)
def cache_repair(cache: Path) -> None:
    """Quarantine the corrupted files of CACHE."""
    from cache.check import repair

    emit(repair(cache))


@cache.command("pack")
@click.argument("cache", type=PATH)
@click.argument("file", type=PATH)
@click.option("--set", "name", help="Name of the image set.  [default: the only one]")
@click.option("--passes", type=click.IntRange(0), help="Number of augmented passes.  [default: all complete passes]")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
def cache_pack(cache: Path, file: Path, name: str | None, passes: int | None, overwrite: bool) -> None:
    """Write a set as one plain HDF5 FILE. It holds features, labels, paths, splits and passes."""
    from cache.pack import pack

    emit(pack(cache, file, name, passes, overwrite))


@cache.command("labels")
@click.argument("cache", type=PATH)
@click.option("--set", "name", help="Name of the image set.  [default: the only one]")
@click.option("--csv", "file", type=PATH, help="Path of a CSV file to write: path,label,split, which extract reads.")
@click.option("--overwrite", is_flag=True, help="Overwrite an existing file.")
def cache_labels(cache: Path, name: str | None, file: Path | None, overwrite: bool) -> None:
    """Show the labels given by hand. With --csv, write all labels of a set as a table."""
    from pipeline.commands.labels import labels

    emit(labels(cache, name, file, overwrite))


@cache.command("reduce")
@options(ReduceConfig)
def cache_reduce(config: ReduceConfig) -> None:
    """Project CACHE into a smaller cache. The loss of accuracy is measured."""
    from pipeline.commands.reduce import reduce_cache

    emit(reduce_cache(config))


@cache.command("push")
@click.argument("cache", type=PATH)
@click.argument("url")
@click.option("--overwrite", is_flag=True, help="Overwrite indexes at URL that differ.")
def cache_push(cache: Path, url: str, overwrite: bool) -> None:
    """Upload the files of CACHE that are missing at URL. Exit status 1 if a file is refused."""
    from cache.remote import push

    result = push(cache, url, overwrite)
    emit(result)
    sys.exit(1 if result.refused else 0)


@cache.command("pull")
@click.argument("url")
@click.argument("cache", type=PATH)
@click.option("--overwrite", is_flag=True, help="Overwrite indexes of CACHE that differ.")
def cache_pull(url: str, cache: Path, overwrite: bool) -> None:
    """Download files that are missing in CACHE from URL. Exit status 1 if a file is refused."""
    from cache.remote import pull

    result = pull(url, cache, overwrite)
    emit(result)
    sys.exit(1 if result.refused else 0)


@cache.command("forget")
@click.argument("cache", type=PATH)
@click.option("--set", "name", required=True, help="Image set.")
def cache_forget(cache: Path, name: str) -> None:
    """Delete the index of a set. Its rows stay until prune, and labels given by hand stay."""
    from cache.prune import forget

    emit(forget(cache, name))


@cache.command("prune")
@click.argument("cache", type=PATH)
@click.option("--dry-run", is_flag=True, help="Print how much would be deleted and exit.")
def cache_prune(cache: Path, dry_run: bool) -> None:
    """Delete rows that no set uses, duplicate rows and projections."""
    from cache.prune import prune

    emit(prune(cache, dry_run))


@click.group(cls=Group)
def weights() -> None:
    """Pretrained weights: list, fetch."""


@weights.command("list")
def weights_list() -> None:
    """List backbones, and whether their weights are on this machine."""
    from pipeline.commands.weights import list_weights

    emit(list_weights())


@weights.command("fetch")
@click.argument("backbone", default=ExtractConfig.backbone)
def weights_fetch(backbone: str) -> None:
    """Fetch weights into the user's weights folder. BACKBONE is vgg16 by default."""
    from pipeline.commands.weights import fetch_weights

    emit(fetch_weights(backbone))
