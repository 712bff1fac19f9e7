"""A student laid out for scoring on a CPU: the same weights, arranged once for oneDNN's kernels.

PyTorch arranges weights anew for each float32 product. As 8-bit integers, they need a quarter of the
memory traffic. Each core takes batches of its own. The operators are those of ``torch.compile``,
without its C++ compiler. `rdl bench engine` says what each of these saves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Barrier, local
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation

from rdl_core.cross_encoder import CrossEncoder
from rdl_core.devices import PRECISIONS, cpu_has
from rdl_core.tokens import TokenStore

__all__ = ["Engine", "engine", "has_operators", "laid_out"]

_FILL = 64  # oneDNN makes a kernel for each number of rows and keeps it: few numbers are better
_ROWS = 4096  # tokens that oneDNN lays weights out for; others work, too
# Added to a small float32, it rounds it into the last byte, four times as fast as PyTorch does.
_LAST_BYTE = 2.0**23
_MOST_WORKERS = 8  # each needs the memory of a batch
_LOWEST_OF_GELU = 0.17  # without its sign, rounded up
_PROJECTIONS = "query", "key", "value"


@dataclass(frozen=True)
class Engine:
    """A student that only scores; made by `engine`."""

    student: CrossEncoder
    options: dict[str, Any]  #: Further arguments of `CrossEncoder.score`.

    @torch.inference_mode()
    def score(self, *pairs: TokenStore | Tensor, token_budget: int) -> Tensor:
        """Scores of pairs, float32 ``[n]``; arguments as for `CrossEncoder.score`."""
        return self.student.score(*pairs, token_budget=token_budget, **self.options)


def engine(
    student: CrossEncoder, precision: str, *, fill: int = _FILL, workers: int | None = None
) -> Engine:
    """Lay a student out for scoring; on other devices than a CPU it scores as it is.

    The student does not change; it shares the weights that are not laid out anew. `precision` is a key
    of `rdl_core.devices.PRECISIONS` or ``"int8"``: weights with a scale for each output, activations
    with one for each token, so that a score does not depend on its batch; the rest in float32. (On an
    x86 processor without VNNI, weights have 7 bits, as its sums of products saturate.) Batches are
    padded to a multiple of `fill` tokens; each of `workers` threads, by default one a core up to 8,
    takes one. ValueError for ``"int8"`` without CPU or oneDNN.
    """
    if not (student.device.type == "cpu" and has_operators(precision)):
        if precision == "int8":
            told = f"precision: int8 needs a CPU and PyTorch with oneDNN, got {student.device.type!r}"
            raise ValueError(f"{told}: choose {' or '.join(PRECISIONS)}")
        return Engine(student.eval(), {"precision": precision})
    # Parameters are shared, as the copying is told that they are copied.
    shared = {id(x): x for x in (*student.parameters(), *student.buffers())}
    copied = copy.deepcopy(student, shared).eval()
    model, names = copied.model, {module: name for name, module in copied.model.named_modules()}
    as_they_are = {name.removesuffix(".weight") for name in copied.head_names()}
    # Projections become one product, except in the last layer, whose queries are of first positions
    # alone, and whose weights `attend_first_to_states` reads.
    attentions = [x for x in names if all(hasattr(x, name) for name in _PROJECTIONS)]
    as_they_are |= {names[x] for last in attentions[-1:] for x in (last.key, last.value)}
    for attention in attentions[:-1]:
        _join(attention, precision)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name not in as_they_are:
            model.set_submodule(name, laid_out(module, precision))
    for layer in model.modules():
        between = getattr(layer, "intermediate", None)
        if isinstance(getattr(between, "intermediate_act_fn", None), GELUActivation):
            between.dense.gelu, layer.output.dense.after_gelu = True, True
            between.intermediate_act_fn = nn.Identity()
    workers = workers or min(torch.get_num_threads(), _MOST_WORKERS)
    run = map if workers == 1 else _in_threads
    rest = "float32" if precision == "int8" else precision
    return Engine(copied, {"precision": rest, "fill": fill, "workers": workers, "run": run})


def has_operators(precision: str = "float32") -> bool:
    """Whether this PyTorch has oneDNN, with the operators used here, for this CPU and a precision."""
    used = (torch.ops.mkldnn, "_linear_pointwise"), (torch.ops.mkldnn, "_reorder_linear_weight")
    used += (torch.ops.onednn, "qlinear_pointwise"), (torch.ops.onednn, "qlinear_prepack")
    there = torch.backends.mkldnn.is_available() and all(hasattr(*x) for x in used)
    return there and (precision != "bfloat16" or torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _in_threads(score: Callable[..., Tensor], *rows: Iterable) -> Iterator[Tensor]:
    """`map`; each thread has a mode of its own."""
    return _pool(torch.get_num_threads()).map(torch.inference_mode()(score), *rows)


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that share the cores."""
    workers = min(threads, _MOST_WORKERS)
    all_started = Barrier(workers)

    def start() -> None:
        torch.set_num_threads(threads // workers)
        torch.get_num_threads()  # PyTorch looks once in each thread, and goes by what was set last
        all_started.wait()

    pool = ThreadPoolExecutor(workers, initializer=start)
    list(pool.map(bool, range(workers)))
    torch.set_num_threads(threads)  # for other threads than these, which had changed it
    return pool


def laid_out(linear: nn.Linear, precision: str) -> nn.Module:
    """A linear layer in oneDNN's layout, in a precision of `engine`; on a CPU with oneDNN."""
    return _Int8(linear) if precision == "int8" else _Packed(linear, PRECISIONS[precision])


def _join(attention: nn.Module, precision: str) -> None:
    """Make projections to queries, keys and values one: an input is read, or quantised, once."""
    parts = [getattr(attention, name) for name in _PROJECTIONS]
    sizes = [part.out_features for part in parts]
    joined = nn.Linear(parts[0].in_features, sum(sizes))
    joined.weight.data = torch.cat([part.weight.detach() for part in parts])
    joined.bias.data = torch.cat([part.bias.detach() for part in parts])
    layer, last = laid_out(joined, precision), local()  # each thread has a batch of its own

    def project(name: str, x: Tensor) -> Tensor:
        if name == "query":  # layers ask for them in their order, of the same tensor
            last.parts = dict(zip(_PROJECTIONS, layer(x).split(sizes, dim=-1), strict=True))
        return last.parts.pop(name)

    for name in _PROJECTIONS:
        delattr(attention, name)  # a module's place is for modules
        setattr(attention, name, partial(project, name))


class _Packed(nn.Module):
    """A linear layer in oneDNN's layout, perhaps with a GELU behind it."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.gelu = dtype, False
        # On an AMD EPYC with AVX2 alone, ranking is 1.06 to 1.08 times as fast with PyTorch's GELU.
        self.fused = cpu_has("avx512_f") or not cpu_has("avx2")
        weight = linear.weight.detach().to(dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        behind = ("gelu", [], "none") if self.gelu and self.fused else ("none", [], "")
        layer = x.to(self.dtype), self.weight, self.bias
        result = torch.ops.mkldnn._linear_pointwise(*layer, *behind)
        return torch.ops.aten.gelu_(result) if self.gelu and not self.fused else result


class _Int8(nn.Module):
    """A linear layer of 8-bit weights; quantises each row of its input, overwritten if `after_gelu`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.gelu = self.after_gelu = False
        weight, most = linear.weight.detach(), 127
        if cpu_has("avx2") and not cpu_has("avx_vnni", "avx512_vnni"):
            most = 64  # two products of which and of an unsigned byte fit into 16 bits
        self.scales = weight.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / most
        integers = (weight / self.scales[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(integers, [_ROWS, linear.in_features])
        self.zeros = torch.zeros(linear.out_features, dtype=torch.int32)
        self.bias = self.scales.new_zeros(()) if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).float()
        largest = rows.amax(1, keepdim=True)
        if self.after_gelu:
            largest = largest.clamp_(min=_LOWEST_OF_GELU)
        else:  # two passes: ten times as fast as the norm, or as `aminmax`, along a row
            largest = torch.maximum(largest, -rows.amin(1, keepdim=True))
        step = largest.clamp_(min=torch.finfo(torch.float32).tiny).div_(127)
        # In place wherever it may be: the fewer large tensors, the fewer pages are fetched anew.
        scaled = rows.div_(step) if self.after_gelu else rows / step
        # Unsigned with 128 for zero: oneDNN has no fast kernel for signed inputs on most CPUs.
        integers = scaled.add_(_LAST_BYTE + 128).view(torch.int32).to(torch.uint8)
        product = torch.ops.onednn.qlinear_pointwise(
            integers, 1.0, 128, self.weight, self.scales, self.zeros, None, 1.0, 0, torch.float32,
            "none", [], "",
        )
        result = torch.addcmul(self.bias, product, step, out=product).view(*x.shape[:-1], -1)
        return torch.ops.aten.gelu_(result) if self.gelu else result
