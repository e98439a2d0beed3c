"""A copy of what is trained, for a thread to write while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from senet.compat import module_versions, with_module_versions


def to_cpu(tree: Any) -> Any:
    """A copy of dicts, lists and tensors that shares no memory with the original. Complete when it returns."""
    copy = _copy_tree(tree)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.current_stream().synchronize()  # sync point: once per checkpoint
    return copy


def _copy_tree(tree: Any) -> Any:
    if isinstance(tree, torch.Tensor):
        # asynchronously from a GPU, into pinned memory: to_cpu waits once for all of them
        return tree.detach().to("cpu", copy=True, non_blocking=tree.is_cuda)
    if isinstance(tree, Mapping):
        copied = {key: _copy_tree(value) for key, value in tree.items()}
        versions = module_versions(tree)
        return copied if versions is None else with_module_versions(copied, versions)
    if isinstance(tree, list | tuple):
        return [_copy_tree(value) for value in tree]
    return tree
