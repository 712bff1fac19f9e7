"""A local LLM as teacher: tiny models with random weights, made from a configuration."""

import random
from dataclasses import replace

import pytest
import torch
import transformers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from rdl_core.teachers.answers import Window, identifiers
from rdl_core.teachers.local_llm import LocalLLM

modes = pytest.mark.parametrize("mode", ["free", "first_token"])
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}<|assistant|>{% endif %}"


def bytes_tokenizer(template=None):
    """Identifiers are three or four tokens each."""
    tokenizer = transformers.ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = template
    return tokenizer


def words_tokenizer(names):
    """Identifiers and letters are one token each; other words are unknown."""
    pieces = ["<pad>", "</s>", "<unk>", ">", "[", *names]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def llama(seed=0, *, vocab=259, context=4096):
    torch.manual_seed(seed)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=context,
        initializer_range=0.3, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    ))  # fmt: skip


def windows(sizes, words=4):
    draw, windows = random.Random(0), []
    for q, n in enumerate(sizes):
        texts = tuple(" ".join(draw.choices("abcdefgh", k=draw.randint(1, words))) for _ in range(n))
        ids = tuple(f"d{i}" for i in range(n))
        windows.append(Window(query_id=f"q{q}", query=f"query {q}", doc_ids=ids, passages=texts))
    return windows


def ask(windows, model=None, tokenizer=None, **own):
    answers = dict(LocalLLM(model or llama(), tokenizer or bytes_tokenizer(), **own).ask(windows))
    return [answers[number] for number in range(len(windows))]


def watch(model, see):
    model.register_forward_pre_hook(lambda _model, _args, inputs: see(inputs), with_kwargs=True)


def prompt_of(window, template=None, model=None, **own):
    llm = LocalLLM(model or llama(), bytes_tokenizer(template), **own)
    return llm.tokenizer.decode(llm._prompt(window))


@modes
def test_a_batch_answers_as_each_window_alone_and_so_do_values_kept_in_place(mode):
    asked, model, kinds = windows([3, 8, 11, 2]), llama(seed=3), set()
    watch(model, lambda inputs: kinds.add(type(inputs["past_key_values"]).__name__))
    together = ask(asked, model, mode=mode, batch_size=4)
    assert together == [ask([window], model, mode=mode)[0] for window in asked]
    assert together == ask(asked, model, mode=mode, batch_size=2, cache="static")
    assert kinds == {"DynamicCache", "StaticCache"}
    # A penalty on what was said before strikes identifiers, since the prompt names them all.
    own = {"repetition_penalty": 5.0, "do_sample": True, "no_repeat_ngram_size": 1}
    model.generation_config.update(**own)
    assert together == ask(asked, model, mode=mode, batch_size=4)


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_first_token_order_is_that_of_the_letters_logits_in_one_forward_pass(template):
    """Seven windows, three at a time: three passes over 3 + 3 + 1 sequences, nothing generated."""
    model, sizes, asked = llama(), [], windows([20, 3, 7, 20, 2, 11, 5])
    text = prompt_of(asked[0], template, mode="first_token")
    tokens = bytes_tokenizer().encode(text, add_special_tokens=False)
    logits = model(torch.tensor([tokens])).logits[0, -1]
    scores = [logits[byte + 3].item() for byte in b"ABCDEFGHIJKLMNOPQRST"]
    watch(model, lambda inputs: sizes.append(len(inputs["input_ids"])))
    answers = ask(asked, model, bytes_tokenizer(template), mode="first_token", batch_size=3)
    assert sizes == [3, 3, 1]
    assert list(answers[0].order) == sorted(range(20), key=lambda i: -scores[i]) != list(range(20))
    sizes = [len(window.passages) for window in asked]
    assert [sorted(answer.order) for answer in answers] == [[*range(n)] for n in sizes]
    assert {(answer.n_calls, answer.output_tokens) for answer in answers} == {(1, 0)}
    torch.nn.init.zeros_(model.lm_head.weight)  # equal logits keep the order shown
    assert ask(asked[:1], model, mode="first_token")[0].order == tuple(range(20))


def test_what_a_tokenizer_or_model_cannot_do_is_refused():
    three = words_tokenizer(identifiers(3))
    model = llama(vocab=len(three))
    with pytest.raises(ValueError, match="lacks a letter's token: use mode 'free'"):
        ask(windows([3]), model, three, mode="first_token")
    model.generation_config.eos_token_id = three.eos_token = None
    with pytest.raises(ValueError, match="no end token: set tokenizer.eos_token"):
        LocalLLM(model, three)


@modes
def test_a_chat_template_is_used_and_a_thought_closed_where_nothing_may_be_thought(mode):
    """One-token scoring that reads "<think>" leaves every list as it was (lilbee#503)."""
    [window], own, opened = windows([2]), {"mode": mode}, "[" * (mode == "first_token")
    text = prompt_of(window, TEMPLATE, **own)
    assert text.startswith(f"<|user|>Query: query 0\n\n[{'A' if opened else 1}] ")
    assert text.endswith("nothing else.<|assistant|>" + opened)
    assert prompt_of(window, **own).endswith("nothing else.\n\nRanking: " + opened)
    thinking = prompt_of(window, TEMPLATE + "<think>\n", **own)
    assert thinking.endswith("<think>\n</think>\n\n[" if opened else "<|assistant|><think>")
    switch = TEMPLATE + "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}"
    assert "<think>" not in prompt_of(window, switch, **own)
    llm = LocalLLM(llama(), bytes_tokenizer(), **own)
    assert 1 not in llm._prompt(window)
    llm.tokenizer.bos_token = "</s>"  # as GPT-2's, begin and end are one token
    assert [i for i, token in enumerate(llm._prompt(window)) if token == 1] == [0]


def test_passages_are_cut_alike_until_the_prompt_fits(caplog):
    texts = ("long " * 400, "short one")
    long = Window(query_id="q", query="x", doc_ids=("a", "b"), passages=texts)
    caplog.set_level("INFO")
    for context in range(700, 1000, 60):  # "[1] > [2]" and 32 more must fit behind the prompt
        text = prompt_of(long, model=llama(context=context))
        assert context * 0.7 < len(text) <= context - 9 - 32
        assert "[2] short one" in text
    assert "query q: passages cut to" in caplog.text
    assert prompt_of(long, max_words=30).count("long") == 30
    for mode in ("free", "first_token"):
        with pytest.raises(ValueError, match=r"query 'q0' has \d+ tokens .*at most .*smaller window"):
            ask(windows([20], 40), llama(context=300), mode=mode)


def saying(text, tokenizer):
    """A model that writes one text, whatever the prompt, then ends."""
    tokens = [*tokenizer.encode(text, add_special_tokens=False), 1]
    model, written = llama(vocab=len(tokenizer)), []

    def speak(_model, _args, kwargs, output):
        if kwargs["input_ids"].shape[1] > 1:
            written.clear()
        output.logits[:] = -50.0
        output.logits[:, -1, tokens[len(written)]] = 50.0
        written.append(1)
        return output

    model.register_forward_hook(speak, with_kwargs=True)
    return model


@pytest.mark.parametrize("special", [[], ["<think>", "</think>"]])
def test_free_answers_are_what_the_model_wrote_thoughts_included_up_to_its_end(special):
    """Where tags of thoughts are special tokens, too: dropping those would make thoughts votes."""
    tokenizer, text = bytes_tokenizer(), "<think>[1] > [2]</think>[2]"
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokens = tokenizer.encode(text, add_special_tokens=False)
    assert (len(tokens) < len(text)) == bool(special)
    for answer in ask(windows([2, 2]), saying(text, tokenizer), tokenizer):
        assert (answer.text, answer.output_tokens) == (text, len(tokens) + 1)
        assert answer.read(2).order == (1, 0)
    [short] = ask(windows([2]), saying("[2] > [1]", tokenizer), tokenizer, max_new_tokens=4)
    assert (short.text, short.output_tokens) == ("[2] ", 4)


def test_what_is_asked_again_is_sampled_and_the_same_each_time():
    [window], model, before = windows([4]), llama(), torch.random.get_rng_state()
    asked = [replace(window, attempt=attempt) for attempt in (0, 1, 2)]
    texts = [ask([x], model)[0].text for x in [*asked, *asked[::-1]]]
    assert texts == texts[::-1]
    assert len(set(texts)) == 3
    assert torch.equal(before, torch.random.get_rng_state())
