"""The operators that a trainable file may have, and how each is put together.

They compute with numbers and variables; none reaches outside of the interpreter, calls another
graph, loops, or has code of its own (custom operators and Flex have). The numbers are those of
`tensorflow/compiler/mlir/lite/schema/schema.fbs`.
"""

from typing import Final, NamedTuple

VAR_HANDLE: Final = 142
READ_VARIABLE: Final = 143
ASSIGN_VARIABLE: Final = 144


class Operator(NamedTuple):
    """How an operator is put together.

    `options` is the number of its table of options, of which all fields are scalars but those in
    `OPTIONS_VECTORS` and `OPTIONS_TEXTS`.
    """

    name: str
    options: int
    inputs_min: int
    inputs_max: int
    outputs_min: int = 1
    outputs_max: int = 1


# Fields of options that point elsewhere: vectors of int32, and texts.
OPTIONS_VECTORS: Final = {17: (0,), 30: (0,)}
OPTIONS_TEXTS: Final = {111: (0, 1)}
OPTIONS_FORBIDDEN: Final = {8: (5,)}

_MANY: Final = 1_024
ALLOWED: Final[dict[int, Operator]] = {
    0: Operator("ADD", 11, 2, 2),
    1: Operator("AVERAGE_POOL_2D", 5, 1, 1),
    2: Operator("CONCATENATION", 10, 1, _MANY),
    3: Operator("CONV_2D", 1, 2, 3),
    4: Operator("DEPTHWISE_CONV_2D", 2, 2, 3),
    5: Operator("DEPTH_TO_SPACE", 94, 1, 1),
    6: Operator("DEQUANTIZE", 38, 1, 1),
    8: Operator("FLOOR", 0, 1, 1),
    9: Operator("FULLY_CONNECTED", 8, 2, 3),
    11: Operator("L2_NORMALIZATION", 12, 1, 1),
    13: Operator("LOCAL_RESPONSE_NORMALIZATION", 13, 1, 1),
    14: Operator("LOGISTIC", 0, 1, 1),
    17: Operator("MAX_POOL_2D", 5, 1, 1),
    18: Operator("MUL", 21, 2, 2),
    19: Operator("RELU", 0, 1, 1),
    20: Operator("RELU_N1_TO_1", 0, 1, 1),
    21: Operator("RELU6", 0, 1, 1),
    22: Operator("RESHAPE", 17, 1, 2),
    23: Operator("RESIZE_BILINEAR", 15, 2, 2),
    25: Operator("SOFTMAX", 9, 1, 1),
    26: Operator("SPACE_TO_DEPTH", 19, 1, 1),
    28: Operator("TANH", 0, 1, 1),
    34: Operator("PAD", 22, 2, 2),
    36: Operator("GATHER", 23, 2, 2),
    37: Operator("BATCH_TO_SPACE_ND", 24, 3, 3),
    38: Operator("SPACE_TO_BATCH_ND", 25, 3, 3),
    39: Operator("TRANSPOSE", 26, 2, 2),
    40: Operator("MEAN", 27, 2, 2),
    41: Operator("SUB", 28, 2, 2),
    42: Operator("DIV", 29, 2, 2),
    43: Operator("SQUEEZE", 30, 1, 1),
    45: Operator("STRIDED_SLICE", 32, 4, 4),
    47: Operator("EXP", 33, 1, 1),
    49: Operator("SPLIT", 35, 2, 2, 1, _MANY),
    50: Operator("LOG_SOFTMAX", 36, 1, 1),
    53: Operator("CAST", 37, 1, 1),
    54: Operator("PRELU", 0, 2, 2),
    55: Operator("MAXIMUM", 39, 2, 2),
    56: Operator("ARG_MAX", 40, 2, 2),
    57: Operator("MINIMUM", 39, 2, 2),
    58: Operator("LESS", 41, 2, 2),
    59: Operator("NEG", 42, 1, 1),
    60: Operator("PADV2", 43, 3, 3),
    61: Operator("GREATER", 44, 2, 2),
    62: Operator("GREATER_EQUAL", 45, 2, 2),
    63: Operator("LESS_EQUAL", 46, 2, 2),
    64: Operator("SELECT", 47, 3, 3),
    65: Operator("SLICE", 48, 3, 3),
    67: Operator("TRANSPOSE_CONV", 49, 3, 4),
    69: Operator("TILE", 51, 2, 2),
    70: Operator("EXPAND_DIMS", 52, 2, 2),
    71: Operator("EQUAL", 53, 2, 2),
    72: Operator("NOT_EQUAL", 54, 2, 2),
    73: Operator("LOG", 0, 1, 1),
    74: Operator("SUM", 27, 2, 2),
    75: Operator("SQRT", 0, 1, 1),
    76: Operator("RSQRT", 0, 1, 1),
    78: Operator("POW", 56, 2, 2),
    82: Operator("REDUCE_MAX", 27, 2, 2),
    83: Operator("PACK", 59, 1, _MANY),
    84: Operator("LOGICAL_OR", 60, 2, 2),
    85: Operator("ONE_HOT", 61, 4, 4),
    86: Operator("LOGICAL_AND", 62, 2, 2),
    87: Operator("LOGICAL_NOT", 63, 1, 1),
    88: Operator("UNPACK", 64, 1, 1, 1, _MANY),
    89: Operator("REDUCE_MIN", 27, 2, 2),
    92: Operator("SQUARE", 66, 1, 1),
    93: Operator("ZEROS_LIKE", 67, 1, 1),
    94: Operator("FILL", 68, 2, 2),
    97: Operator("RESIZE_NEAREST_NEIGHBOR", 74, 2, 2),
    98: Operator("LEAKY_RELU", 75, 1, 1),
    99: Operator("SQUARED_DIFFERENCE", 76, 2, 2),
    100: Operator("MIRROR_PAD", 77, 2, 2),
    101: Operator("ABS", 78, 1, 1),
    102: Operator("SPLIT_V", 79, 3, 3, 1, _MANY),
    104: Operator("CEIL", 0, 1, 1),
    105: Operator("REVERSE_V2", 81, 2, 2),
    106: Operator("ADD_N", 82, 1, _MANY),
    111: Operator("ELU", 0, 1, 1),
    114: Operator("QUANTIZE", 89, 1, 1),
    116: Operator("ROUND", 0, 1, 1),
    117: Operator("HARD_SWISH", 91, 1, 1),
    123: Operator("SELECT_V2", 98, 3, 3),
    126: Operator("BATCH_MATMUL", 101, 2, 2),
    130: Operator("BROADCAST_TO", 104, 2, 2),
    VAR_HANDLE: Operator("VAR_HANDLE", 111, 0, 0),
    READ_VARIABLE: Operator("READ_VARIABLE", 112, 1, 1),
    ASSIGN_VARIABLE: Operator("ASSIGN_VARIABLE", 113, 2, 2, 0, 0),
    150: Operator("GELU", 116, 1, 1),
}

# Which inputs say shapes, axes or places, and are therefore constants: what examples decide, the
# trial does not see.
CONSTANT_INPUTS: Final[dict[int, tuple[int, ...]]] = {
    22: (1,),
    23: (1,),
    34: (1,),
    37: (1, 2),
    38: (1, 2),
    39: (1,),
    40: (1,),
    45: (1, 2, 3),
    49: (0,),
    56: (1,),
    60: (1,),
    65: (1, 2),
    67: (0,),
    69: (1,),
    70: (1,),
    74: (1,),
    82: (1,),
    85: (1,),
    89: (1,),
    94: (0,),
    97: (1,),
    100: (1,),
    102: (1, 2),
    105: (1,),
    130: (1,),
}
