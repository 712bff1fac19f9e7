"""A local LLM as teacher: tiny models with random weights, made from a configuration.

The tokenizers are two: ByT5's bytes (identifiers of three or four tokens, ``[1`` begins ``[10]``)
and whole words (an identifier is one token).

These 39 mutations were tried, one at a time, and each fails a test here:

- local_llm: the wrong one struck out; end allowed early; separator forgotten; beginnings not
  refused; limit one short; constraint dropped; grammar of the first row for all; prompt taken for
  answer; padded on the right; padding not masked; answers not reordered; worst first; letters of
  all windows; lower-case letters; no opening bracket; numbers shown in first_token; two tokens
  generated; penalties of the model; sampling of the model; retries greedy; global random state; one
  seed for all attempts; special tokens added; no begin token; template ignored; no generation
  prompt; options dropped; thoughts stay open; thoughts closed in free mode; passages not cut to
  fit; no room for the answer; end kept in the text; special tokens skipped; limit of the batch;
  max_new_tokens ignored; name without mode; tokenizer not tried; letters not checked; end not
  checked.
"""

import random
import re
from itertools import permutations

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import (
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rdl_core.teachers.listwise import rank_lists
from rdl_core.teachers.local_llm import MODES, LocalLLM, PermutationGrammar
from rdl_core.teachers.answers import Window, identifiers, read_answer
from rdl_core.teachers.replay import AnswerLog

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}{{ ending }}"
)
few = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def bytes_tokenizer(template=None):
    tokenizer = ByT5Tokenizer(extra_ids=0)
    tokenizer.chat_template = template
    return tokenizer


def words_tokenizer(names):
    """Identifiers and letters are one token each; other words are unknown."""
    pieces = ["<pad>", "</s>", "<unk>", ">", "[", *names]
    tokenizer = Tokenizer(models.WordLevel({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def llama(seed=0, *, vocab=259, context=4096, layers=2):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=32, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=context,
        initializer_range=0.3, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2(seed=0, *, vocab=259, context=4096):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_embd=16, n_layer=1, n_head=2, n_positions=context,
        initializer_range=0.3, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def windows(sizes, words=4):
    draw = random.Random(0)
    for q, n in enumerate(sizes):
        lengths = [draw.randint(1, words) for _ in range(n)]
        texts = tuple(" ".join(draw.choices("abcdefgh", k=length)) for length in lengths)
        docs = tuple(f"d{i}" for i in range(n))
        yield Window(query_id=f"q{q}", query=f"query {q}", doc_ids=docs, passages=texts)


def frame(sizes):
    rows = [
        {"query_id": w.query_id, "query": w.query, "doc_id": d, "text": t, "rank": i + 1}
        for w in windows(sizes) for i, (d, t) in enumerate(zip(w.doc_ids, w.passages))
    ]  # fmt: skip
    return pd.DataFrame(rows)


class Forwards:
    """Counts the model's forward passes, and the sequences in each."""

    def __init__(self, model):
        self.sizes = []
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _model, _args, kwargs):
        self.sizes.append(tuple(kwargs["input_ids"].shape))


# --- grammar ------------------------------------------------------------------------------------


@few
@given(order=st.permutations(range(12)))
def test_a_grammar_allows_each_permutation_to_its_end_and_nothing_else(order):
    first = [tuple(name.encode()) for name in identifiers(12)]
    following = [tuple(f" > {name}".encode()) for name in identifiers(12)]
    grammar = PermutationGrammar(first, following, end=1)
    whole = [*first[order[0]], *(t for i in order[1:] for t in following[i])]
    for k, token in enumerate(whole):
        allowed = grammar.allowed(whole[:k])
        assert token in allowed
        assert 1 not in allowed
        assert allowed == sorted(set(allowed))
    assert grammar.allowed(whole) == grammar.allowed([*whole, 1]) == [1]
    assert len(whole) + 1 == grammar.max_tokens


def test_a_grammar_offers_only_identifiers_not_written_yet():
    grammar = PermutationGrammar([(9, i) for i in range(4)], [(8, 9, i) for i in range(4)], end=7)
    for order in permutations(range(4), 3):
        written = [9, order[0]]
        for i in order[1:]:
            assert grammar.allowed(written) == [8]
            written += [8, 9, i]
        assert grammar.allowed([*written, 8, 9]) == sorted(set(range(4)) - set(order))


@pytest.mark.parametrize("first", [[(1,), (1,)], [(1,), (1, 2)], [(3, 1, 2), (3,)]])
def test_identifiers_that_tokens_do_not_tell_apart_are_refused(first):
    with pytest.raises(ValueError, match="2 identifiers of different tokens.*use mode 'free'"):
        PermutationGrammar(first, [(1,), (2,)], end=0)
    with pytest.raises(ValueError, match="2 identifiers of different tokens.*use mode 'free'"):
        PermutationGrammar([(1,), (2,)], first, end=0)


# --- caches -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_keys_and_values_kept_in_place_give_the_same_answers(mode):
    model, kinds = llama(), set()
    model.register_forward_pre_hook(
        lambda _model, _args, kwargs: kinds.add(type(kwargs["past_key_values"]).__name__),
        with_kwargs=True,
    )
    asked, answers = list(windows([3, 7, 5])), []
    for cache in (None, "static"):
        llm = LocalLLM(model, bytes_tokenizer(), mode=mode, batch_size=2, cache=cache)
        answers.append(dict(llm.ask(asked)))
    assert answers[0] == answers[1]
    assert kinds == {"DynamicCache", "StaticCache"}


# --- constrained --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_constrained_answers_of_random_models_are_all_clean_permutations(make, template):
    sizes, orders = [2, 20, 5, 11, 9, 3], set()
    for seed in range(3):
        llm = LocalLLM(make(seed), bytes_tokenizer(template), mode="constrained", batch_size=4)
        asked = list(windows(sizes))
        answers = dict(llm.ask(asked))
        assert sorted(answers) == list(range(6))
        for number, window in enumerate(asked):
            n = len(window.passages)
            text = answers[number].text
            assert re.fullmatch(r"\[\d+\]( > \[\d+\])*", text)
            assert sorted(map(int, re.findall(r"\d+", text))) == list(range(1, n + 1))
            assert read_answer(text, n).status == "clean"
            assert answers[number].output_tokens == len(text) + 1
            orders.add(text)
    assert len(orders) > 10  # these models do not all write the same


def test_unconstrained_the_same_model_writes_no_permutation():
    asked = list(windows([20, 5]))
    answers = dict(LocalLLM(llama(), bytes_tokenizer()).ask(asked))
    assert all(read_answer(answers[i].text, len(asked[i].passages)).n_missing for i in (0, 1))


def test_constrained_answers_follow_the_model():
    """Among identifiers of one token, greedy decoding takes the best that is left, one by one."""
    names = identifiers(6)
    tokenizer = words_tokenizer(names)
    model = llama(vocab=len(tokenizer))
    [window] = windows([6])
    llm = LocalLLM(model, tokenizer, mode="constrained")
    answer = dict(llm.ask([window]))[0]
    tokens, left, order = list(llm._prompt(0, window).tokens), list(range(6)), []
    while left:
        logits = model(torch.tensor([tokens])).logits[0, -1]
        if order:
            tokens += tokenizer.encode(">")
            logits = model(torch.tensor([tokens])).logits[0, -1]
        best = max(left, key=lambda i: logits[tokenizer.convert_tokens_to_ids(names[i])])
        left.remove(best)
        order.append(names[best])
        tokens += tokenizer.encode(names[best])
    assert answer.text.split(" > ") == order != names


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_answers_as_each_window_alone(mode):
    asked = list(windows([3, 8, 12, 2, 7]))
    model = llama(seed=3)
    together = dict(LocalLLM(model, bytes_tokenizer(), mode=mode, batch_size=5).ask(asked))
    for number, window in enumerate(asked):
        alone = dict(LocalLLM(model, bytes_tokenizer(), mode=mode, batch_size=1).ask([window]))[0]
        assert (alone.text, alone.order) == (together[number].text, together[number].order)
        assert alone.input_tokens == together[number].input_tokens


def test_penalties_in_a_models_own_settings_do_not_change_answers():
    """A penalty on what was said before strikes identifiers, since the prompt names them all."""
    asked, texts = list(windows([9, 4])), []
    for penalty in (1.0, 5.0):
        model = llama(seed=1)
        model.generation_config.repetition_penalty = penalty
        model.generation_config.do_sample = penalty > 1
        model.generation_config.no_repeat_ngram_size = int(penalty > 1)
        answers = dict(LocalLLM(model, bytes_tokenizer(), mode="constrained").ask(asked))
        texts.append([answers[i].text for i in (0, 1)])
    assert texts[0] == texts[1]


# --- first token --------------------------------------------------------------------------------


def test_first_token_mode_takes_one_forward_pass_per_window():
    """Seven windows, three at a time: three passes over 3 + 3 + 1 sequences, nothing generated."""
    model = llama()
    forwards = Forwards(model)
    asked = list(windows([20, 3, 7, 20, 2, 11, 5]))
    llm = LocalLLM(model, bytes_tokenizer(), mode="first_token", batch_size=3)
    answers = dict(llm.ask(asked))
    assert [rows for rows, _ in forwards.sizes] == [3, 3, 1]
    assert sum(answer.n_calls for answer in answers.values()) == 7
    for number, window in enumerate(asked):
        assert sorted(answers[number].order) == list(range(len(window.passages)))
        assert answers[number].output_tokens == 0


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["plain", "chat"])
def test_first_token_order_is_that_of_the_letters_logits(template):
    model, tokenizer = llama(), bytes_tokenizer(template)
    llm = LocalLLM(model, tokenizer, mode="first_token")
    [window] = windows([20])
    tokens = llm._prompt(0, window).tokens
    text = tokenizer.decode(tokens)
    assert text.endswith("<|assistant|>[" if template else "\n\nRanking: [")
    assert "\n[T] " in text
    logits = model(torch.tensor([tokens])).logits[0, -1]
    scores = [logits[byte + 3].item() for byte in b"ABCDEFGHIJKLMNOPQRST"]
    expected = sorted(range(20), key=lambda i: -scores[i])
    assert list(dict(llm.ask([window]))[0].order) == expected != list(range(20))


def test_equal_logits_keep_the_order_shown():
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    llm = LocalLLM(model, bytes_tokenizer(), mode="first_token")
    assert [dict(llm.ask([w]))[0].order for w in windows([9])] == [tuple(range(9))]


def test_first_token_mode_has_letters_for_26_passages():
    llm = LocalLLM(llama(), bytes_tokenizer(), mode="first_token")
    assert len(dict(llm.ask(list(windows([26]))))[0].order) == 26
    with pytest.raises(ValueError, match="at most 26 passages where letters name them, got 27"):
        list(llm.ask(list(windows([27]))))


def test_tokenizers_without_letters_or_identifiers_are_refused():
    tokenizer = words_tokenizer(identifiers(3))
    model = llama(vocab=len(tokenizer))
    with pytest.raises(ValueError, match="a token for each letter.*use mode 'constrained'"):
        list(LocalLLM(model, tokenizer, mode="first_token").ask(list(windows([3]))))
    with pytest.raises(ValueError, match=r"can write '\[1\] > .* > \[4\]'.*use mode 'free'"):
        list(LocalLLM(model, tokenizer, mode="constrained").ask(list(windows([4]))))


# --- prompts ------------------------------------------------------------------------------------


def prompt_of(window, template=None, model=None, **own):
    llm = LocalLLM(model or llama(), bytes_tokenizer(template), **own)
    return llm.tokenizer.decode(llm._prompt(0, window).tokens)


def test_a_chat_template_is_used_where_there_is_one():
    [window] = windows([2])
    chat, plain = prompt_of(window, TEMPLATE), prompt_of(window)
    assert chat.startswith("<|user|>Query: query 0\n\n[1] ")
    assert chat.endswith("<|assistant|>")
    assert plain == chat.removeprefix("<|user|>").removesuffix("<|assistant|>") + "\n\nRanking: "


def test_a_plain_prompt_has_a_begin_token_if_there_is_one_and_never_an_end_token():
    [window] = windows([2])
    llm = LocalLLM(llama(), bytes_tokenizer())
    assert 1 not in llm._prompt(0, window).tokens
    llm.tokenizer.bos_token = "</s>"  # as GPT-2's, begin and end are one token
    assert [i for i, token in enumerate(llm._prompt(0, window).tokens) if token == 1] == [0]


def test_options_reach_the_chat_template_and_thinking_is_off():
    [window] = windows([2])
    assert prompt_of(window, TEMPLATE, chat_options={"ending": "Well, "}).endswith("Well, ")
    switch = TEMPLATE + "{% if enable_thinking %}<think>{% endif %}"
    assert not prompt_of(window, switch).endswith("<think>")


@pytest.mark.parametrize("mode", MODES)
def test_a_thought_that_the_template_opens_is_closed_where_nothing_may_be_thought(mode):
    """One-token scoring that reads "<think>" leaves every list as it was (lilbee#503)."""
    [window] = windows([2])
    text = prompt_of(window, TEMPLATE + "<think>\n", mode=mode)
    ending = {"free": "<think>", "constrained": "</think>\n\n", "first_token": "</think>\n\n["}
    assert text.removesuffix("\n" if mode == "free" else "").endswith(ending[mode])


def test_passages_are_cut_alike_until_the_prompt_fits(caplog):
    long = Window(
        query_id="q", query="x", doc_ids=("a", "b"), passages=("long " * 400, "short one")
    )
    caplog.set_level("INFO")
    for context in range(700, 1000, 20):  # "[1] > [2]" and 32 more must fit behind the prompt
        text = prompt_of(long, model=llama(context=context, layers=1))
        assert context * 0.7 < len(text) <= context - 9 - 32
        assert "[2] short one" in text
    assert "query q: passages cut to" in caplog.text
    assert prompt_of(long, max_words=30).count("long") == 30


@pytest.mark.parametrize("mode", MODES)
def test_windows_that_cannot_fit_are_refused_by_name(mode):
    with pytest.raises(ValueError, match=r"at most \d+ tokens, query 'q0' has .*a smaller window"):
        list(LocalLLM(llama(context=300), bytes_tokenizer(), mode=mode).ask([*windows([20], 40)]))


# --- answers, retries, the whole way ------------------------------------------------------------


def saying(text, tokenizer=None):
    """A model that writes one text, whatever the prompt, then ends."""
    tokenizer = tokenizer or bytes_tokenizer()
    tokens = [*tokenizer.encode(text, add_special_tokens=False), 1]
    model = llama(vocab=len(tokenizer))
    width = []

    def speak(_model, _args, kwargs, output):
        if kwargs["input_ids"].shape[1] > 1:
            width.append(-1)
        width[-1] += 1
        output.logits[:] = -50.0
        output.logits[:, -1, tokens[width[-1]]] = 50.0
        return output

    model.register_forward_hook(speak, with_kwargs=True)
    return model


def test_free_answers_are_what_the_model_wrote_up_to_its_end():
    text = "<think>[1]?</think> [2] > [1]"
    answers = dict(LocalLLM(saying(text), bytes_tokenizer()).ask(list(windows([2, 2]))))
    for answer in answers.values():
        assert answer.text == text
        assert answer.output_tokens == len(text) + 1
        assert answer.read(2).order == (1, 0)


def test_free_answers_end_at_the_limit():
    llm = LocalLLM(saying("[2] > [1]"), bytes_tokenizer(), max_new_tokens=4)
    [(_, answer)] = llm.ask(list(windows([2])))
    assert (answer.text, answer.output_tokens) == ("[2] ", 4)


def test_thoughts_are_dropped_also_where_their_tags_are_special_tokens():
    text = "<think>[1] > [2]</think>[2] > [1]"
    tokenizer = bytes_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert len(tokenizer.encode("<think>", add_special_tokens=False)) == 1
    half = "<think>[1] > [2]</think>[2]"
    for said, order in [(text, (1, 0)), (half, (1, 0))]:
        [(_, answer)] = LocalLLM(saying(said, tokenizer), tokenizer).ask(list(windows([2])))
        assert answer.text == said
        assert answer.read(2).order == order


def test_what_is_asked_again_is_sampled_and_the_same_each_time():
    [window] = windows([4])
    llm = LocalLLM(llama(), bytes_tokenizer())
    before = torch.random.get_rng_state()
    texts = {}
    for attempt in (0, 1, 2, 1, 0):
        again = Window(**{**window.__dict__, "attempt": attempt})
        texts.setdefault(attempt, set()).add(dict(llm.ask([again]))[0].text)
    assert [len(said) for said in texts.values()] == [1, 1, 1]
    assert len(set.union(*texts.values())) == 3
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("mode", MODES)
def test_the_whole_way_from_candidates_to_teacher_ranks(tmp_path, mode):
    candidates, sizes = frame([12, 7, 1]), {"window_size": 6, "stride": 3}
    reports = []
    for _ in range(2):  # the second time, the log answers
        llm = LocalLLM(llama(), bytes_tokenizer(), mode=mode, batch_size=2)
        log = AnswerLog(tmp_path / "answers.jsonl", teacher=llm.name)
        forwards = Forwards(llm.model)
        ranked, report = rank_lists(candidates, llm, answers=log, **sizes)
        reports.append(report)
        for _, rows in ranked.groupby("query_id"):
            assert sorted(rows["teacher_rank"]) == list(range(1, len(rows) + 1))
    assert not forwards.sizes
    pd.testing.assert_frame_equal(*reports)
    assert report["n_windows"].tolist() == [3, 2, 0]
    if mode != "free":
        assert report["n_clean"].tolist() == report["n_calls"].tolist() == [3, 2, 0]
        assert (ranked["teacher_rank"] != ranked["rank"]).any()


def test_a_model_is_loaded_from_a_folder(tmp_path):
    llama().save_pretrained(tmp_path)
    words_tokenizer(identifiers(3)).save_pretrained(tmp_path)
    llm = LocalLLM.load(str(tmp_path), device="cpu", precision="float32", mode="constrained")
    assert llm.model.dtype == torch.float32
    assert dict(llm.ask(list(windows([3]))))[0].read(3).status == "clean"
    assert str(tmp_path) in llm.name
    assert llm.name != LocalLLM.load(str(tmp_path), device="cpu", mode="first_token").name


def test_unknown_modes_and_models_without_an_end_are_refused():
    with pytest.raises(ValueError, match="a mode among .*'first_token'.*got 'greedy'"):
        LocalLLM(llama(), bytes_tokenizer(), mode="greedy")
    model, tokenizer = llama(), words_tokenizer(["[1]"])
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    with pytest.raises(ValueError, match="end-of-sequence token.*set tokenizer.eos_token"):
        LocalLLM(model, tokenizer)
