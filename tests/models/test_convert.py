import pytest
import torch
import transformers
from torch import nn

from bscompile.errors import UsageError
from bscompile.models import (
    BlockSparseConv2d,
    BlockSparseLinear,
    block_sparse_layers,
    factorize,
    merge,
    plan,
    summary,
)
from bscompile.models.blocks import merge_factors
from bscompile.models.initialise import nearest_kronecker_sum
from tests.tolerance import assert_close


def block_sparse_weight(shape, block, live, seed=0):
    generator = torch.Generator().manual_seed(seed)
    m1, n1 = shape[0] // block[0], shape[1] // block[1]
    mask = torch.zeros(m1 * n1, dtype=torch.bool)
    mask[torch.randperm(m1 * n1, generator=generator)[:live]] = True
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = mask.view(m1, n1)
    return weight * mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1), mask


@pytest.mark.parametrize("live", [0, 1, 7, 24])
def test_any_block_sparse_weight_has_exact_factors(live):
    weight, mask = block_sparse_weight((16, 18), (4, 3), live)
    rank = max(min(live, 12), 1)
    S, A, B = nearest_kronecker_sum(weight, (4, 3), rank)
    assert torch.equal(S.bool(), mask)
    assert_close(merge_factors(S * A, B), weight, "float64", 12)
    assert torch.equal(merge_factors(S * A, B) != 0, weight != 0)


def test_nearest_factors_are_the_truncated_svd():
    torch.manual_seed(0)
    weight = torch.randn(12, 8, dtype=torch.float64)
    S, A, B = nearest_kronecker_sum(weight, (3, 2), 2)
    rearranged = weight.view(4, 3, 4, 2).permute(0, 2, 1, 3).reshape(16, 6)
    tail = torch.linalg.svdvals(rearranged)[2:].square().sum().sqrt()
    error = (merge_factors(S * A, B) - weight).norm()
    assert error.item() == pytest.approx(tail.item(), rel=1e-12)


def test_dense_to_factors_to_dense_keeps_a_weight_of_low_rank():
    torch.manual_seed(0)
    source = BlockSparseLinear(24, 16, (4, 8), 2)
    source.mask[0, 1] = False
    dense = merge(nn.Sequential(source))
    again = factorize(dense, (4, 8), 2, start="nearest")
    assert_close(again[0].weight.detach(), source.weight.detach(), "float32", 8)
    assert torch.equal(again[0].support(), source.support())
    assert torch.equal(again[0].bias, source.bias)


def model_of(name):
    torch.manual_seed(0)
    tokens = {"input_ids": torch.randint(0, 50, (2, 6))}
    common = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    if name == "bert":
        config = transformers.BertConfig(vocab_size=50, num_hidden_layers=2, **common)
        return transformers.BertForSequenceClassification(config), tokens
    if name == "llama":
        config = transformers.LlamaConfig(
            vocab_size=50, num_hidden_layers=2, num_key_value_heads=2, **common
        )
        return transformers.LlamaForCausalLM(config), tokens
    if name == "vit":
        config = transformers.ViTConfig(
            image_size=16, patch_size=4, num_hidden_layers=2, num_labels=10, **common
        )
        return transformers.ViTForImageClassification(config), {
            "pixel_values": torch.randn(2, 3, 16, 16)
        }
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
        window_size=4, num_labels=10,
    )  # fmt: skip
    images = {"pixel_values": torch.randn(2, 3, 32, 32)}
    return transformers.SwinForImageClassification(config), images


@pytest.mark.parametrize("name", ["bert", "llama", "vit", "swin"])
def test_transformers_models_convert_train_and_merge(name):
    model, inputs = model_of(name)
    dense = {n for n, m in model.named_modules() if type(m) is nn.Linear}
    factorize(model.eval(), block=4, rank=2)
    converted = dict(block_sparse_layers(model))
    assert len(converted) >= len(dense) - 1  # a tiny head may stay dense
    # BERT's two-class head has no block of side 4; it gets 2x4.
    assert all(4 in layer.block for layer in converted.values())
    output = model(**inputs).logits
    assert torch.isfinite(output).all()
    output.square().mean().backward()
    used = [layer for layer in converted.values() if layer.A.grad is not None]
    assert used
    assert all(layer.A.grad.abs().sum() > 0 for layer in used)
    with torch.no_grad():
        for layer in converted.values():
            layer.mask.view(-1)[::2] = False
        want = model(**inputs).logits
        merge(model)
        assert not list(block_sparse_layers(model))
        assert_close(model(**inputs).logits, want, "float32", 4096)


def test_weight_tied_to_an_embedding_stays_dense():
    model, _ = model_of("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    steps = {step.name: step for step in plan(model, 2, 1)}
    assert steps["lm_head"].block is None
    assert str(steps["lm_head"]) == (
        "lm_head: weight is shared with model.embed_tokens; kept dense"
    )
    factorize(model, 4, 1)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_shared_layers_and_weights_stay_shared():
    first, second = nn.Linear(16, 16), nn.Linear(16, 16)
    second.weight = first.weight
    model = nn.ModuleDict({"a": first, "again": first, "b": second})
    factorize(model, 4, 1)
    assert model["a"] is model["again"]
    assert model["a"].A is model["b"].A
    assert model["a"].bias is not model["b"].bias
    merge(model)
    assert model["a"] is model["again"]
    assert model["a"].weight is model["b"].weight


def test_layers_that_the_block_does_not_divide():
    model = nn.Sequential(nn.Linear(64, 100), nn.Linear(100, 7), nn.Linear(7, 64))
    steps = plan(model, 8, 2)
    assert [step.block for step in steps] == [(5, 8), (7, 5), (8, 7)]
    assert str(steps[0]) == "0: block 8x8 does not divide [100, 64]; 5x8 taken, rank 2"
    prime = plan(nn.Sequential(nn.Linear(13, 11)), 8, 2)
    assert prime[0].block is None
    assert "would save nothing; kept dense" in str(prime[0])


def test_include_and_exclude():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    assert [s.name for s in plan(model, 4, 1, exclude=["2"])] == ["0", "1"]
    assert [s.name for s in plan(model, 4, 1, include=["1"])] == ["1"]
    with pytest.raises(UsageError, match="pattern 'head' matches no convertible layer"):
        plan(model, 4, 1, exclude=["head"])


def test_single_layer_is_replaced():
    assert isinstance(factorize(nn.Linear(16, 16), 4, 1), BlockSparseLinear)
    assert type(merge(BlockSparseLinear(16, 16, 4, 1))) is nn.Linear


CONVOLUTIONS = [
    {"kernel_size": 3},
    {"kernel_size": (3, 1), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": 1, "groups": 4},
    {"kernel_size": 3, "dilation": 2, "padding": 2, "bias": False},
]


@pytest.mark.parametrize("options", CONVOLUTIONS)
def test_convolution_equals_the_one_with_its_weight_built(options):
    torch.manual_seed(0)
    layer = BlockSparseConv2d(8, 16, block=(4, 2), rank=2, **options)
    layer.mask.view(-1)[::3] = False
    x = torch.randn(2, 8, 9, 7)
    want = layer.to_dense()(x)
    assert_close(layer(x).detach(), want.detach(), "float32", 72)
    layer(x).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_convolutions_convert_on_request_and_merge_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2))
    x = torch.randn(1, 4, 6, 6)
    want = model(x)
    assert plan(model, 4, 1) == []
    factorize(model, 4, 36, convolutions=True, start="nearest")
    assert [layer.block for _, layer in block_sparse_layers(model)] == [(4, 4), (4, 4)]
    assert_close(model(x).detach(), want.detach(), "float32", 36)
    merged = merge(model)
    assert type(merged[2]) is nn.Conv2d
    assert_close(merged(x).detach(), want.detach(), "float32", 36)


def test_convolution_block_must_not_reach_over_a_group():
    with pytest.raises(UsageError, match="block side 8 reaches over a group of 4 channels"):
        BlockSparseConv2d(8, 8, 1, block=8, groups=2)


def test_summary_counts_what_the_formula_says():
    model = nn.Sequential(BlockSparseLinear(64, 128, 8, 4), nn.Linear(128, 10))
    model[0].mask.view(-1)[:32] = False
    counted = summary(model)
    first, second = counted.layers
    assert first.parameters == first.formula_parameters == 5 * 128 + 4 * 64
    assert first.flops_per_row == 2 * 4 * (64 * 8 + 128 * 8)
    assert first.sparsity == 0.25
    assert second.parameters == 1280
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert "8x8" in str(counted)
