"""Caps around blocks of code, written as for shekel; the import is another one, and one cap."""

from huggingface_hub import InferenceClient

from pytest_hfbudget import BudgetExceededError, budget

client = InferenceClient()


def test_a_block():
    with budget(
        max_usd=1.00,
        price_per_1k_tokens={"input": 0.001, "output": 0.001},
    ) as b:
        response = client.chat.completions.create(
            model="meta-llama/Llama-3.2-1B-Instruct",
            messages=[{"role": "user", "content": "Explain transformers in one sentence."}],
            max_tokens=50,
        )
        print(response.choices[0].message.content)
        print(f"Cost: ${b.spent:.6f}")

    assert 0 < b.spent < b.limit


def test_a_stream():
    with budget(
        max_usd=1.00,
        price_per_1k_tokens={"input": 0.001, "output": 0.001},
    ) as b:
        full_text = ""
        for chunk in client.chat.completions.create(
            model="meta-llama/Llama-3.2-1B-Instruct",
            messages=[{"role": "user", "content": "List three ML frameworks."}],
            max_tokens=60,
            stream=True,
        ):
            delta = chunk.choices[0].delta.content
            if delta:
                full_text += delta
                print(delta, end="", flush=True)
        print()
        print(f"Cost: ${b.spent:.6f}")

    # The plugin asks for the stream's usage, so what it costs is known.
    assert full_text
    assert b.spent > 0


def test_nested_blocks():
    with budget(  # noqa: SIM117
        max_usd=5.00,
        name="pipeline",
        price_per_1k_tokens={"input": 0.001, "output": 0.001},
    ) as total:
        with budget(
            max_usd=1.00,
            name="step-1",
            price_per_1k_tokens={"input": 0.001, "output": 0.001},
        ) as step1:
            client.chat.completions.create(
                model="meta-llama/Llama-3.2-1B-Instruct",
                messages=[{"role": "user", "content": "Summarise this document."}],
                max_tokens=100,
            )
            assert total.spent == step1.spent  # at once, not when the inner block ends

    print(f"Step 1: ${step1.spent:.6f}")
    print(f"Total:  ${total.spent:.6f}")


def test_enforcement():
    stopped = None
    try:
        with budget(
            max_usd=0.001,
            price_per_1k_tokens={"input": 0.001, "output": 0.001},
        ) as b:
            for _ in range(100):  # stops when the next call would not fit
                client.chat.completions.create(
                    model="meta-llama/Llama-3.2-1B-Instruct",
                    messages=[{"role": "user", "content": "Analyse this."}],
                    max_tokens=50,
                )
    except BudgetExceededError as e:
        stopped = e
        print(f"Stopped at ${e.spent:.4f}")

    assert stopped is not None
    assert b.spent <= b.limit
