"""What people rank with on CPUs, each in an environment for it: ONNX Runtime, OpenVINO, and others.

Nothing of ours can be imported here. The work is that of `rdl_study.bench.systems`; the folder of the
model has ``onnx/model.onnx``, too. ONNX Runtime and OpenVINO get what our engine gives to itself:
passages sorted by length, in batches of a token budget. Before it races, each system tries its settings
on the first list and keeps the fastest, which is its call's ``settings``.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np

_CORES = len(os.sched_getaffinity(0))
_BUDGETS, _BATCH_SIZES = (512, 1024, 2048, 4096), (8, 16, 32)


def onnxruntime(work: dict, *, int8: bool = False):
    """One session over all cores, or a batch for each core."""
    import onnxruntime as ort

    file = _file(work)
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic
        from onnxruntime.quantization.shape_inference import quant_pre_process

        ready, file = file.with_name("ready.onnx"), file.with_name("int8.onnx")
        quant_pre_process(_file(work), ready, skip_symbolic_shape=True)
        quantize_dynamic(ready, file, per_channel=True, weight_type=QuantType.QInt8)

    def open_(workers: int):
        options = ort.SessionOptions()
        options.intra_op_num_threads = _CORES // workers
        session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        pool = ThreadPoolExecutor(workers)
        return lambda feeds: pool.map(lambda feed: session.run(None, feed)[0], feeds)

    return _packed(work, open_)


def openvino(work: dict, *, precision: str):
    """One stream over all cores, or one for each; int8 is NNCF's, calibrated on the first lists."""
    import openvino as ov

    core, model = ov.Core(), ov.Core().read_model(_file(work))
    if precision == "int8":
        import nncf

        lists = (_batches(_encoded(work, **each), 1024) for each in work["lists"][:4])
        seen = nncf.Dataset([feed for batches in lists for feed, _ in batches])
        model = nncf.quantize(model, seen, model_type=nncf.ModelType.TRANSFORMER)
    hint = "bf16" if precision == "bfloat16" else "f32"

    def open_(workers: int):
        own = {"NUM_STREAMS": workers, "INFERENCE_PRECISION_HINT": hint}
        compiled = core.compile_model(model, "CPU", own | {"INFERENCE_NUM_THREADS": _CORES})

        def infer(feeds: list) -> list:
            logits, queue = {}, ov.AsyncInferQueue(compiled, workers)

            def keep(request: ov.InferRequest, n: int) -> None:
                logits[n] = request.get_output_tensor(0).data.copy()

            queue.set_callback(keep)
            for n, feed in enumerate(feeds):
                queue.start_async(feed, n)
            queue.wait_all()
            return [logits[n] for n in range(len(feeds))]

        return infer

    return _packed(work, open_)


def sentence_transformers(work: dict):
    """Its ``CrossEncoder`` with ``backend="onnx"``."""
    from sentence_transformers import CrossEncoder

    file = {"provider": "CPUExecutionProvider", "file_name": "onnx/model.onnx"}
    own = {"max_length": work["pair_tokens"], "local_files_only": True, "model_kwargs": file}
    model = CrossEncoder(work["model"], backend="onnx", **own)

    def rank(query: str, passages: list[str], size: int):
        return model.predict([(query, x) for x in passages], batch_size=size, show_progress_bar=False)

    return _quickest(work, rank, _BATCH_SIZES)


def fastembed(work: dict):
    """Its ``TextCrossEncoder`` over the same ONNX file."""
    from fastembed.common.model_description import ModelSource
    from fastembed.rerank.cross_encoder import TextCrossEncoder

    TextCrossEncoder.add_custom_model("student", ModelSource(hf="none"), model_file="onnx/model.onnx")
    model = TextCrossEncoder("student", specific_model_path=work["model"], threads=_CORES)

    def rank(query: str, passages: list[str], size: int):
        return np.array(list(model.rerank(query, passages, batch_size=size)))

    return _quickest(work, rank, _BATCH_SIZES)


def infinity(work: dict):
    """Its engine on PyTorch, which batches by itself."""
    from infinity_emb import EngineArgs, SyncEngineArray

    own = {"engine": "torch", "device": "cpu", "bettertransformer": False, "model_warmup": False}

    def open_(size: int):
        arguments = EngineArgs(model_name_or_path=work["model"], batch_size=size, **own)
        return SyncEngineArray.from_args([arguments])

    engines = {size: open_(size) for size in (8, 32)}

    def rank(query: str, passages: list[str], size: int):
        answer = engines[size].rerank(model=work["model"], query=query, docs=passages, raw_scores=True)
        ranked = sorted(answer.result()[0], key=lambda x: x.index)
        return np.array([x.relevance_score for x in ranked])

    return _quickest(work, rank, tuple(engines))


def _file(work: dict) -> Path:
    return Path(work["model"]) / "onnx" / "model.onnx"


def _encoded(work: dict, query: str, passages: list[str]) -> list:
    """Pairs as tokens; of one too long, the passage is cut."""
    from tokenizers import Tokenizer

    tokenizer = _encoded.__dict__.setdefault(  # loaded once
        "tokenizer", Tokenizer.from_file(str(Path(work["model"]) / "tokenizer.json")))  # fmt: skip
    tokenizer.no_padding()
    tokenizer.enable_truncation(work["pair_tokens"], strategy="only_second")
    return tokenizer.encode_batch([(query, text) for text in passages])


def _batches(encoded: list, budget: int) -> list:
    """Inputs of at most so many tokens, the longest first, and the places of their pairs."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids))
    batches, start = [], 0
    while start < len(order):
        width = len(encoded[order[start]].ids)
        places = order[start : start + max(1, budget // width)]
        start += len(places)
        feed = {"input_ids": "ids", "token_type_ids": "type_ids", "attention_mask": "attention_mask"}
        arrays = {name: np.zeros((len(places), width), np.int64) for name in feed}
        for row, place in enumerate(places):
            for name, field in feed.items():
                values = getattr(encoded[place], field)
                arrays[name][row, : len(values)] = values
        batches.append((arrays, places))
    return batches


def _packed(work: dict, open_):
    """A ranker over sorted batches, with the fastest number of workers and token budget."""
    runs = {workers: open_(workers) for workers in sorted({1, _CORES})}

    def rank(query: str, passages: list[str], setting: tuple[int, int]):
        workers, budget = setting
        feeds, places = zip(*_batches(_encoded(work, query, passages), budget), strict=True)
        scores = np.empty(len(passages), np.float32)
        for batch, logits in zip(places, runs[workers](list(feeds)), strict=True):
            scores[batch] = logits[:, 0]
        return scores

    return _quickest(work, rank, tuple(product(runs, _BUDGETS)))


def _quickest(work: dict, rank, settings: tuple):
    """A call with the setting that ranks the first list fastest the second time."""

    def seconds(setting) -> float:
        times = []
        for _ in range(2):
            started = time.perf_counter()
            rank(*work["lists"][0].values(), setting)
            times.append(time.perf_counter() - started)
        return times[1]

    best = min(settings, key=seconds)

    def call(number: int):
        return rank(*work["lists"][number].values(), best)

    call.settings = best
    return call
