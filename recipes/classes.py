"""Short class names: which module a name in a recipe lives in.

Only what a recipe names is imported, so that one method never pays for another's imports. A test
compares this table with the classes that the package defines.
"""

import importlib
import warnings

CLASSES = {
    "ActivationStatsMonitor": "tenfold.callbacks.activation_stats",
    "AnnealingPrediction": "tenfold.callbacks.annealing_prediction",
    "Blip2Encoder": "tenfold.modules.encoders",
    "CachedBackend": "tenfold.modules.chat",
    "CausalLanguageModel": "tenfold.modules.language_model",
    "CauseEffectScenes": "tenfold.datamodules.scenes",
    "CheckpointMerging": "tenfold.callbacks.checkpoint_merging",
    "DGCNN": "tenfold.modules.point_cloud",
    "FigureWriter": "tenfold.callbacks.figures",
    "InDegreeFilter": "tenfold.modules.outlier_filter",
    "ObjectScenes": "tenfold.datamodules.scenes",
    "OpenAIChatBackend": "tenfold.modules.chat",
    "OpenClipEncoder": "tenfold.modules.encoders",
    "PCT": "tenfold.modules.point_cloud",
    "PairedEncoder": "tenfold.modules.encoders",
    "PointCloudClassifier": "tenfold.modules.point_cloud",
    "PointCloudDataModule": "tenfold.datamodules.point_clouds",
    "PointNet": "tenfold.modules.point_cloud",
    "PointNet2": "tenfold.modules.point_cloud",
    "ProgressLines": "tenfold.callbacks.progress_lines",
    "QuantizationAwareTraining": "tenfold.callbacks.quantization",
    "RandomAxisWarp": "tenfold.modules.perception_magnifier",
    "RandomState": "tenfold.callbacks.random_state",
    "RankWatch": "tenfold.callbacks.rank_watch",
    "RecordWriter": "tenfold.callbacks.records",
    "ReplayBackend": "tenfold.modules.chat",
    "SceneDataModule": "tenfold.datamodules.scenes",
    "SentenceEncoder": "tenfold.modules.encoders",
    "SetMixerAggregation": "tenfold.modules.set_mixer",
    "SpikeInjection": "tenfold.callbacks.spike_recovery",
    "SpikeRecovery": "tenfold.callbacks.spike_recovery",
    "TextDataModule": "tenfold.datamodules.text",
    "TimmEncoder": "tenfold.modules.encoders",
    "TransformersChatBackend": "tenfold.modules.chat",
    "TransformersEncoder": "tenfold.modules.encoders",
    "VisionLanguageModel": "tenfold.modules.vision_language_model",
    "WarmupCosine": "tenfold.modules.optimization",
    "WarmupStableDecay": "tenfold.modules.optimization",
}


def import_named(names: set[str]) -> None:
    """Imports the modules of those `names` that the table knows.

    jsonargparse then resolves the short names by itself.
    """
    # torch-geometric still compiles a few functions with it when it is imported.
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated.*", FutureWarning)
    for module in sorted({CLASSES[name] for name in names & CLASSES.keys()}):
        importlib.import_module(module)
