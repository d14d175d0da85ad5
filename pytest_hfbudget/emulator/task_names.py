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

# Parts of names by which a model that nobody configured is given a task.
_HINTS = {
    "text-to-image": "flux stable-diffusion sdxl text-to-image",
    "text-to-video": "text-to-video hunyuanvideo ltx-video",
    "automatic-speech-recognition": "whisper wav2vec automatic-speech",
    "feature-extraction": "embed minilm bge- e5- gte-",
    "summarization": "bart-large-cnn pegasus summar",
    "translation": "opus-mt nllb t5- translat",
    "text-classification": "sst-2 sentiment toxic",
    "text-to-speech": "tts kokoro bark",
    "token-classification": "-ner ner-",
    "fill-mask": "bert-base roberta-base",
    "image-classification": "vit-base resnet",
    "object-detection": "detr yolo",
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
