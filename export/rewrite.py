"""SVD's blocks in the form that engines run fastest, with the same weights and the same result.

- *Single-token cross-attention*: softmax over one key is exactly 1, so `attn2(x, token)` is
  `to_out(to_v(token))` whatever x is; `norm2` and the query path vanish (difference 0.0).
- *A residual branch that ends in zeros* adds nothing and is left out.
- *Blend after a residual*: `a x + (1 - a)(x + f(x))` is `x + (1 - a) f(x)`; 1 - a goes into f's last weights.
- *Convolutions along time* with kernels (3,1,1) are 2-D convolutions (3,1) over [rows, C, frames, h*w].
- *Tokens stay a matrix* [rows*frames*h*w, C], so every linear layer is one GEMM with its bias; only
  attention sees sequences. The two halves of a GEGLU are two layers, not a slice.
- *A group norm of one channel a group* is an instance norm, whose operator applies the weights as well.
- *Sizes come from one place* (`Clip`), so a traced graph computes each shape once, not once a layer.

All but the first two change only the order of float operations. The rewritten modules keep the call
signatures of the originals, so diffusers' own forward passes run them; what the originals call
`image_only_indicator` carries a `Clip` instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..training.networks import ends_in_zeros
from .tracing import attend
from .weight_origins import derived


@dataclass(frozen=True)
class Clip:
    """What every block needs to know about the running batch; sizes may be traced."""

    rows: Any
    frames: Any
    height: Any
    width: Any
    temb: Tensor | None = None
    """silu of the time embedding of each row [R,E]."""
    token: Tensor | None = None
    """Image embedding of each row [R,1,D]."""

    def scaled(self, height: Any, width: Any) -> Clip:
        """The same batch at another resolution."""
        return replace(self, height=height, width=width)


def rewrite(network: nn.Module) -> nn.Module:
    """Replace, in place, every spatio-temporal block and attention of a network by its rewritten form."""
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D, SpatioTemporalResBlock
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
    from transformers.models.clip.modeling_clip import CLIPAttention

    forms: dict[type[nn.Module], Callable[[nn.Module], nn.Module]] = {
        ResnetBlock2D: without_idle_branch,
        SpatioTemporalResBlock: without_idle_time,
        TransformerSpatioTemporalModel: Transformer,
        Attention: SelfAttention2d,
        CLIPAttention: ClipAttention,
    }
    for name, child in list(network.named_children()):
        form = forms.get(type(child))
        setattr(network, name, form(child) if form else rewrite(child))
    for name, child in list(network.named_children()):
        if isinstance(child, nn.GroupNorm) and child.num_groups == child.num_channels:
            setattr(network, name, instance_norm(child))
    return network


def without_idle_branch(block: Any) -> nn.Module:
    """A 2-D residual block; only the way beside its branch if that ends in zeros."""
    return Beside(block.conv_shortcut) if ends_in_zeros(block) else block


def without_idle_time(block: Any) -> nn.Module:
    """A spatio-temporal block; only its 2-D part if the branch along time ends in zeros."""
    return FrameBlock(block) if ends_in_zeros(block.temporal_res_block) else ResBlock(block)


class Beside(nn.Module):
    """The way beside a residual branch."""

    def __init__(self, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, hidden_states: Tensor, temb: Tensor | None = None) -> Tensor:
        return hidden_states if self.shortcut is None else cast(Tensor, self.shortcut(hidden_states))


class FrameBlock(nn.Module):
    """The 2-D part of a SpatioTemporalResBlock: frames on their own."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.spatial = without_idle_branch(block.spatial_res_block)

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Any = None
    ) -> Tensor:
        return cast(Tensor, self.spatial(hidden_states, temb))


class ResBlock(nn.Module):
    """SpatioTemporalResBlock: a 2-D residual block, then a residual block along time, blended."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.spatial = without_idle_branch(block.spatial_res_block)
        temporal = block.temporal_res_block
        if temporal.conv_shortcut is not None:
            raise NotImplementedError("a temporal block that changes its width has no rewritten form")
        self.norm1, self.norm2 = temporal.norm1, temporal.norm2
        self.channels: int = temporal.conv1.out_channels
        self.conv1 = time_conv(temporal.conv1)
        self.conv2 = time_conv(temporal.conv2, temporal_share(block.time_mixer))
        self.time_emb_proj = temporal.time_emb_proj

    def forward(
        self, hidden_states: Tensor, temb: Tensor | None = None, image_only_indicator: Any = None
    ) -> Tensor:
        clip = cast(Clip, image_only_indicator)
        channels = self.channels
        x: Tensor = self.spatial(hidden_states, temb)
        x = x.reshape(clip.rows, clip.frames, channels, clip.height * clip.width)
        x = x.transpose(1, 2)  # [R,C,F,hw]
        y = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert clip.temb is not None
            y = y + self.time_emb_proj(clip.temb)[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        x = (x + y).transpose(1, 2)
        return x.reshape(clip.rows * clip.frames, channels, clip.height, clip.width)


class Transformer(nn.Module):
    """TransformerSpatioTemporalModel: attention over a frame's positions, then over each position's frames."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = model.norm, model.proj_in, model.proj_out
        self.time_proj, self.time_pos_embed = model.time_proj, model.time_pos_embed
        self.spatial = nn.ModuleList(SpatialBlock(block) for block in model.transformer_blocks)
        self.temporal = nn.ModuleList(TemporalBlock(block) for block in model.temporal_transformer_blocks)
        self.share = temporal_share(model.time_mixer)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        image_only_indicator: Any = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        clip = cast(Clip, image_only_indicator)
        images, positions = clip.rows * clip.frames, clip.height * clip.width
        width = self.proj_in.in_features
        x = self.norm(hidden_states).reshape(images, width, positions).transpose(1, 2).reshape(-1, width)
        x = self.proj_in(x)
        inner = self.proj_in.out_features
        position = self.time_pos_embed(self.time_proj(torch.arange(clip.frames, device=x.device)).to(x.dtype))
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            x = spatial(x, clip)
            y = x.reshape(clip.rows, clip.frames, positions, inner) + position[:, None]
            y = temporal(y.reshape(-1, inner), clip)
            x = (1.0 - self.share) * x + self.share * y
        x = self.proj_out(x).reshape(images, positions, width).transpose(1, 2)
        return (x.reshape(images, width, clip.height, clip.width) + hidden_states,)


class SpatialBlock(nn.Module):
    """BasicTransformerBlock with its cross-attention folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm3, self.ff = block.norm1, block.norm3, FeedForward(block.ff)
        self.attn1, self.attn2 = SelfAttention(block.attn1), TokenAttention(block.attn2)

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        """x [R*F*hw,C]."""
        positions = clip.height * clip.width
        x = self.attn1(self.norm1(x), clip.rows * clip.frames, positions) + x
        x = self.attn2(x, clip)
        return cast(Tensor, self.ff(self.norm3(x)) + x)


class TemporalBlock(nn.Module):
    """TemporalBasicTransformerBlock with its cross-attention folded."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        if not block.is_res:
            raise NotImplementedError("a temporal block that changes its width has no rewritten form")
        self.norm_in, self.norm1, self.norm3 = block.norm_in, block.norm1, block.norm3
        self.ff_in, self.ff = FeedForward(block.ff_in), FeedForward(block.ff)
        self.attn1, self.attn2 = SelfAttention(block.attn1), TokenAttention(block.attn2)

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        """x [R*F*hw,C]; the frames of one position are brought together for attention only."""
        positions, width = clip.height * clip.width, x.shape[-1]
        x = self.ff_in(self.norm_in(x)) + x
        y = self.norm1(x).reshape(clip.rows, clip.frames, positions, width).transpose(1, 2).reshape(-1, width)
        y = self.attn1(y, clip.rows * positions, clip.frames)
        y = y.reshape(clip.rows, positions, clip.frames, width).transpose(1, 2).reshape(-1, width)
        x = self.attn2(y + x, clip)
        return cast(Tensor, self.ff(self.norm3(x)) + x)


class TokenAttention(nn.Module):
    """Cross-attention to one token: the softmax over one key is 1, what is left is `to_out(to_v(token))`."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.to_v, self.to_out = attention.to_v, attention.to_out[0]

    def forward(self, x: Tensor, clip: Clip) -> Tensor:
        """x [R*F*hw,C] plus the attention's output for its row."""
        assert clip.token is not None
        width = self.to_out.out_features
        output: Tensor = self.to_out(self.to_v(clip.token[:, 0]))
        return (x.reshape(clip.rows, -1, width) + output[:, None]).reshape(-1, width)


class FeedForward(nn.Module):
    """GEGLU feed-forward: out(value(x) * gelu(gate(x)))."""

    def __init__(self, ff: Any) -> None:
        super().__init__()
        projection, self.out = ff.net[0].proj, ff.net[2]
        self.value, self.gate = split_linear(projection, 2)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.out(self.value(x) * F.gelu(self.gate(x))))


class SelfAttention(nn.Module):
    """Self-attention within `sequences` sequences of `length` tokens each."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.heads: int = attention.heads
        self.scale: float = attention.scale
        self.width: int = attention.to_q.out_features
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]

    def forward(self, x: Tensor, sequences: Any, length: Any) -> Tensor:
        """x [sequences*length,C]."""
        width = self.width
        q, k, v = (to(x).reshape(sequences, length, width) for to in (self.to_q, self.to_k, self.to_v))
        y = attend(q, k, v, heads=self.heads, scale=self.scale)
        return cast(Tensor, self.to_out(y.reshape(-1, width)))


class ClipAttention(SelfAttention):
    """CLIP's self-attention over patches; [B,L,C]."""

    def __init__(self, attention: Any) -> None:
        nn.Module.__init__(self)
        self.heads, self.scale, self.width = attention.num_heads, attention.scale, attention.embed_dim
        self.to_q, self.to_k, self.to_v = attention.q_proj, attention.k_proj, attention.v_proj
        self.to_out = attention.out_proj

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        pictures, length, width = hidden_states.shape
        y = super().forward(hidden_states.reshape(-1, width), pictures, length)
        return y.reshape(pictures, length, width), None


class SelfAttention2d(nn.Module):
    """The VAE's attention block: group norm, self-attention over positions, residual; [B,C,h,w]."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.norm, self.attention = attention.group_norm, SelfAttention(attention)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        images, width, height, wide = hidden_states.shape
        positions = height * wide
        x: Tensor = (
            self.norm(hidden_states).reshape(images, width, positions).transpose(1, 2).reshape(-1, width)
        )
        x = self.attention(x, images, positions).reshape(images, positions, width).transpose(1, 2)
        return x.reshape(images, width, height, wide) + hidden_states


def instance_norm(norm: nn.GroupNorm) -> nn.InstanceNorm2d:
    """A group norm with one channel a group, as the one operator that also applies its weights."""
    instance = nn.InstanceNorm2d(norm.num_channels, norm.eps, affine=True, device="meta")
    instance.weight, instance.bias = norm.weight, norm.bias
    return instance.eval()


def split_linear(linear: nn.Linear, parts: int) -> list[nn.Linear]:
    """Linear layers that give the slices of `linear`'s output."""
    width = linear.out_features // parts
    layers = []
    for index in range(parts):
        rows = slice(index * width, (index + 1) * width)
        layer = nn.Linear(linear.in_features, width, bias=linear.bias is not None, device="meta")
        layer.weight = derived(linear.weight[rows], linear.weight, rows=rows)
        if linear.bias is not None:
            layer.bias = nn.Parameter(linear.bias[rows], requires_grad=False)
        layers.append(layer)
    return layers


def time_conv(conv: nn.Conv3d, scale: float = 1.0) -> nn.Conv2d:
    """A convolution (k,1,1) along time as a 2-D one (k,1), its output times `scale`."""
    kernel = conv.kernel_size[0]
    sizes = (conv.in_channels, conv.out_channels, (kernel, 1))
    flat = nn.Conv2d(*sizes, padding=(kernel // 2, 0), device="meta")
    assert conv.bias is not None
    flat.weight = derived(conv.weight[..., 0] * scale, conv.weight, scale=scale)
    flat.bias = nn.Parameter(conv.bias * scale, requires_grad=False)
    return flat


def padded_conv(conv: nn.Conv2d, inputs: int = 0, outputs: int = 0) -> nn.Conv2d:
    """A convolution with channels of zeros added, up to `inputs` and `outputs` in all."""
    inputs, outputs = max(inputs, conv.in_channels), max(outputs, conv.out_channels)
    more_in, more_out = inputs - conv.in_channels, outputs - conv.out_channels
    kernel, stride, padding = cast(Any, (conv.kernel_size, conv.stride, conv.padding))
    padded = nn.Conv2d(inputs, outputs, kernel, stride, padding, device="meta")
    assert conv.bias is not None
    weight = F.pad(conv.weight, (0, 0, 0, 0, 0, more_in, 0, more_out))
    padded.weight = nn.Parameter(weight, requires_grad=False)
    padded.bias = nn.Parameter(F.pad(conv.bias, (0, more_out)), requires_grad=False)
    return padded


def temporal_share(mixer: Any) -> float:
    """The weight of the temporal path in an AlphaBlender, for video (never for single images)."""
    factor = mixer.mix_factor.detach().float()
    alpha = factor if mixer.merge_strategy == "fixed" else torch.sigmoid(factor)
    return float(alpha if mixer.switch_spatial_to_temporal_mix else 1.0 - alpha)
