"""Tables of what `make results` measured, as Markdown, from the files in docs/results/."""

from collections.abc import Callable
from statistics import mean, median, stdev
from textwrap import fill
from typing import Any

import untouched_tables
from tabular import percent, results, table


def _range(values: list[float]) -> str:
    return f"{percent(mean(values))} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def _spread(values: list[float]) -> str:
    return f"{percent(mean(values))} ± {100 * stdev(values):.1f}"


def _split(one: dict[str, Any]) -> str:
    return " / ".join(f"{count:,}" for count in one["images"].values())


def defaults() -> str:
    """Heads of the defaults: split, passes, accuracies over seeds, seconds an epoch."""
    head = ("train / valid / test", "augmented passes", "valid, epoch 1", "valid, last epoch", "test", "time per epoch")
    return table(head, (_seeds(split, row) for split in results("accuracy")["splits"] for row in split["defaults"]))


def _seeds(split: dict[str, Any], row: dict[str, Any]) -> list[object]:
    first, valid, test, epoch = ([head[key] for head in row["heads"]] for key in ("first", "valid", "test", "epoch"))
    scores = [percent(mean(first)), _spread(valid), _range(test)]
    return [_split(split), row["passes"], *scores, f"{mean(epoch):.1f} s"]


def sweeps() -> str:
    """Sweeps: the best of the search and the default head, each over the same seeds, and which is kept."""
    head = (
        "train / valid / test",
        "passes",
        "seconds: search, then retraining",
        "default head, valid",
        "best of the search, valid",
        "difference, 95 % over images",
        "corrected for the choice: valid, difference",
        "test, kept head",
        "merged, valid",
    )
    return table(head, (_choice(split, row) for split in results("accuracy")["splits"] for row in split["sweeps"]))


def _choice(split: dict[str, Any], row: dict[str, Any]) -> list[object]:
    apart = row["best"]["difference"]
    return [
        _split(split),
        row["passes"],
        f"{row['seconds']:.0f} and {row['retrain_seconds']:.0f}",
        *(f"{percent(row[key]['mean'])} ± {100 * row[key]['std']:.1f}" for key in ("default", "searched")),
        "– (the same settings)"
        if row["searched"]["config"] == row["default"]["config"]
        else f"{100 * apart['value']:+.1f} ({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})",
        f"{percent(row['searched']['corrected'])}, {100 * apart['corrected']:+.1f}",
        _range(row["test"]),
        percent(row["best"]["merged"]["valid_accuracy"]),
    ]


def baselines() -> str:
    """What classifiers without a head reach, in the basis of the head that is kept, and as a script in the pyramid."""
    head = ("train / valid / test", "passes", "basis", "LDA with shrinkage, valid", "logistic regression, valid")
    rows = (
        [
            _split(split),
            row["passes"],
            f"`{row['baselines']['basis']}`",
            percent(row["baselines"]["discriminant"]),
            "–" if row["baselines"]["logistic"] is None else percent(row["baselines"]["logistic"]),
        ]
        for split in results("accuracy")["splits"]
        for row in split["sweeps"]
    )
    found = results("speed")["probes"]
    scores = [percent(found[name]["best"]) for name in ("lda", "logistic")]
    script = ["`probe_strong.py`, Udacity split", 0, "pyramid, standardised", *scores]
    return table(head, [*rows, script])


def speed() -> str:
    """Beside a tutorial's and an expert's scripts, from one run."""
    head = ("", "tutorial script", "expert script", "headgraft", "headgraft / expert script")
    return table(head, (_features(), _one_head(), *_many_heads()))


def _features() -> list[object]:
    found = results("speed")["extract"]
    plain, strong, ours = (median(pair[key]["whole"] for pair in found["pairs"]) for key in ("plain", "strong", "ours"))
    steady = [median(pair[key]["steady"] for pair in found["pairs"]) for key in ("plain", "strong", "ours")]
    rates = [f"{whole:.1f} ({alone:.1f})" for whole, alone in zip((strong, ours), steady[1:], strict=True)]
    name = f"features of {found['images']} flowers, images/s including loading and compiling (without)"
    return [name, f"({plain:.1f})", *rates, f"{ours / strong:.2f} ({steady[2] / steady[1]:.2f}) times the rate"]


def _one_head() -> list[object]:
    found, clean = results("speed")["head"], results("accuracy")["splits"][0]["defaults"][0]
    plain, strong = found["plain"], found["strong"]
    theirs, ours, again = (median(found[who][what]) for who, what in _TIMED)
    reached = mean(head["valid"] for head in clean["heads"])
    return [
        "one head of 20 epochs, complete process (basis cached)",
        f"{plain['seconds']:.0f} s, {percent(plain['valid'])}",
        f"{theirs:.1f} s, {percent(strong['valid'])}",
        f"{ours:.1f} s ({again:.1f} s), {percent(reached)}",
        f"{theirs / ours:.2f} ({theirs / again:.2f}) times as fast, {100 * (reached - strong['valid']):+.1f} points",
    ]


_TIMED = (("strong", "seconds"), ("ours", "seconds"), ("ours", "again"))


def _many_heads() -> list[list[object]]:
    found = results("speed")["sweep"]
    strong, ours = found["strong"], found["ours"]
    scores = f"{percent(strong['valid'])}", f"{percent(ours['best']['mean'])}"
    apart = f"{100 * (ours['best']['mean'] - strong['valid']):+.1f} points"
    each = strong["seconds"] / strong["finished"], ours["seconds"] / ours["finished"]
    finished = f"{strong['finished']} by the script, {ours['finished']} by headgraft"
    return [
        [
            f"a head trained to the end, in a sweep of {ours['heads']} ({finished})",
            "–",
            f"{each[0]:.2f} s, {scores[0]}",
            f"{each[1]:.2f} s, {scores[1]}",
            f"{each[0] / each[1]:.2f} times as fast, {apart}",
        ],
        [
            f"the search of {ours['heads']} heads (with retraining by 5 seeds, and baselines)",
            "–",
            f"{strong['seconds']:.0f} s, {scores[0]}",
            f"{ours['seconds']:.0f} s ({ours['whole_seconds']:.0f} s), {scores[1]}",
            f"{strong['seconds'] / ours['seconds']:.2f} times as fast, {apart}",
        ],
    ]


def where() -> str:
    """On what it was measured, and when."""
    found = results("speed")
    return fill(f"Measured on {found['date']}: {found['hardware']}.", 120, break_on_hyphens=False)


def gpu() -> str:
    """What `make gpu` measured: rates a second, accuracy or likeness beside each."""
    found = results("gpu")
    rates, rows = found["compile"], [("forward pass, plain network", f"{found['compile']['eager']:,.0f} images", "")]
    rows.append(("forward pass, `torch.compile`", f"{rates['compiled']:,.0f} images", ""))
    rows.append(("forward pass, headgraft, on the same pixels", f"{rates['ours']:,.0f} images", ""))
    for precision in ("bfloat16", "float16", "float32"):
        one = found["forward"][precision]
        near = f"lowest cosine to float32: {one['cosine']:.6f}"
        rows.append((f"forward pass, headgraft, {precision}, rows copied back", f"{one['rate']:,.0f} images", near))
    for name, one in found["files"].items():
        threads, _, passes, _ = name.split("_")
        what = "clean views" if passes == "0" else f"{passes} more passes"
        rows.append((f"files to shards, {what}, {threads} threads", f"{one['images_per_second']:,.0f} rows", ""))
    one = found["heads"]
    rate = one["heads"] * one["epochs"] / one["seconds"]
    what = f"heads of 512 hidden units, {one['heads']:,} x {one['epochs']} epochs of 6,552 rows, {one['seconds']:.1f} s"
    rows.append((what, f"{rate:,.0f} epochs", f"mean accuracy on drawn rows: {percent(one['mean_accuracy'])}"))
    return table(("what", "a second", "beside it"), rows)


def backbones() -> str:
    """What `make bench-backbones` measured: images a second of each network, and how near all rows are to float32."""
    head = [*_WAYS.values(), "headgraft / best other"]
    head = ["", *(f"{name}, {precision}" for precision in ("float32", "bfloat16") for name in head)]
    head.remove("onnxruntime, bfloat16")
    names = [*head, "lowest cosine, float32", "lowest cosine of headgraft, bfloat16"]
    return table(names, (_network(name, found) for name, found in results("backbones")["networks"].items()))


_WAYS = {"eager": "plain torch", "compile": "`torch.compile`", "onnxruntime": "onnxruntime", "headgraft": "headgraft"}


def _network(name: str, found: dict[str, Any]) -> list[object]:
    cells: list[object] = [f"`{name}`"]
    for precision in ("float32", "bfloat16"):
        ways = [f"{way} {precision}" for way in _WAYS if (way, precision) != ("onnxruntime", "bfloat16")]
        rates = [found[way]["rate"] if way in found else None for way in ways]
        cells += ["–" if rate is None else f"{rate:.1f}" for rate in rates]
        *others, ours = rates
        cells.append("–" if ours is None else f"{ours / max(rate for rate in others if rate is not None):.2f}")
    float32 = [one["cosine"] for way, one in found.items() if way.endswith("float32")]
    ours = found.get("headgraft bfloat16")
    return [*cells, f"{min(float32):.6f}", "–" if ours is None else f"{ours['cosine']:.6f}"]


def backbones_where() -> str:
    """On what the networks were measured, and when."""
    found = results("backbones")
    compiling = [
        one["start_seconds"] for ways in found["networks"].values() for way, one in ways.items() if "comp" in way
    ]
    text = f"{found['hardware']}; batch {found['batch']}, medians of {found['rounds']} rounds; {found['date']}."
    seconds = f"`torch.compile` took {min(compiling):.0f} to {max(compiling):.0f} s before its first batch."
    return fill(f"{text} {seconds}", 120, break_on_hyphens=False)


def compared() -> str:
    """What `headgraft compare` found for caches of several backbones of both splits of the flowers, and their rates."""
    found = results("compare")
    by_split = [{one["backbone"]: one for one in split["backbones"]} for split in found["splits"]]
    names = [f"{split['split']}: valid (95 %), difference" for split in found["splits"]]
    head = ["", *names, "images/s", "computed in", "GMACs", "bytes per image"]
    order = [one["backbone"] for one in found["splits"][0]["backbones"]]
    return table(head, (_compared(name, [split[name] for split in by_split], found["precision"]) for name in order))


def _compared(name: str, on_splits: list[dict[str, Any]], precisions: dict[str, str]) -> list[object]:
    rate = results("backbones")["networks"][name][f"headgraft {precisions[name]}"]["rate"]
    first = on_splits[0]
    accuracies = [
        f"{percent(one['valid_accuracy'])} ({100 * one['low']:.1f} to {100 * one['high']:.1f}), {_points(one)}"
        for one in on_splits
    ]
    cost = [f"{rate:.0f}", precisions[name], f"{first['gmacs']:.2f}", f"{first['bytes_per_image']:,}"]
    return [f"`{name}`", *accuracies, *cost]


def _points(one: dict[str, Any]) -> str:
    low, value, high = (100 * one[key] for key in ("difference_low", "difference", "difference_high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})" if low < high else "–"


_ALL = (defaults, sweeps, baselines, speed, where, gpu, backbones, backbones_where, compared)
TABLES: dict[str, Callable[[], str]] = {one.__name__: one for one in (*_ALL, *untouched_tables.ALL)}
