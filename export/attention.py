"""Scaled dot-product attention, exported as one operator; `dialect` says which."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _FusedAttention(torch.autograd.Function):
    """Plain attention in PyTorch, `mimicmotion::Attention` in a traced graph."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
        return plain_attention(q, k, v, heads=heads, scale=scale)

    @staticmethod
    def symbolic(g: Any, q: Any, k: Any, v: Any, heads: int, scale: float) -> Any:
        return g.op("mimicmotion::Attention", q, k, v, heads_i=heads, scale_f=scale).setType(q.type())


def attend(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float) -> Tensor:
    """softmax(q k^T scale) v for each head; q, k, v and the result are [B,L,heads*d]."""
    if torch.onnx.is_in_onnx_export():
        fused: Tensor = _FusedAttention.apply(q, k, v, heads, scale)  # type: ignore[no-untyped-call]
        return fused
    return plain_attention(q, k, v, heads=heads, scale=scale)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, *, heads: int, scale: float) -> Tensor:
    """The same by PyTorch's own operator."""
    batch, length, width = q.shape
    q, k, v = (x.reshape(batch, length, heads, width // heads).transpose(1, 2) for x in (q, k, v))
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
    return y.transpose(1, 2).reshape(batch, length, width)
