"""Two stages: features of a frozen backbone into a cache, heads trained from it and exported as one model.

Nothing that takes time is imported here, so that what needs no torch starts at once. The public interface, by module:

    pipeline.config         ExtractConfig, ReduceConfig, TrainConfig, SweepConfig, ExportConfig, EvaluateConfig,
                            PredictConfig
    pipeline.commands.extract        extract
    pipeline.commands.reduce         reduce_cache
    pipeline.commands.train          train_head
    pipeline.commands.sweep          sweep
    pipeline.commands.evaluate       evaluate
    pipeline.commands.export         export
    pipeline.model.file     load_bundle
    pipeline.commands.predict        predict
    pipeline.commands.weights        list_weights, fetch_weights
    pipeline.estimator      HeadClassifier
    pipeline.inputs.images  ImageSet
"""

from pathlib import Path

import cache as _cache

if Path(str(_cache.__file__)).parent.parent != Path(__file__).parent.parent:
    raise ImportError(
        f"{_cache.__file__} hides headgraft's own package cache: rename it, or run python -P, which does not look "
        "beside the script"
    )
