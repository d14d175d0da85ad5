"""The names of the Hub's tasks, and which of them an unknown model is taken to be for."""

from __future__ import annotations

HF_TASKS = (
    "audio-classification",
    "audio-to-audio",
    "automatic-speech-recognition",
    "document-question-answering",
    "feature-extraction",
    "fill-mask",
    "image-classification",
    "image-segmentation",
    "image-to-image",
    "image-to-text",
    "image-to-video",
    "object-detection",
    "question-answering",
    "sentence-similarity",
    "summarization",
    "table-question-answering",
    "tabular-classification",
    "tabular-regression",
    "text-classification",
    "text-generation",
    "text-to-image",
    "text-to-speech",
    "text-to-video",
    "token-classification",
    "translation",
    "visual-question-answering",
    "zero-shot-classification",
    "zero-shot-image-classification",
)

# Parts of names by which an unconfigured model is given a task. The first that fits
# decides, so what is more special comes first: "flux.1-kontext" edits pictures, "flux" makes them.
_HINTS = {
    "zero-shot-image-classification": "clip-vit clip-rn siglip metaclip",
    "zero-shot-classification": "-mnli xnli zeroshot zero-shot-class",
    "table-question-answering": "tapas tapex -wtq",
    "document-question-answering": "docvqa document-qa layoutlm",
    "visual-question-answering": "-vqa vilt visual-question",
    "question-answering": "squad question-answering",
    "image-to-video": "image-to-video -i2v img2vid stable-video-diffusion",
    "text-to-video": "text-to-video hunyuanvideo ltx-video -t2v cogvideo mochi-1",
    "image-to-image": "image-to-image image-edit kontext pix2pix upscaler swin2sr img2img",
    "text-to-image": "text-to-image flux stable-diffusion sdxl sd-turbo qwen-image pixart",
    "image-segmentation": "segformer mask2former panoptic face-parsing rmbg segment",
    "audio-to-audio": "audio-to-audio sepformer enhsingle dccrnet metricgan",
    "audio-classification": "audio-class speech-emotion audioset superb-er superb-ks",
    "automatic-speech-recognition": "whisper wav2vec automatic-speech parakeet-",
    "text-to-speech": "text-to-speech tts kokoro bark parler",
    "text-classification": "rerank sst-2 sst2 sentiment toxic finbert emotion text-class",
    "feature-extraction": "feature-extraction embed minilm mpnet bge- e5- gte- sentence-",
    "summarization": "bart-large-cnn distilbart pegasus summar -xsum",
    "translation": "opus-mt nllb m2m100 madlad t5- translat",
    "token-classification": "-ner ner- gliner conll03 token-class",
    "image-to-text": "image-to-text blip captioning trocr",
    "fill-mask": "fill-mask bert-base bert-large roberta-base roberta-large modernbert",
    "object-detection": "object-detection detr yolo",
    "image-classification": "image-class vit-base vit-large resnet- convnext mobilenet",
    "tabular-classification": "tabular-class",
    "tabular-regression": "tabular-regress",
}


def guess_task(model: str) -> str:
    """The task of an unknown model: that of `emulator/TASK`, else by its name, else text."""
    owner, _, name = model.lower().rpartition("/")
    if owner == "emulator" and name in HF_TASKS:
        return name
    for task, hints in _HINTS.items():
        if any(hint in name for hint in hints.split()):
            return task
    return "text-generation"
