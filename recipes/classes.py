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
    "AutoTrace": "tenfold.modules.deepicon",
    "BM25Cosine": "tenfold.modules.cvr_llm",
    "BM25MinMax": "tenfold.modules.cvr_llm",
    "BeamSearch": "tenfold.modules.perception_magnifier",
<<<<<<< HEAD
    "Bleu": "tenfold.modules.metrics.captioning",
=======
    "Blip2Captioner": "tenfold.modules.cvr_llm",
>>>>>>> main
    "Blip2Encoder": "tenfold.modules.encoders",
    "CVRICLSelector": "tenfold.modules.cvr_llm",
    "CVRLLMModule": "tenfold.modules.cvr_llm",
    "CachedBackend": "tenfold.modules.chat",
    "CaptionDataModule": "tenfold.datamodules.multi_text.captions",
    "CausalLanguageModel": "tenfold.modules.language_model",
    "CausalPerplexity": "tenfold.modules.perplexity",
    "CauseEffectScenes": "tenfold.datamodules.scenes",
    "ChainOfComparisonModule": "tenfold.modules.cvr_llm",
    "ChairDataModule": "tenfold.datamodules.visual_questions",
    "ChairScorer": "tenfold.modules.vlm_decoding",
    "CharacterNgrams": "tenfold.modules.cvr_llm",
    "ChatCaptioner": "tenfold.modules.text_fusion",
    "ChatFusion": "tenfold.modules.text_fusion",
    "CheckpointMerging": "tenfold.callbacks.checkpoint_merging",
    "Cider": "tenfold.modules.metrics.captioning",
    "ClassificationDataModule": "tenfold.datamodules.classification",
    "ClipIconEncoder": "tenfold.modules.deepicon",
    "ClipPretraining": "tenfold.modules.realsyn",
    "CnxmlPages": "tenfold.datamodules.contextual_captions",
    "ContextualCaptionDataModule": "tenfold.datamodules.contextual_captions",
    "ContrastiveEncoder": "tenfold.modules.encoders",
<<<<<<< HEAD
    "CtrlCIC": "tenfold.modules.ctrl_cic",
    "CtrlCICFiles": "tenfold.datamodules.contextual_captions",
    "DGCNN": "tenfold.modules.point_cloud",
    "EncoderRelevance": "tenfold.modules.ctrl_cic",
    "FactExamples": "tenfold.datamodules.contextual_captions",
=======
    "ConvIconEncoder": "tenfold.modules.deepicon",
    "CorpusEncoder": "tenfold.modules.encoders",
    "DGCNN": "tenfold.modules.point_cloud",
    "DeepIconModule": "tenfold.modules.deepicon",
    "DescriptionPairs": "tenfold.datamodules.visual_reasoning",
    "DocstringPages": "tenfold.datamodules.realsyn",
    "EncodedTexts": "tenfold.modules.cvr_llm",
>>>>>>> main
    "FigureWriter": "tenfold.callbacks.figures",
    "FlatDecoder": "tenfold.modules.deepicon",
    "GeneratedIconDataModule": "tenfold.datamodules.icons",
    "Greedy": "tenfold.modules.perception_magnifier",
<<<<<<< HEAD
    "HtmlPages": "tenfold.datamodules.contextual_captions",
=======
    "HierarchicalDecoder": "tenfold.modules.deepicon",
    "HtmlFolder": "tenfold.datamodules.realsyn",
>>>>>>> main
    "ICD": "tenfold.modules.perception_magnifier",
    "IconDataModule": "tenfold.datamodules.icons",
    "InDegreeFilter": "tenfold.modules.outlier_filter",
    "JsonPages": "tenfold.datamodules.contextual_captions",
    "JudgeScorer": "tenfold.modules.vlm_decoding",
<<<<<<< HEAD
    "LexicalRelevance": "tenfold.modules.ctrl_cic",
    "LinearProbeEvaluation": "tenfold.callbacks.feature_evaluation",
    "LlavaBenchDataModule": "tenfold.datamodules.visual_questions",
    "M3ID": "tenfold.modules.perception_magnifier",
    "Meteor": "tenfold.modules.metrics.captioning",
    "MmeDataModule": "tenfold.datamodules.visual_questions",
    "MmeScorer": "tenfold.modules.vlm_decoding",
    "MultiTextDataModule": "tenfold.datamodules.multi_text",
    "NoControl": "tenfold.modules.ctrl_cic",
=======
    "KeywordProbe": "tenfold.modules.deepicon",
    "LinearProbeEvaluation": "tenfold.callbacks.feature_evaluation",
    "LlavaBenchDataModule": "tenfold.datamodules.visual_questions",
    "M3ID": "tenfold.modules.perception_magnifier",
    "MarkdownFolder": "tenfold.datamodules.realsyn",
    "MmeDataModule": "tenfold.datamodules.visual_questions",
    "MmeScorer": "tenfold.modules.vlm_decoding",
    "MultiTextDataModule": "tenfold.datamodules.multi_text",
    "MultimodalKNNSelector": "tenfold.modules.cvr_llm",
    "NewYorkerDataModule": "tenfold.datamodules.visual_reasoning",
>>>>>>> main
    "OPERA": "tenfold.modules.perception_magnifier",
    "ObelicsParquet": "tenfold.datamodules.realsyn",
    "ObjectScenes": "tenfold.datamodules.scenes",
    "OneCycle": "tenfold.modules.optimization",
    "OpenAIChatBackend": "tenfold.modules.chat",
    "OpenClipEncoder": "tenfold.modules.encoders",
    "PAI": "tenfold.modules.perception_magnifier",
    "PCT": "tenfold.modules.point_cloud",
    "PageExamples": "tenfold.datamodules.contextual_captions",
    "PairedEncoder": "tenfold.modules.encoders",
    "PerceptionMagnifier": "tenfold.modules.perception_magnifier",
    "PixelEncoder": "tenfold.datamodules.contextual_captions",
    "PointCloudClassifier": "tenfold.modules.point_cloud",
    "PointCloudDataModule": "tenfold.datamodules.point_clouds",
    "PointNet": "tenfold.modules.point_cloud",
    "PointNet2": "tenfold.modules.point_cloud",
    "PopeDataModule": "tenfold.datamodules.visual_questions",
    "PopeScorer": "tenfold.modules.vlm_decoding",
    "Potrace": "tenfold.modules.deepicon",
    "ProgressLines": "tenfold.callbacks.progress_lines",
    "PromptControl": "tenfold.modules.ctrl_cic",
    "QuantizationAwareTraining": "tenfold.callbacks.quantization",
    "RandomAxisWarp": "tenfold.modules.perception_magnifier",
    "RandomSelector": "tenfold.modules.cvr_llm",
    "RandomState": "tenfold.callbacks.random_state",
    "RankWatch": "tenfold.callbacks.rank_watch",
<<<<<<< HEAD
    "Recalibration": "tenfold.modules.ctrl_cic",
=======
    "RasterDecoder": "tenfold.modules.deepicon",
>>>>>>> main
    "RecordWriter": "tenfold.callbacks.records",
    "RelevancePredictor": "tenfold.modules.ctrl_cic",
    "ReplayBackend": "tenfold.modules.chat",
    "RetrievalEvaluation": "tenfold.callbacks.feature_evaluation",
    "RougeL": "tenfold.modules.metrics.captioning",
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
    "TemplateFusion": "tenfold.modules.text_fusion",
    "TextDataModule": "tenfold.datamodules.text",
    "TextKNNSelector": "tenfold.modules.cvr_llm",
    "TimmEncoder": "tenfold.modules.encoders",
    "TimmIconEncoder": "tenfold.modules.deepicon",
    "TinyPopeDataModule": "tenfold.datamodules.visual_questions",
    "TracingModule": "tenfold.modules.deepicon",
    "TrainedTracer": "tenfold.modules.deepicon",
    "TransformersChatBackend": "tenfold.modules.chat",
    "TransformersEncoder": "tenfold.modules.encoders",
    "VCD": "tenfold.modules.perception_magnifier",
    "VCRDataModule": "tenfold.datamodules.visual_reasoning",
    "VDD": "tenfold.modules.perception_magnifier",
    "VLMDecodingModule": "tenfold.modules.vlm_decoding",
    "VTracer": "tenfold.modules.deepicon",
    "ViCrop": "tenfold.modules.perception_magnifier",
    "VisionLanguageModel": "tenfold.modules.vision_language_model",
    "WarmupCosine": "tenfold.modules.optimization",
    "WarmupStableDecay": "tenfold.modules.optimization",
<<<<<<< HEAD
    "WikiWeb2MPages": "tenfold.datamodules.contextual_captions",
=======
    "WhoopsDataModule": "tenfold.datamodules.visual_reasoning",
    "WinogavilDataModule": "tenfold.datamodules.visual_reasoning",
    "WinogroundDataModule": "tenfold.datamodules.visual_reasoning",
>>>>>>> main
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
