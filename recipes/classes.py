"""Short class names: which module a name in a recipe lives in.

Only what a recipe names is imported, so that one method never pays for another's imports. A test
compares this table with the classes that the package defines.
"""

import importlib
import warnings

CLASSES = {
    "APCOnly": "tenfold.modules.perception_magnifier",
    "API": "tenfold.modules.perception_magnifier",
    "ActivationStatsMonitor": "tenfold.callbacks.activation_stats",
    "AnnealingPrediction": "tenfold.callbacks.annealing_prediction",
    "BeamSearch": "tenfold.modules.perception_magnifier",
    "BenchmarkBuilder": "tenfold.modules.mucr.construction",
    "Blip2Encoder": "tenfold.modules.encoders",
    "CachedBackend": "tenfold.modules.chat",
    "CausalLanguageModel": "tenfold.modules.language_model",
    "CausalQuestions": "tenfold.datamodules.mucr",
    "CauseEffectScenes": "tenfold.datamodules.scenes",
    "ChairDataModule": "tenfold.datamodules.visual_questions",
    "ChairScorer": "tenfold.modules.vlm_decoding",
    "CheckpointMerging": "tenfold.callbacks.checkpoint_merging",
    "DGCNN": "tenfold.modules.point_cloud",
    "DiffusersImageBackend": "tenfold.modules.mucr.construction",
    "FigureWriter": "tenfold.callbacks.figures",
    "Greedy": "tenfold.modules.perception_magnifier",
    "ICD": "tenfold.modules.perception_magnifier",
    "InDegreeFilter": "tenfold.modules.outlier_filter",
    "JudgeScorer": "tenfold.modules.vlm_decoding",
    "LlavaBenchDataModule": "tenfold.datamodules.visual_questions",
    "M3ID": "tenfold.modules.perception_magnifier",
    "MmeDataModule": "tenfold.datamodules.visual_questions",
    "MmeScorer": "tenfold.modules.vlm_decoding",
    "MuCRDataModule": "tenfold.datamodules.mucr",
    "MuCRModule": "tenfold.modules.mucr",
    "OPERA": "tenfold.modules.perception_magnifier",
    "ObjectScenes": "tenfold.datamodules.scenes",
    "OpenAIChatBackend": "tenfold.modules.chat",
    "OpenAIImageBackend": "tenfold.modules.mucr.construction",
    "OpenClipEncoder": "tenfold.modules.encoders",
    "PAI": "tenfold.modules.perception_magnifier",
    "PCT": "tenfold.modules.point_cloud",
    "PairedEncoder": "tenfold.modules.encoders",
    "PerceptionMagnifier": "tenfold.modules.perception_magnifier",
    "PointCloudClassifier": "tenfold.modules.point_cloud",
    "PointCloudDataModule": "tenfold.datamodules.point_clouds",
    "PointNet": "tenfold.modules.point_cloud",
    "PointNet2": "tenfold.modules.point_cloud",
    "PopeDataModule": "tenfold.datamodules.visual_questions",
    "PopeScorer": "tenfold.modules.vlm_decoding",
    "ProgressLines": "tenfold.callbacks.progress_lines",
    "QuantizationAwareTraining": "tenfold.callbacks.quantization",
    "RandomAxisWarp": "tenfold.modules.perception_magnifier",
    "RandomState": "tenfold.callbacks.random_state",
    "RankWatch": "tenfold.callbacks.rank_watch",
    "RecordWriter": "tenfold.callbacks.records",
    "ReplayBackend": "tenfold.modules.chat",
    "SID": "tenfold.modules.perception_magnifier",
    "Sample": "tenfold.modules.perception_magnifier",
    "SceneDataModule": "tenfold.datamodules.scenes",
    "SentenceEncoder": "tenfold.modules.encoders",
    "SetMixerAggregation": "tenfold.modules.set_mixer",
    "SiameseMatcher": "tenfold.modules.mucr",
    "SmallConvNet": "tenfold.modules.mucr",
    "SpikeInjection": "tenfold.callbacks.spike_recovery",
    "SpikeRecovery": "tenfold.callbacks.spike_recovery",
    "SpriteImageBackend": "tenfold.datamodules.mucr.sprites",
    "SpriteViewer": "tenfold.datamodules.mucr.viewer",
    "SpriteWriter": "tenfold.datamodules.mucr.sprites",
    "SyntheticMuCRDataModule": "tenfold.datamodules.mucr",
    "TextDataModule": "tenfold.datamodules.text",
    "TimmEncoder": "tenfold.modules.encoders",
    "TinyPopeDataModule": "tenfold.datamodules.visual_questions",
    "TransformersChatBackend": "tenfold.modules.chat",
    "TransformersEncoder": "tenfold.modules.encoders",
    "VCD": "tenfold.modules.perception_magnifier",
    "VDD": "tenfold.modules.perception_magnifier",
    "VLMDecodingModule": "tenfold.modules.vlm_decoding",
    "ViCrop": "tenfold.modules.perception_magnifier",
    "VisionLanguageModel": "tenfold.modules.vision_language_model",
    "WarmupCosine": "tenfold.modules.optimization",
    "WarmupStableDecay": "tenfold.modules.optimization",
    "WordJudge": "tenfold.modules.mucr",
}


def import_named(names: set[str]) -> None:
    """Imports the modules of those `names` that the table knows.

    jsonargparse then resolves the short names by itself.
    """
    # torch-geometric still compiles a few functions with it when it is imported.
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated.*", FutureWarning)
    for module in sorted({CLASSES[name] for name in names & CLASSES.keys()}):
        importlib.import_module(module)
