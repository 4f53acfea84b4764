"""The ViT: positions, level embedding, zero start, parameter counts (arXiv 2401.14404, 2212.09748)."""

from __future__ import annotations

import pytest
import torch

from ldae.core.errors import ConfigError
from ldae.core.types import BatchGenerator, NoiseLevel
from ldae.denoisers.vit import ViTDenoiser
from ldae.nn.attention import Attention
from ldae.nn.blocks import ConditionedBlock
from ldae.nn.embeddings import sincos_positions, sinusoid
from ldae.nn.masking import Masking


def level(*t):
    t = torch.tensor(t)
    return NoiseLevel(t, torch.ones(len(t)), torch.zeros(len(t)))


def network(width=32, depth=2, **settings):
    torch.manual_seed(0)
    arguments = {"in_shape": (3, 16, 16), "out_shape": (3, 16, 16), "grid": (4, 4), "heads": 4} | settings
    return ViTDenoiser(width=width, encoder_depth=depth, decoder_depth=depth, **arguments)


def randomised(net):
    """As after some training: no parameter is at its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net


def test_positions_code_the_column_first_then_the_row():
    table = sincos_positions(16, 3, 5)  # (15, 16)
    assert torch.equal(table[0], torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [1.0] * 4))
    grid = table.reshape(3, 5, 16)
    assert torch.equal(grid[0, 2, :8], grid[2, 2, :8])  # same column
    assert torch.equal(grid[1, 0, 8:], grid[1, 4, 8:])  # same row
    assert not torch.equal(grid[0, 1, :8], grid[0, 2, :8])
    omega = 10000.0 ** (-torch.arange(4) / 4.0)
    assert torch.allclose(
        grid[2, 3], torch.cat([(3 * omega).sin(), (3 * omega).cos(), (2 * omega).sin(), (2 * omega).cos()])
    )


def test_level_zero_is_cosines_one_and_sines_zero():
    code = sinusoid(torch.tensor([0, 7]), 256)
    assert torch.equal(code[0], torch.cat([torch.ones(128), torch.zeros(128)]))
    omega = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)  # half, not half - 1
    assert torch.allclose(code[1], torch.cat([(7 * omega).cos(), (7 * omega).sin()]), atol=1e-5)


def test_a_new_network_answers_zero_and_its_blocks_are_the_identity():
    net, x = network(), torch.randn(2, 3, 16, 16)
    assert torch.equal(net(x, level(3, 900)), torch.zeros(2, 3, 16, 16))
    tokens = net.encode(x, level(3, 900))
    assert list(tokens) == [1, 2, 3, 4]
    assert torch.equal(tokens[1], tokens[4])


def test_parameters_wake_in_the_order_of_adaln_zero():
    """Step 1 moves only the final Linear; 2 reaches embedding, gates and final adaLN; 3 attention and MLP."""
    net, x = network(), torch.randn(4, 3, 16, 16)
    y, moved = torch.randn(4, 3, 16, 16), []
    for _ in range(3):
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        ((net(x, level(1, 2, 3, 4)) - y) ** 2).mean().backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= p.grad
                p.grad = None
        moved.append({name for name, p in net.named_parameters() if not torch.equal(p, before[name])})
    assert moved[0] == {"head.linear.weight", "head.linear.bias"}
    second = {"embed.weight", "head.ada.linear.weight", "blocks.0.ada.linear.bias"}
    assert second <= moved[1]
    inner = {"blocks.0.attn.qkv.weight", "blocks.1.mlp.fc1.weight", "level.linear.weight"}
    assert not inner & moved[1]
    assert inner <= moved[2]


@pytest.mark.parametrize("width", [32, 64, 384])
def test_conditioning_is_a_quarter_as_wide_and_the_feed_forward_is_not(width):
    block = ConditionedBlock(width, 4, width // 4)
    assert sum(p.numel() for p in block.ada.parameters()) == 1.5 * width**2 + 6 * width
    assert block.mlp.fc1.out_features == 4 * width
    wide = ConditionedBlock(width, 4, width)  # DiT's
    assert sum(p.numel() for p in wide.ada.parameters()) == 6 * width**2 + 6 * width


def test_the_paper_sizes_have_the_paper_encoders():
    """With t folded in, ViT-B has 86M and ViT-L 304M parameters up to the encoder's end (arXiv 2401.14404, Tab. 6)."""
    for width, depth, millions in ((768, 12, 85.8), (1024, 24, 303.3)):
        with torch.device("meta"):
            block = ConditionedBlock(width, 12 if width == 768 else 16, width // 4)
        plain = sum(p.numel() for p in [*block.attn.parameters(), *block.mlp.parameters()]) + 4 * width
        embedding = 16 * 16 * 3 * width + width
        assert (depth * plain + embedding) / 1e6 == pytest.approx(millions, abs=0.35)


def test_attention_is_torchs_fused_kernel_multiplied_out():
    torch.manual_seed(0)
    layer, x = Attention(32, 4), torch.randn(2, 9, 32)
    q, k, v = layer.qkv(x).reshape(2, 9, 3, 4, 8).permute(2, 0, 3, 1, 4)
    fused = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 9, 32)
    assert torch.allclose(layer(x), layer.proj(fused), atol=1e-6)


def test_attention_is_timms():
    from timm.layers import Attention as Timm

    torch.manual_seed(0)
    ours, theirs = Attention(32, 4), Timm(32, num_heads=4, qkv_bias=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 32)
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)


def _reference_dit_block(x, c, block, heads):
    """The DiT block as its paper draws it (Fig. 3, arXiv 2212.09748), with torch's own attention."""
    shift1, scale1, gate1, shift2, scale2, gate2 = block.ada.linear(torch.nn.functional.silu(c)).chunk(6, dim=1)
    width = x.shape[-1]
    norm = torch.nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
    attention = torch.nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(block.attn.qkv.weight)
        attention.in_proj_bias.copy_(block.attn.qkv.bias)
        attention.out_proj.load_state_dict(block.attn.proj.state_dict())
    h = norm(x) * (1 + scale1[:, None]) + shift1[:, None]
    x = x + gate1[:, None] * attention(h, h, h, need_weights=False)[0]
    h = norm(x) * (1 + scale2[:, None]) + shift2[:, None]
    return x + gate2[:, None] * block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(h)))


def test_block_is_the_dit_block():
    torch.manual_seed(0)
    block = randomised(ConditionedBlock(32, 4, 8))
    x, c = torch.randn(3, 9, 32), torch.randn(3, 8)
    assert torch.allclose(block(x, c), _reference_dit_block(x, c, block, 4), atol=1e-5)


def test_encode_gives_what_forward_passes_on_and_stops_early():
    net, x = randomised(network()), torch.randn(2, 3, 16, 16)
    tokens = net.encode(x, level(3, 900))
    out = net.head(tokens[4], net.level(level(3, 900)))
    assert torch.allclose(net(x, level(3, 900)).std(), out.std(), rtol=1e-4)
    calls = []
    net.blocks[3].register_forward_hook(lambda *_: calls.append(1))
    assert torch.equal(net.encode(x, level(3, 900), layers=[2])[2], tokens[2])
    assert not calls


@pytest.mark.parametrize("classes", [0, 5])
def test_one_level_is_that_of_all_images(classes):
    """Its scales and shifts are weights of the LayerNorms then."""
    net, x = randomised(network(classes=classes)), torch.randn(3, 3, 16, 16)
    tokens, expected = net.encode(x, level(40)), net.encode(x, level(40, 40, 40))
    assert all(torch.allclose(tokens[layer], expected[layer], atol=1e-5) for layer in net.layers)
    assert not torch.allclose(tokens[4], net.encode(x, level(900))[4], atol=1e-2)


def test_token_n_is_the_patch_at_row_n_over_w_and_column_n_mod_w():
    net, x = network(), torch.zeros(1, 3, 16, 16)
    x[0, :, 8:12, 4:8] = 1  # row 2, column 1 of a 4 x 4 grid
    changed = (net.embed_patches(x) - net.embed_patches(torch.zeros_like(x))).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [2 * 4 + 1]


def test_positions_are_no_parameters_and_are_not_saved():
    net = network()
    assert "positions" not in dict(net.named_parameters())
    assert "positions" not in net.state_dict()


def test_latents_of_any_grid_and_images_of_any_patch():
    latent = network(in_shape=(5, 8, 8), out_shape=(3, 32, 32), grid=(8, 8))
    assert latent(torch.randn(2, 5, 8, 8), level(1, 2)).shape == (2, 3, 32, 32)
    strided = network(in_shape=(4, 8, 8), out_shape=(4, 8, 8), grid=(4, 4))
    assert strided(torch.randn(2, 4, 8, 8), level(1, 2)).shape == (2, 4, 8, 8)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigError, match="heads=5"):
        network(heads=5)
    with pytest.raises(ConfigError, match="does not tile"):
        network(grid=(3, 3))


def test_opened_gates_make_plain_blocks():
    net, x = network(), torch.randn(2, 3, 16, 16)
    net.undo_zero_init()
    tokens = net.encode(x, level(3, 900))
    assert not torch.allclose(tokens[1], tokens[4])
    assert torch.equal(tokens[4], net.encode(x, level(500, 0))[4])  # the output does not depend on the level yet


def test_masked_tokens_do_not_reach_the_output_and_the_order_of_the_visible_ones_does_not_matter():
    net, x = randomised(network(keep=0.25)), torch.randn(2, 3, 16, 16)
    masking = net.draw_masking(2, BatchGenerator([0]))
    assert masking.num_visible == 4
    out = net(x, level(3, 900), None, masking)
    assert out.shape == (2, 3, 16, 16)
    hidden = masking.mask.reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert torch.equal(net(torch.where(hidden, 9.0, x), level(3, 900), None, masking), out)
    assert not torch.allclose(net(torch.where(hidden, x, 9.0), level(3, 900), None, masking), out)
    permuted = torch.cat([masking.order[:, :4].flip(1), masking.order[:, 4:].flip(1)], 1)
    torch.testing.assert_close(net(x, level(3, 900), None, Masking(permuted, 4)), out, atol=1e-5, rtol=1e-5)


def test_with_all_tokens_visible_masking_changes_nothing():
    net, x = randomised(network(keep=0.5)), torch.randn(2, 3, 16, 16)
    everything = Masking.from_noise(torch.rand(2, 16), 0.0)
    torch.testing.assert_close(net(x, level(3, 900), None, everything), net(x, level(3, 900)), atol=1e-5, rtol=1e-5)


def test_keep_changes_neither_the_other_weights_nor_what_probes_and_samplers_see():
    dense, sparse, x = network(), network(keep=0.5), torch.randn(2, 3, 16, 16)
    weights = sparse.state_dict()
    assert weights.pop("mask_token").shape == (1, 1, 32)
    assert all(torch.equal(value, weights[name]) for name, value in dense.state_dict().items())
    assert len(weights) == len(dense.state_dict())
    assert dense.draw_masking(2, BatchGenerator([0])) is None
    assert sparse.eval().draw_masking(2, BatchGenerator([0])) is None
    dense.load_state_dict(weights)
    a, b = dense.encode(x, level(3, 900)), sparse.encode(x, level(3, 900))
    assert all(torch.equal(a[layer], b[layer]) for layer in a)


def test_a_network_that_sees_no_token_is_refused():
    with pytest.raises(ConfigError, match=r"keep=0\.05 leaves none of 16 tokens"):
        network(keep=0.05)
