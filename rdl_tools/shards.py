"""Shards of one piece of work: a shard has every so-many-th query, and all of them make the whole."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from rdl_core.progress import set_up_process

__all__ = ["each_on_a_gpu", "in_turn", "whole"]

_T = TypeVar("_T")


def whole(identities: Mapping[Path, Mapping]) -> dict:
    """The identity of all shards' work: each has ``shard``, ``[number, of]``, and else the same.

    ValueError names a shard that is missing, there twice, or of another configuration.
    """
    (first, wanted), *_ = identities.items()
    number, of = wanted["shard"]
    for path, identity in identities.items():
        values = identity | {"shard": [number, identity["shard"][1]]}
        if changed := [key for key in wanted | values if values.get(key) != wanted.get(key)]:
            differ = "; ".join(f"{k} is {values.get(k)!r}, not {wanted.get(k)!r}" for k in changed)
            raise ValueError(f"{path} was made with another configuration than {first}: {differ}")
    numbers = [identity["shard"][0] for identity in identities.values()]
    if sorted(numbers) != [*range(1, of + 1)]:
        missing = ", ".join(f"{n}/{of}" for n in range(1, of + 1) if n not in numbers)
        told = f"expected each shard once, got {numbers} of {of}; missing: {missing or 'none'}"
        raise ValueError(f"{told}: name all, and run a missing one with --shard")
    return {**wanted, "shard": [1, 1]}


def in_turn(parts: Sequence[Sequence[_T]]) -> list[_T]:
    """Items of all shards in the order in which they were dealt: the first of each, the second, ..."""
    return [x for x in chain.from_iterable(zip_longest(*parts)) if x is not None]


def each_on_a_gpu(work: Callable[..., object], arguments: Sequence[tuple]) -> None:
    """Call a module's function with each of several arguments at once, in processes of a GPU each.

    ChildProcessError once all have ended, if one failed; its own error is on stderr.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else map(str, range(len(arguments)))
    start, children = multiprocessing.get_context("spawn").Process, []
    for gpu, own in zip(gpus, arguments, strict=False):  # a GPU may be left over
        children.append(start(target=_on_gpu, args=(gpu, work, own)))
        children[-1].start()
    for child in children:
        child.join()
    if failed := [n for n, child in enumerate(children, start=1) if child.exitcode]:
        told = f"shards {failed} of {len(children)}, each on a GPU of its own, failed"
        raise ChildProcessError(f"{told}: their errors stand above; mend them, and run this again")


def _on_gpu(gpu: str, work: Callable[..., object], own: tuple[Any, ...]) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before CUDA is asked for the first time
    set_up_process()
    work(*own)
