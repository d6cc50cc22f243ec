"""The labelling page of a set, until interrupted."""

import logging
from typing import Any

import torch

from cache import layout
from cache.labels import LabelJournal
from cache.lock import claimed
from cache.store import FeatureCache
from pipeline.config import LabelConfig, TrainConfig
from pipeline.inputs.display_names import read_names
from pipeline.inputs.images import root_now
from pipeline.inputs.preprocessing import Preprocessing
from pipeline.labelling.contents import Contents
from pipeline.labelling.session import Session
from pipeline.machine.device import available_cpus
from pipeline.machine.memory import allowed_bytes
from pipeline.run_folder import refuse_to_overwrite
from pipeline.service.hosting import host, is_local, listening, require_packages
from pipeline.training import trained_run

logger = logging.getLogger("headgraft.label")


def label(config: LabelConfig) -> None:
    """Serve the page of a set on `host` and `port`; every verdict is in the journal of the cache before it is answered.

    PipelineError where a package of the extra is missing, RunError where rows exceed the memory or `run` holds a run,
    CacheBusy where another process labels in this cache.
    """
    require_packages("label")
    from pipeline.labelling.app import Asked, create_app

    refuse_to_overwrite(config.run, config.overwrite)
    with listening(config.host, config.port) as listener:
        cache = FeatureCache.open(config.cache)
        index = cache.extracted(config.set)
        root = root_now(index, config.data)
        names = read_names(config.names, index.classes) if config.names and index.classes else {}
        with claimed(config.cache / layout.LABEL_FOLDER, patience=0):
            torch.set_num_threads(available_cpus())
            journal = LabelJournal.load(config.cache, index.name)
            journal.make_writable()
            if outdated := journal.outdated(index):
                logger.warning(
                    f"labels given by hand that the data contradicts since, and that do not hold: {outdated}"
                )
            session = Session(index, Contents.load(cache, index, allowed_bytes(config.memory)), journal)
            policy = Preprocessing.of(cache.manifest.base).policy
            asked = Asked(session, root, policy, names, config.run, lambda: finish(config, index.name))
            app = create_app(asked, session.retrainer.start, session.retrainer.stop, is_local(listener))
            host(app, listener, f"set {index.name!r}", 1_000_000, logger.info)
            labels = len(journal.chains)
            logger.info(f"{labels} labels given by hand are in {journal.path}; train-head and all others use them")


def finish(config: LabelConfig, name: str) -> dict[str, Any]:
    """Train a head of all labels as `train-head` does, in place of a run that was there."""
    opened = FeatureCache.open(config.cache)
    passes = opened.complete_passes(opened.index(name))
    asked = TrainConfig(config.cache, config.run, name, passes=passes, memory=config.memory, overwrite=True)
    record = trained_run(asked).record
    return {"run": str(config.run), "valid_accuracy": record.valid_accuracy, "seconds": record.seconds}
