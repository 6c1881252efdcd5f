"""What TensorRT's ONNX parser takes, as data.

Source: ``docs/operators.md`` of onnx/onnx-tensorrt for TensorRT 10.15, the first release with RMSNormalization and
RotaryEmbedding; its notes on types; its restrictions, as far as a node shows them. TensorRT 11 takes all of it, and
operator sets up to 25. Left out, and so refused, is what needs quantisation or a graph within a graph, and what is
taken only for shapes that a node does not show (pooling, GridSample, DeformConv, EyeLike, Hardmax, STFT).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

SINCE = (10, 15)
OPERATOR_SETS = range(9, 25)
MAX_RANK = 8

FLOATS = frozenset({"float32", "float16", "bfloat16"})
INTEGERS = frozenset({"int32", "int64"})
NUMBERS = FLOATS | INTEGERS
ANY = NUMBERS | {"bool"}
AT_THE_EDGE = "uint8"  # the type of inputs and outputs of a graph that nothing but a Cast may touch

TYPES: Mapping[str, frozenset[str]] = {
    name: types
    for types, names in {
        FLOATS: "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos Cosh CumSum "
        "Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization HardSigmoid "
        "HardSwish InstanceNormalization IsInf LSTM LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MatMul "
        "MeanVarianceNormalization PRelu RMSNormalization RNN Reciprocal Resize RotaryEmbedding Round Selu Sigmoid Sin "
        "Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu Attention",
        FLOATS - {"bfloat16"}: "Mish",
        NUMBERS: "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max "
        "Mean Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
        "ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu ScatterElements ScatterND Shrink Sign SpaceToDepth Sub "
        "Sum TopK",
        ANY: "Concat Constant ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity OneHot Reshape "
        "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
        ANY | {AT_THE_EDGE}: "Cast CastLike",
        frozenset({"bool"}): "And Not Or Xor",
    }.items()
    for name in names.split()
}
"""Operators, each with the types of the tensors that it computes; indices, lengths and masks aside."""

DATA_DEPENDENT = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""Operators whose output is as long as the data make it, so that nobody can allocate it before."""

LENGTHS: Mapping[str, Collection[int]] = {
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1,),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Tile": (1,),
    "TopK": (1,),
}
"""Inputs that say how long an output is."""


@dataclass(frozen=True)
class Restriction:
    """Which inputs are ``constant``, what ``attributes`` may be, how many inputs and outputs, and of how many axes."""

    constant: tuple[int, ...] = ()
    attributes: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    inputs: int | None = None
    outputs: int | None = None
    rank: int | None = None


RESTRICTIONS: Mapping[str, Restriction] = {
    "Attention": Restriction(
        inputs=4, outputs=1, rank=4, attributes={"softcap": (0.0,), "qk_matmul_output_mode": (0,)}
    ),
    "BatchNormalization": Restriction(outputs=1, attributes={"training_mode": (0,)}),
    "CumSum": Restriction(constant=(1,)),
    "LSTM": Restriction(attributes={"input_forget": (0,), "layout": (0,)}),
    "LayerNormalization": Restriction(outputs=1),
    "OneHot": Restriction(constant=(1,)),
    "Resize": Restriction(
        attributes={
            "antialias": (0,),
            "coordinate_transformation_mode": (
                "half_pixel",
                "pytorch_half_pixel",
                "tf_half_pixel_for_nn",
                "asymmetric",
                "align_corners",
            ),
            "keep_aspect_ratio_policy": ("stretch",),
            "mode": ("nearest", "linear"),
            "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
        }
    ),
    "ScatterND": Restriction(attributes={"reduction": ("none",)}),
    "Squeeze": Restriction(constant=(1,)),
    "TopK": Restriction(attributes={"sorted": (1,)}),
    "Unsqueeze": Restriction(constant=(1,)),
} | {name: Restriction(constant=(1,)) for name in TYPES if name.startswith("Reduce")}
