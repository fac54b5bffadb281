"""The rewritten networks compute what the originals do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from mimicmotion_trt.export import networks, verify
from mimicmotion_trt.export.rewrite import (
    Clip,
    SelfAttention,
    SelfAttention2d,
    TokenAttention,
    instance_norm,
    padded_conv,
    split_linear,
    temporal_share,
    time_conv,
)
from mimicmotion_trt.export.tracing import attend, plain_attention
from mimicmotion_trt.training.checkpoints import load_model


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def token_attention(heads, width, token, bias, whole_numbers):
    """(diffusers' answer plus the residual, ours) for two rows of three frames of five cells."""
    original = Attention(width, token, heads=heads, dim_head=width // heads, out_bias=bias).eval()
    rows, cells = 2, 3 * 5
    embedding, x = torch.randn(rows, 1, token), torch.randn(rows * cells, width)
    if whole_numbers:
        for values in (embedding, x, *original.parameters()):
            values.copy_(torch.randint(-2, 3, values.shape))
    queries = torch.randn(rows, cells, width) * 100  # do not matter
    expected = original(queries, encoder_hidden_states=embedding).reshape(-1, width) + x
    return expected, TokenAttention(original)(x, Clip(rows, 3, 1, 5, token=embedding))


@pytest.mark.parametrize(("heads", "width", "token"), [(1, 32, 32), (4, 64, 32), (5, 320, 1024)])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_to_one_token_is_a_linear_map_of_it(heads, width, token, bias):
    """Softmax over one key is exactly 1: the fold alone differs by nothing at all.

    In small whole numbers, which matrix products of any order sum without rounding; in others only the order of
    those sums shows.
    """
    expected, folded = token_attention(heads, width, token, bias, whole_numbers=True)
    assert (folded - expected).abs().max() == 0.0
    assert folded.std() > 1
    expected, folded = token_attention(heads, width, token, bias, whole_numbers=False)
    torch.testing.assert_close(folded, expected, atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize(("heads", "width"), [(1, 32), (4, 64)])
def test_self_attention_on_a_matrix_of_tokens(heads, width):
    original = Attention(width, heads=heads, dim_head=width // heads).eval()
    x = torch.randn(3, 7, width)
    rewritten = SelfAttention(original)(x.reshape(-1, width), 3, 7)
    torch.testing.assert_close(rewritten.reshape(3, 7, width), original(x), atol=1e-6, rtol=1e-5)


def test_the_vaes_attention():
    original = Attention(
        64, heads=2, dim_head=32, norm_num_groups=32, bias=True, residual_connection=True, eps=1e-6
    ).eval()  # fmt: skip
    x = torch.randn(2, 64, 4, 6)
    torch.testing.assert_close(SelfAttention2d(original)(x), original(x), atol=1e-6, rtol=1e-5)


def test_plain_attention_is_the_formula():
    q, k, v = (torch.randn(2, 5, 12) for _ in range(3))
    expected = torch.empty(2, 5, 12)
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) * 0.5, dim=-1)
        expected[..., part] = weights @ v[..., part]
    torch.testing.assert_close(plain_attention(q, k, v, heads=3, scale=0.5), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(attend(q, k, v, heads=3, scale=0.5), plain_attention(q, k, v, heads=3, scale=0.5))


@pytest.mark.parametrize("bias", [True, False])
def test_the_halves_of_a_linear_layer(bias):
    whole = nn.Linear(8, 12, bias=bias)
    x = torch.randn(3, 8)
    value, gate = (half(x) for half in split_linear(whole, 2))
    torch.testing.assert_close(torch.cat([value, gate], dim=1), whole(x))


def test_a_convolution_along_time_is_one_in_two_dimensions():
    conv = nn.Conv3d(4, 6, (3, 1, 1), padding=(1, 0, 0))
    x = torch.randn(2, 4, 5, 3, 2)
    flat = time_conv(conv, 0.7)(x.reshape(2, 4, 5, 6))
    torch.testing.assert_close(flat.reshape(2, 6, 5, 3, 2), conv(x) * 0.7, atol=1e-6, rtol=1e-5)


def test_padded_channels_are_zero_and_change_nothing():
    first, second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 5, 4, stride=2, padding=1)
    x = torch.randn(1, 3, 8, 8)
    wide_first, wide_second = padded_conv(first, outputs=8), padded_conv(second, inputs=8)
    assert (wide_first.out_channels, wide_second.in_channels, wide_second.out_channels) == (8, 8, 5)
    assert not wide_first(x)[:, 3:].any()
    act = nn.functional.silu
    torch.testing.assert_close(wide_second(act(wide_first(x))), second(act(first(x))), atol=1e-6, rtol=1e-5)
    wide = nn.Conv2d(16, 16, 3)
    assert padded_conv(wide, inputs=8, outputs=8).weight.shape == wide.weight.shape


def test_a_group_norm_of_one_channel_a_group_is_an_instance_norm():
    norm = nn.GroupNorm(32, 32, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 32, 4, 6) * 3 + 1
    torch.testing.assert_close(instance_norm(norm)(x), norm(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("switch", [True, False])
@pytest.mark.parametrize("strategy", ["learned", "learned_with_images", "fixed"])
def test_the_share_of_the_temporal_path(switch, strategy):
    from diffusers.models.transformers.transformer_temporal import AlphaBlender

    mixer = AlphaBlender(0.3, strategy, switch_spatial_to_temporal_mix=switch)
    video = torch.zeros(1, 2)  # no single images among the frames
    blended = mixer(torch.zeros(1, 4, 2, 3, 3), torch.ones(1, 4, 2, 3, 3), video)
    assert temporal_share(mixer) == pytest.approx(float(blended.flatten()[0]), abs=1e-6)


SHAPES = [(1, 1, 16, 16), (2, 3, 8, 16), (3, 5, 24, 16), (1, 4, 16, 8)]
"""(rows, frames, cells high, cells wide)"""


@pytest.fixture(scope="module", params=["tiny", "other"])
def pair(request: pytest.FixtureRequest, tiny: Any, make_source: Callable[..., Any]) -> tuple[Any, Any, Any]:
    """(originals, rewritten networks, specs) of the golden networks and of some with other heads and layers."""
    from mimicmotion_trt.engines import NETWORKS
    from mimicmotion_trt.training.networks import model_specs

    source = tiny
    if request.param == "other":
        source = make_source(widths=(32, 64, 96, 128), heads=(1, 4, 3, 2), layers=2, token=40, vae_layers=2)
    model = load_model(source.base, source.checkpoint)
    copy = deepcopy(model)
    rewritten = {name: networks.engine_form(name, copy) for name in NETWORKS}
    specs = model_specs(model.unet, model.image_encoder.config.image_size)
    return verify.originals(model), rewritten, specs


@pytest.mark.parametrize("network", ["unet", "pose_net", "vae_encoder", "vae_decoder", "image_encoder"])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_whole_networks(pair, network, shape):
    originals, rewritten, specs = pair
    inputs = verify.example_inputs(network, specs[network], shape, seed=1)
    expected, found = originals[network](**inputs), rewritten[network](**inputs)
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("shape", SHAPES[2:])
def test_the_unet_at_other_sizes(pair, shape):
    originals, rewritten, specs = pair
    inputs = verify.example_inputs("unet", specs["unet"], shape, seed=2)
    expected, found = originals["unet"](**inputs), rewritten["unet"](**inputs)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_a_residual_branch_that_ends_in_zeros_is_dropped():
    """The same numbers, of a graph with fewer operators."""
    from diffusers import AutoencoderKLTemporalDecoder

    from mimicmotion_trt.training.networks import lean_blocks

    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    ).eval()
    latents = torch.randn(3, 4, 8, 4)

    def engine() -> tuple[nn.Module, int]:
        decoder = networks.DecoderEngine(deepcopy(vae))
        return decoder, sum(not list(module.children()) for module in decoder.modules())

    _, whole = engine()
    for block in lean_blocks(vae):
        last = getattr(block, "temporal_res_block", block).conv2
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    lean, fewer = engine()
    assert fewer < whole - 20
    expected = vae.decoder(latents, torch.zeros(1, 3), num_frames=3)
    assert float((lean(latents) - expected).norm() / expected.norm()) < 1e-5


def test_blocks_that_change_their_width_along_time_are_refused():
    from diffusers.models.resnet import SpatioTemporalResBlock

    from mimicmotion_trt.export.rewrite import ResBlock

    block = SpatioTemporalResBlock(32, 32, 32)
    block.temporal_res_block.conv_shortcut = nn.Conv3d(32, 32, 1)
    with pytest.raises(NotImplementedError, match="no rewritten form"):
        ResBlock(block)


def test_engines_take_plain_tensors(tiny):
    model = load_model(tiny.base, tiny.checkpoint)
    assert networks.PoseNetEngine(model.pose_net)(torch.zeros(2, 3, 64, 128)).shape == (2, 32, 8, 16)
