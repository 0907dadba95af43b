"""The onnx package's backend tests: equal, or declined in one clear line; nothing is wrong.

The whole table is ``benchmarks/onnx_backend_table.py``; a sample of it runs here every time.
"""

from dataclasses import replace

import pytest

from tests.end_to_end.onnx_backend import (
    FAMILY_OPERATORS,
    network_case,
    networks,
    node_cases,
    outcome,
)
from tests.end_to_end.together import outcomes

#: One for each operator that matters most; these must be equal, not declined.
_SAMPLE = """
    test_add_bcast test_attention_23_boolmask_fullymasked_row_nan_robustness_expanded
    test_attention_4d_causal_expanded test_averagepool_2d_pads_count_include_pad
    test_basic_conv_with_padding test_batchnorm_example test_clip[constants]
    test_concat_3d_axis_negative_1 test_constantofshape_int_zeros[constants]
    test_conv_with_strides_and_asymmetric_padding test_dequantizelinear_axis test_div_bcast
    test_dropout_default_mask test_einsum_batch_matmul test_equal_bcast test_erf
    test_expand_dim_changed[constants] test_gather_negative_indices test_gelu_tanh_1
    test_gemm_all_attributes test_globalaveragepool test_gru_batchwise test_isinf_negative
    test_layer_normalization_4d_axis2 test_less_equal_bcast test_lstm_batchwise
    test_matmul_4d test_maxpool_2d_ceil
    test_mod_mixed_sign_float16 test_neg test_pow_types_int32_float32 test_quantizelinear_axis
    test_range_int32_type_negative_delta[constants]
    test_reduce_log_sum_exp_keepdims_random[constants] test_reduce_mean_keepdims_random[constants]
    test_reshape_zero_and_negative_dim test_rms_normalization_3d_axis1_epsilon
    test_rotary_embedding_expanded test_sigmoid test_slice_neg_steps[constants]
    test_softmax_axis_1 test_split_variable_parts_2d_opset18[constants]
    test_squeeze_negative_axes[constants] test_sub_bcast test_tanh
    test_transpose_all_permutations_4 test_unsqueeze_negative_axes[constants] test_where_example
"""
SAMPLE = _SAMPLE.split()


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_onnx_node_test_is_equal(name, tmp_path):
    result = outcome(node_cases()[name], tmp_path)
    assert result.kind == "equal", result.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_no_onnx_node_test_of_a_family_operator_is_wrong(tmp_path):
    """Without the expanded forms, which only benchmarks/onnx_backend_table.py runs, for time."""
    cases = [
        case
        for name, case in node_cases().items()
        if "_expanded" not in name and set(case.operators) & FAMILY_OPERATORS
    ]
    found = outcomes(cases, tmp_path)
    assert len(found) == len(cases) > 1000
    assert not {name: result for name, result in found.items() if result.kind == "wrong"}
    assert sum(result.kind == "equal" for result in found.values()) > 700


def test_one_wrong_answer_among_many_is_found(tmp_path):
    """A negative control of building them together."""
    cases = [node_cases()[name] for name in ("test_tanh", "test_erf", "test_sigmoid")]
    ((inputs, (right,)),) = cases[1].data
    cases[1] = replace(cases[1], data=((inputs, [right + 0.01]),))
    kinds = {name: result.kind for name, result in outcomes(cases, tmp_path).items()}
    assert kinds == {"test_tanh": "equal", "test_erf": "wrong", "test_sigmoid": "equal"}


#: Without those that are spelled like another one, and one of 20 s whose concatenations others have
#: too; benchmarks/onnx_backend_table.py has them all.
_ALIKE = {
    "light_densenet121",
    "light_inception_v1",
    "light_inception_v2",
    "light_vgg19",
    "light_zfnet512",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(networks().keys() - _ALIKE))
def test_light_network_is_equal(name, tmp_path):
    result = outcome(network_case(name), tmp_path)
    assert result.kind == "equal", result.reason
