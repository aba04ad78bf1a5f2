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
    "BM25Cosine": "tenfold.modules.cvr_llm",
    "BM25MinMax": "tenfold.modules.cvr_llm",
    "BeamSearch": "tenfold.modules.perception_magnifier",
    "Blip2Captioner": "tenfold.modules.cvr_llm",
    "Blip2Encoder": "tenfold.modules.encoders",
    "CVRICLSelector": "tenfold.modules.cvr_llm",
    "CVRLLMModule": "tenfold.modules.cvr_llm",
    "CachedBackend": "tenfold.modules.chat",
    "CaptionDataModule": "tenfold.datamodules.multi_text.captions",
    "CausalLanguageModel": "tenfold.modules.language_model",
    "CauseEffectScenes": "tenfold.datamodules.scenes",
    "ChainOfComparisonModule": "tenfold.modules.cvr_llm",
    "ChairDataModule": "tenfold.datamodules.visual_questions",
    "ChairScorer": "tenfold.modules.vlm_decoding",
    "CharacterNgrams": "tenfold.modules.cvr_llm",
    "CheckpointMerging": "tenfold.callbacks.checkpoint_merging",
    "ClassificationDataModule": "tenfold.datamodules.classification",
    "ClipPretraining": "tenfold.modules.realsyn",
    "ContrastiveEncoder": "tenfold.modules.encoders",
    "DGCNN": "tenfold.modules.point_cloud",
    "DescriptionPairs": "tenfold.datamodules.visual_reasoning",
    "EncodedTexts": "tenfold.modules.cvr_llm",
    "FigureWriter": "tenfold.callbacks.figures",
    "Greedy": "tenfold.modules.perception_magnifier",
    "ICD": "tenfold.modules.perception_magnifier",
    "InDegreeFilter": "tenfold.modules.outlier_filter",
    "JudgeScorer": "tenfold.modules.vlm_decoding",
    "LinearProbeEvaluation": "tenfold.callbacks.feature_evaluation",
    "LlavaBenchDataModule": "tenfold.datamodules.visual_questions",
    "M3ID": "tenfold.modules.perception_magnifier",
    "MmeDataModule": "tenfold.datamodules.visual_questions",
    "MmeScorer": "tenfold.modules.vlm_decoding",
    "MultiTextDataModule": "tenfold.datamodules.multi_text",
    "MultimodalKNNSelector": "tenfold.modules.cvr_llm",
    "NewYorkerDataModule": "tenfold.datamodules.visual_reasoning",
    "OPERA": "tenfold.modules.perception_magnifier",
    "ObjectScenes": "tenfold.datamodules.scenes",
    "OneCycle": "tenfold.modules.optimization",
    "OpenAIChatBackend": "tenfold.modules.chat",
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
    "RandomSelector": "tenfold.modules.cvr_llm",
    "RandomState": "tenfold.callbacks.random_state",
    "RankWatch": "tenfold.callbacks.rank_watch",
    "RecordWriter": "tenfold.callbacks.records",
    "ReplayBackend": "tenfold.modules.chat",
    "RetrievalEvaluation": "tenfold.callbacks.feature_evaluation",
    "SID": "tenfold.modules.perception_magnifier",
    "Sample": "tenfold.modules.perception_magnifier",
    "SceneDataModule": "tenfold.datamodules.scenes",
    "SceneReasoner": "tenfold.modules.cvr_llm",
    "SceneReasoningDataModule": "tenfold.datamodules.visual_reasoning",
    "SentenceEncoder": "tenfold.modules.encoders",
    "SetMixerAggregation": "tenfold.modules.set_mixer",
    "SimilarityModule": "tenfold.modules.cvr_llm",
    "SpikeInjection": "tenfold.callbacks.spike_recovery",
    "SpikeRecovery": "tenfold.callbacks.spike_recovery",
    "TextDataModule": "tenfold.datamodules.text",
    "TextKNNSelector": "tenfold.modules.cvr_llm",
    "TimmEncoder": "tenfold.modules.encoders",
    "TinyPopeDataModule": "tenfold.datamodules.visual_questions",
    "TransformersChatBackend": "tenfold.modules.chat",
    "TransformersEncoder": "tenfold.modules.encoders",
    "VCD": "tenfold.modules.perception_magnifier",
    "VCRDataModule": "tenfold.datamodules.visual_reasoning",
    "VDD": "tenfold.modules.perception_magnifier",
    "VLMDecodingModule": "tenfold.modules.vlm_decoding",
    "ViCrop": "tenfold.modules.perception_magnifier",
    "VisionLanguageModel": "tenfold.modules.vision_language_model",
    "WarmupCosine": "tenfold.modules.optimization",
    "WarmupStableDecay": "tenfold.modules.optimization",
    "WhoopsDataModule": "tenfold.datamodules.visual_reasoning",
    "WinogavilDataModule": "tenfold.datamodules.visual_reasoning",
    "WinogroundDataModule": "tenfold.datamodules.visual_reasoning",
    "ZeroShotEvaluation": "tenfold.callbacks.feature_evaluation",
}


def import_named(names: set[str]) -> None:
    """Imports the modules of those `names` that the table knows.

    jsonargparse then resolves the short names by itself.
    """
    # torch-geometric still compiles a few functions with it when it is imported.
    warnings.filterwarnings("ignore", ".*torch.jit.script. is deprecated.*", FutureWarning)
    for module in sorted({CLASSES[name] for name in names & CLASSES.keys()}):
        importlib.import_module(module)
