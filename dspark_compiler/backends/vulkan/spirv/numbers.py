"""Numbers of the SPIR-V specification (unified1), those this code generator uses."""

from enum import IntEnum


class Op(IntEnum):
    """Instructions."""

    # module
    NAME = 5
    EXTENSION = 10
    EXT_INST_IMPORT = 11
    MEMORY_MODEL = 14
    ENTRY_POINT = 15
    EXECUTION_MODE = 16
    CAPABILITY = 17
    DECORATE = 71
    MEMBER_DECORATE = 72
    # types
    TYPE_VOID = 19
    TYPE_BOOL = 20
    TYPE_INT = 21
    TYPE_FLOAT = 22
    TYPE_VECTOR = 23
    TYPE_ARRAY = 28
    TYPE_RUNTIME_ARRAY = 29
    TYPE_STRUCT = 30
    TYPE_POINTER = 32
    TYPE_FUNCTION = 33
    # constants
    CONSTANT_TRUE = 41
    CONSTANT_FALSE = 42
    CONSTANT = 43
    CONSTANT_COMPOSITE = 44
    SPEC_CONSTANT = 50
    CONSTANT_NULL = 46
    UNDEF = 1
    # memory
    COPY_OBJECT = 83
    VARIABLE = 59
    LOAD = 61
    STORE = 62
    ACCESS_CHAIN = 65
    # vectors
    VECTOR_SHUFFLE = 79
    COMPOSITE_CONSTRUCT = 80
    COMPOSITE_EXTRACT = 81
    # conversions
    CONVERT_F_TO_U = 109
    CONVERT_F_TO_S = 110
    CONVERT_S_TO_F = 111
    CONVERT_U_TO_F = 112
    U_CONVERT = 113
    S_CONVERT = 114
    F_CONVERT = 115
    BITCAST = 124
    # arithmetic
    EXT_INST = 12
    S_NEGATE = 126
    F_NEGATE = 127
    I_ADD = 128
    F_ADD = 129
    I_SUB = 130
    F_SUB = 131
    I_MUL = 132
    F_MUL = 133
    U_DIV = 134
    S_DIV = 135
    F_DIV = 136
    U_MOD = 137
    F_REM = 140
    BIT_COUNT = 205
    # bits
    SHIFT_RIGHT_LOGICAL = 194
    SHIFT_RIGHT_ARITHMETIC = 195
    SHIFT_LEFT_LOGICAL = 196
    BITWISE_OR = 197
    BITWISE_XOR = 198
    BITWISE_AND = 199
    NOT = 200
    # logic
    IS_NAN = 156
    IS_INF = 157
    LOGICAL_EQUAL = 164
    LOGICAL_NOT_EQUAL = 165
    LOGICAL_OR = 166
    LOGICAL_AND = 167
    LOGICAL_NOT = 168
    SELECT = 169
    # comparisons
    I_EQUAL = 170
    I_NOT_EQUAL = 171
    U_GREATER_THAN = 172
    S_GREATER_THAN = 173
    U_GREATER_THAN_EQUAL = 174
    S_GREATER_THAN_EQUAL = 175
    U_LESS_THAN = 176
    S_LESS_THAN = 177
    U_LESS_THAN_EQUAL = 178
    S_LESS_THAN_EQUAL = 179
    F_ORD_EQUAL = 180
    F_UNORD_NOT_EQUAL = 183
    F_ORD_LESS_THAN = 184
    F_ORD_GREATER_THAN = 186
    F_ORD_LESS_THAN_EQUAL = 188
    F_ORD_GREATER_THAN_EQUAL = 190
    # synchronisation
    CONTROL_BARRIER = 224
    MEMORY_BARRIER = 225
    ATOMIC_LOAD = 227
    ATOMIC_STORE = 228
    ATOMIC_EXCHANGE = 229
    ATOMIC_COMPARE_EXCHANGE = 230
    ATOMIC_I_ADD = 234
    ATOMIC_S_MIN = 236
    ATOMIC_U_MIN = 237
    ATOMIC_S_MAX = 238
    ATOMIC_U_MAX = 239
    ATOMIC_AND = 240
    ATOMIC_OR = 241
    ATOMIC_XOR = 242
    ATOMIC_F_ADD_EXT = 6035
    # subgroups
    GROUP_NON_UNIFORM_ELECT = 333
    GROUP_NON_UNIFORM_ALL = 334
    GROUP_NON_UNIFORM_ANY = 335
    GROUP_NON_UNIFORM_BROADCAST = 337
    GROUP_NON_UNIFORM_BALLOT = 339
    GROUP_NON_UNIFORM_SHUFFLE = 345
    GROUP_NON_UNIFORM_SHUFFLE_XOR = 346
    GROUP_NON_UNIFORM_SHUFFLE_UP = 347
    GROUP_NON_UNIFORM_SHUFFLE_DOWN = 348
    GROUP_NON_UNIFORM_I_ADD = 349
    GROUP_NON_UNIFORM_F_ADD = 350
    GROUP_NON_UNIFORM_S_MIN = 353
    GROUP_NON_UNIFORM_U_MIN = 354
    GROUP_NON_UNIFORM_F_MIN = 355
    GROUP_NON_UNIFORM_S_MAX = 356
    GROUP_NON_UNIFORM_U_MAX = 357
    GROUP_NON_UNIFORM_F_MAX = 358
    # matrices that a subgroup holds together
    TYPE_COOPERATIVE_MATRIX_KHR = 4456
    COOPERATIVE_MATRIX_LOAD_KHR = 4457
    COOPERATIVE_MATRIX_STORE_KHR = 4458
    COOPERATIVE_MATRIX_MUL_ADD_KHR = 4459
    # control flow
    FUNCTION = 54
    FUNCTION_END = 56
    LABEL = 248
    PHI = 245
    LOOP_MERGE = 246
    SELECTION_MERGE = 247
    BRANCH = 249
    BRANCH_CONDITIONAL = 250
    RETURN = 253
    UNREACHABLE = 255


class Capability(IntEnum):
    """What a module needs of a device."""

    SHADER = 1
    FLOAT16 = 9
    FLOAT64 = 10
    INT64 = 11
    INT64_ATOMICS = 12
    INT16 = 22
    INT8 = 39
    GROUP_NON_UNIFORM = 61
    GROUP_NON_UNIFORM_VOTE = 62
    GROUP_NON_UNIFORM_ARITHMETIC = 63
    GROUP_NON_UNIFORM_BALLOT = 64
    GROUP_NON_UNIFORM_SHUFFLE = 65
    GROUP_NON_UNIFORM_SHUFFLE_RELATIVE = 66
    STORAGE_BUFFER16_BIT_ACCESS = 4433
    STORAGE_BUFFER8_BIT_ACCESS = 4448
    VULKAN_MEMORY_MODEL = 5345
    PHYSICAL_STORAGE_BUFFER_ADDRESSES = 5347
    COOPERATIVE_MATRIX_KHR = 6022
    ATOMIC_FLOAT32_ADD_EXT = 6033


class Storage(IntEnum):
    """Storage classes."""

    INPUT = 1
    WORKGROUP = 4
    FUNCTION = 7
    PUSH_CONSTANT = 9
    PHYSICAL_STORAGE_BUFFER = 5349


class Decoration(IntEnum):
    """Decorations."""

    BLOCK = 2
    SPEC_ID = 1
    ARRAY_STRIDE = 6
    BUILT_IN = 11
    COHERENT = 23
    NON_WRITABLE = 24
    OFFSET = 35
    NO_CONTRACTION = 42


class BuiltIn(IntEnum):
    """Input variables a device fills."""

    WORKGROUP_ID = 26
    LOCAL_INVOCATION_ID = 27
    SUBGROUP_SIZE = 36
    SUBGROUP_LOCAL_INVOCATION_ID = 41
    NUM_SUBGROUPS = 38
    SUBGROUP_ID = 40


class Scope(IntEnum):
    """Who takes part in a barrier or an atomic operation."""

    DEVICE = 1
    WORKGROUP = 2
    SUBGROUP = 3
    QUEUE_FAMILY = 5


class MatrixUse(IntEnum):
    """What a cooperative matrix is in D = A B + C."""

    A = 0
    B = 1
    ACCUMULATOR = 2


class MatrixLayout(IntEnum):
    """How a cooperative matrix lies in memory."""

    ROW_MAJOR = 0
    COLUMN_MAJOR = 1


class Glsl(IntEnum):
    """Instructions of the extended set GLSL.std.450."""

    ROUND_EVEN = 2
    TRUNC = 3
    F_ABS = 4
    S_ABS = 5
    F_SIGN = 6
    FLOOR = 8
    CEIL = 9
    SIN = 13
    COS = 14
    TAN = 15
    ATAN = 18
    SINH = 19
    COSH = 20
    TANH = 21
    ASINH = 22
    ACOSH = 23
    ATANH = 24
    ATAN2 = 25
    POW = 26
    EXP = 27
    LOG = 28
    EXP2 = 29
    LOG2 = 30
    SQRT = 31
    INVERSE_SQRT = 32
    F_MIN = 37
    U_MIN = 38
    S_MIN = 39
    F_MAX = 40
    U_MAX = 41
    S_MAX = 42
    FMA = 50
    LDEXP = 53
    FIND_U_MSB = 75
    FIND_I_LSB = 73


# Memory semantics (bits).
ACQUIRE_RELEASE = 0x8
UNIFORM_MEMORY = 0x40  # buffers, those reached by address too
WORKGROUP_MEMORY = 0x100
MAKE_AVAILABLE_AND_VISIBLE = 0x2000 | 0x4000  # of Vulkan's memory model

# Memory operands (bits).
VOLATILE = 0x1
ALIGNED = 0x2
MAKE_POINTER_VISIBLE = 0x10  # of Vulkan's memory model: what others have written before
NON_PRIVATE = 0x20  # of it, too: others may see it

MAGIC = 0x07230203
VERSION_1_5 = 0x00010500  # what Vulkan 1.2 takes
ADDRESSING_PHYSICAL_STORAGE_BUFFER64 = 5348
MEMORY_MODEL_GLSL450 = 1
MEMORY_MODEL_VULKAN = 3
EXECUTION_MODEL_GL_COMPUTE = 5
EXECUTION_MODE_LOCAL_SIZE = 17
GROUP_REDUCE = 0
