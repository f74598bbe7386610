"""te: tensor expressions and schedules. `import toolchain.te as te` reads as TVM's te in its paper and tutorials.

    A, B = te.placeholder((m, k), name="A"), te.placeholder((k, n), name="B")
    r = te.reduce_axis(k, name="r")
    C = te.compute((m, n), lambda i, j: te.sum(A[i, r] * B[r, j], axis=r), name="C")
    s = te.create_schedule(C)
    xo, yo, xi, yi = s[C].tile(C.op.axis[0], C.op.axis[1], 8, 8)
    print(te.to_text(s.func))
"""

from toolchain.te.collapse import collapse
from toolchain.te.combiner import Combiner, Reducer, comm_reducer, max_value, min_value
from toolchain.te.create import stages_of
from toolchain.te.expr import (
    Expr,
    Index,
    TupleReduce,
    Var,
    all_of,
    any_of,
    call,
    cast,
    const,
    index,
    maximum,
    minimum,
    select,
)
from toolchain.te.interpret import interpret
from toolchain.te.intrin import Intrin, intrin
from toolchain.te.loop_ir import PrimFunc
from toolchain.te.math import (
    abs,
    acos,
    asin,
    atan,
    ceil,
    cos,
    cosh,
    erf,
    exp,
    exp_nonpositive,
    floor,
    fma,
    isinf,
    isnan,
    log,
    normal_cdf,
    pow,
    round,
    rsqrt,
    sigmoid,
    sin,
    sinh,
    sqrt,
    tan,
    tanh,
    trunc,
)
from toolchain.te.schedule import (
    Schedule,
    Stage,
    Step,
    Thread,
    create_schedule,
    replay,
    steps_from_json,
    steps_to_json,
    thread_axis,
)
from toolchain.te.tensor import Compute, Placeholder, Tensor, compute, max, min, placeholder, prod, reduce_axis, sum
from toolchain.te.text import to_text

if_then_else = select
all = all_of
any = any_of

__all__ = [
    "Combiner", "Compute", "Expr", "Index", "Intrin", "Placeholder", "PrimFunc", "Reducer", "Schedule", "Stage", "Step",
    "Tensor", "Thread", "TupleReduce", "Var", "abs", "acos", "all", "all_of", "any", "any_of", "asin", "atan", "call",
    "cast", "ceil", "collapse", "comm_reducer", "compute", "const", "cos", "cosh", "create_schedule", "erf", "exp",
    "exp_nonpositive", "floor", "fma", "if_then_else", "index", "interpret", "intrin", "isinf", "isnan", "log", "max",
    "max_value", "maximum", "min", "min_value", "minimum", "normal_cdf", "placeholder", "pow", "prod", "reduce_axis",
    "replay", "round", "rsqrt", "select", "sigmoid", "sin", "sinh", "sqrt", "stages_of", "steps_from_json", "steps_to_json",
    "sum", "tan", "tanh", "thread_axis", "to_text", "trunc",
]
