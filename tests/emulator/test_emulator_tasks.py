"""Tasks other than chat, as the real client asks for them and parses the answers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import HfApi, InferenceClient
from huggingface_hub.inference._providers import PROVIDERS

from pytest_hfbudget.emulator import Emulator


def offered(provider: str) -> set[str]:
    """The tasks that this huggingface_hub knows of a provider."""
    return {task for name, tasks in PROVIDERS.items() if name == provider for task in tasks}


CELLS: dict[str, Any] = {"query": "how many?", "table": {"a": ["1", "2"]}}

TASKS: dict[str, Callable[[InferenceClient], Any]] = {
    "audio-classification": lambda client: client.audio_classification(b"sound"),
    "audio-to-audio": lambda client: client.audio_to_audio(b"sound"),
    "automatic-speech-recognition": lambda client: client.automatic_speech_recognition(b"sound"),
    "document-question-answering": lambda client: client.document_question_answering(b"p", "q?"),
    "fill-mask": lambda client: client.fill_mask("the <mask>"),
    "image-classification": lambda client: client.image_classification(b"picture"),
    "image-to-text": lambda client: client.image_to_text(b"picture"),
    "object-detection": lambda client: client.object_detection(b"picture"),
    "question-answering": lambda client: client.question_answering(question="q?", context="c"),
    "sentence-similarity": lambda client: client.sentence_similarity("a", other_sentences=["b"]),
    "summarization": lambda client: client.summarization("a long story"),
    "table-question-answering": lambda client: client.table_question_answering(
        CELLS["table"], "how many?"
    ),
    "tabular-classification": lambda client: client.tabular_classification(CELLS["table"]),
    "text-classification": lambda client: client.text_classification("fine"),
    "text-generation": lambda client: client.text_generation("once [[tokens=3]]"),
    "text-to-speech": lambda client: client.text_to_speech("hello"),
    "token-classification": lambda client: client.token_classification("Anna went"),
    "translation": lambda client: client.translation("hello"),
    "visual-question-answering": lambda client: client.visual_question_answering(b"p", "q?"),
    "zero-shot-classification": lambda client: client.zero_shot_classification("t", ["a", "b"]),
    "zero-shot-image-classification": lambda client: client.zero_shot_image_classification(
        b"picture", ["a", "b"]
    ),
}
if importlib.util.find_spec("numpy"):
    TASKS["feature-extraction"] = lambda client: client.feature_extraction("text")
if importlib.util.find_spec("PIL"):
    TASKS["text-to-image"] = lambda client: client.text_to_image("a boat").size
    TASKS["image-segmentation"] = lambda client: client.image_segmentation(b"picture")
    TASKS["image-to-image"] = lambda client: client.image_to_image(b"picture").size


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_client_understands_the_answer_of_hf_inference(hub: Emulator, task: str) -> None:
    hub.client.price_providers(hf_inference={"second": "0.0001"})
    client = InferenceClient(f"emulator/{task}", provider="hf-inference", api_key="hf_tester")
    assert TASKS[task](client)
    [row] = hub.client.invoice()["calls"]
    assert (row["task"], row["nano_usd"], row["provider"]) == (task, 50_000, "hf-inference")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_client_without_a_provider_finds_one_that_serves_the_task(
    hub: Emulator, task: str
) -> None:
    assert TASKS[task](InferenceClient(f"emulator/{task}", api_key="hf_tester"))
    [row] = hub.client.invoice()["calls"]
    assert row["task"] == task


@pytest.mark.parametrize("model", ["acme/anything", "Qwen/Qwen3-8B"])
def test_a_client_without_a_provider_chats_and_writes_with_an_unknown_model(
    hub: Emulator, model: str
) -> None:
    client = InferenceClient(model, api_key="hf_tester")
    say: list[Any] = [{"role": "user", "content": "hello"}]
    assert client.chat_completion(say, max_tokens=5).choices
    assert client.text_generation("once", max_new_tokens=5)


REAL_NAMES = {
    "MIT/ast-finetuned-audioset-10-10-0.4593": "audio-classification",
    "speechbrain/sepformer-wham": "audio-to-audio",
    "openai/whisper-large-v3": "automatic-speech-recognition",
    "impira/layoutlm-document-qa": "document-question-answering",
    "sentence-transformers/all-MiniLM-L6-v2": "feature-extraction",
    "BAAI/bge-m3": "feature-extraction",
    "google-bert/bert-base-uncased": "fill-mask",
    "google/vit-base-patch16-224": "image-classification",
    "mattmdjaga/segformer_b2_clothes": "image-segmentation",
    "black-forest-labs/FLUX.1-Kontext-dev": "image-to-image",
    "Salesforce/blip-image-captioning-large": "image-to-text",
    "Wan-AI/Wan2.2-I2V-A14B": "image-to-video",
    "facebook/detr-resnet-50": "object-detection",
    "deepset/roberta-base-squad2": "question-answering",
    "facebook/bart-large-cnn": "summarization",
    "google/tapas-base-finetuned-wtq": "table-question-answering",
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": "text-classification",
    "BAAI/bge-reranker-v2-m3": "text-classification",
    "meta-llama/Llama-3.2-3B-Instruct": "text-generation",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": "text-generation",
    "stabilityai/stable-diffusion-xl-base-1.0": "text-to-image",
    "hexgrad/Kokoro-82M": "text-to-speech",
    "tencent/HunyuanVideo": "text-to-video",
    "dslim/bert-base-NER": "token-classification",
    "Helsinki-NLP/opus-mt-en-fr": "translation",
    "dandelin/vilt-b32-finetuned-vqa": "visual-question-answering",
    "facebook/bart-large-mnli": "zero-shot-classification",
    "openai/clip-vit-base-patch32": "zero-shot-image-classification",
}


@pytest.mark.parametrize("model", REAL_NAMES)
def test_the_first_provider_of_a_well_known_model_serves_its_task(
    hub: Emulator, model: str
) -> None:
    info = HfApi().model_info(model, expand=["inferenceProviderMapping"])
    task, [first, *_] = REAL_NAMES[model], list(info.inference_provider_mapping or [])
    assert HfApi().model_info(model).pipeline_tag == task
    assert task in PROVIDERS[first.provider]
    assert first.task == ("conversational" if task == "text-generation" else task)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_client_understands_the_answer_of_a_dedicated_endpoint(
    emulator: Emulator, task: str
) -> None:
    made = emulator.client.add_endpoint("org/ci", state="running", model={"task": task})
    assert TASKS[task](InferenceClient(made["status"]["url"], api_key="hf_tester"))
    [row] = emulator.client.invoice()["calls"]
    assert (row["endpoint"], row["nano_usd"], row["billed"]) == ("org/ci", 0, "uptime")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_endpoint_that_was_made_for_no_task_plays_the_one_that_is_asked_of_it(
    emulator: Emulator, task: str
) -> None:
    made = emulator.client.add_endpoint("org/ci", state="running")
    asked = {"X-Emulator-Task": task}
    assert TASKS[task](InferenceClient(made["status"]["url"], api_key="hf_tester", headers=asked))
    [row] = emulator.client.invoice()["calls"]
    assert (row["task"], row["endpoint"]) == (task, "org/ci")


def test_an_endpoint_that_was_made_for_a_task_plays_no_other(emulator: Emulator) -> None:
    made = emulator.client.add_endpoint("org/ci", state="running", model={"task": "fill-mask"})
    asked = {"X-Emulator-Task": "summarization"}
    client = InferenceClient(made["status"]["url"], api_key="hf_tester", headers=asked)
    assert client.fill_mask("the <mask>")[0].token_str == "sea"


def test_an_unknown_models_task_is_guessed_from_its_name(hub: Emulator) -> None:
    client = InferenceClient(provider="hf-inference", api_key="hf_tester")
    spoken = client.automatic_speech_recognition(b"sound", model="openai/whisper-large-v3")
    assert spoken.text


def test_a_task_without_a_model_uses_the_recommended_one(hub: Emulator) -> None:
    client = InferenceClient(provider="hf-inference", api_key="hf_tester")
    assert client.summarization("a long story").summary_text == "a long story"


def test_text_generation_tells_its_tokens_when_asked_for_details(hub: Emulator) -> None:
    client = InferenceClient("org/gpt", provider="hf-inference", api_key="hf_tester")
    told = client.text_generation("once", details=True, max_new_tokens=4)
    assert told.details is not None
    assert (told.details.generated_tokens, told.details.finish_reason) == (4, "length")


def test_text_generation_streams_one_event_per_token(hub: Emulator) -> None:
    client = InferenceClient("org/gpt", provider="hf-inference", api_key="hf_tester")
    words = list(client.text_generation("once", max_new_tokens=4, stream=True))
    assert len(words) == 4
    [row] = hub.client.invoice()["calls"]
    assert (row["completion_tokens"], row["stream"]) == (4, True)


def test_text_generation_of_a_provider_is_a_plain_completion(hub: Emulator) -> None:
    hub.client.add_model(
        "org/gpt",
        providers=[
            {
                "provider": "featherless-ai",
                "task": "text-generation",
                "pricing": {"input": "1", "output": "1"},
            }
        ],
    )
    hub.client.configure(natural_tokens=8)
    client = InferenceClient("org/gpt", provider="featherless-ai", api_key="hf_tester")
    assert len(client.text_generation("once", max_new_tokens=3).split()) == 3
    [row] = hub.client.invoice()["calls"]
    assert row["nano_usd"] == (3 + 1) * 1_000 + 3 * 1_000


def picture_of(provider: str, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The bytes of a picture that a provider made; the client would make a PIL image of them."""
    from huggingface_hub.inference import _client

    kept: list[bytes] = []
    monkeypatch.setattr(_client, "_bytes_to_image", kept.append)
    client = InferenceClient("org/flux", provider=provider, api_key="hf_tester")  # type: ignore[arg-type]
    client.text_to_image("a boat")
    return kept[0]


@pytest.mark.parametrize(
    "provider", ["fal-ai", "together", "nscale", "replicate", "wavespeed", "zai-org"]
)
def test_a_picture_is_billed_by_the_piece(
    hub: Emulator, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "text-to-image" not in offered(provider):
        pytest.skip(f"this huggingface_hub makes no pictures with {provider}")
    hub.client.add_model(
        "org/flux",
        task="text-to-image",
        providers=[{"provider": provider, "price": {"image": "0.003"}}],
    )
    assert picture_of(provider, monkeypatch).startswith(b"\x89PNG")
    [row] = hub.client.invoice()["calls"]
    assert (row["task"], row["images"], row["nano_usd"]) == ("text-to-image", 1, 3_000_000)


@pytest.mark.parametrize("provider", ["fal-ai", "together", "novita"])
def test_a_film_can_be_fetched(hub: Emulator, provider: str) -> None:
    if "text-to-video" not in offered(provider):
        pytest.skip(f"this huggingface_hub makes no films with {provider}")
    hub.client.add_model("org/film", task="text-to-video", providers=[{"provider": provider}])
    client = InferenceClient("org/film", provider=provider, api_key="hf_tester")  # type: ignore[arg-type]
    assert b"ftyp" in client.text_to_video("a boat")
