"""Expressions: values (floats, ints, bools) and canonical integer indices. Shared by te definitions and the loop IR.

    Expr    Var  Index  Const  Bin  Compare  Cast                           arithmetic.py, built by Python's operators
            Select  Call  Load  Ramp  Broadcast  Tuple  Reduce              compound.py, built by functions

An Index compares by content; everything else by identity (tests compare text).
"""

from toolchain.te.expr.arithmetic import (
    COMPARISONS,
    FALSE,
    TRUE,
    Atom,
    Bin,
    Cast,
    Compare,
    Const,
    Dynamic,
    Expr,
    ExprLike,
    FloorDiv,
    FloorMod,
    Index,
    IndexLike,
    Var,
    as_expr,
    binary,
    cast,
    compare,
    const,
    distinct,
    div_mod,
    index,
    indices,
    logical,
    variables,
)
from toolchain.te.expr.compound import (
    COMBINERS,
    Broadcast,
    Call,
    Load,
    Ramp,
    Reduce,
    Select,
    Tuple,
    TupleReduce,
    all_of,
    any_of,
    call,
    join,
    maximum,
    minimum,
    parts,
    select,
)

__all__ = [
    "COMBINERS", "COMPARISONS", "FALSE", "TRUE", "Atom", "Bin", "Broadcast", "Call", "Cast", "Compare", "Const",
    "Dynamic", "Expr", "ExprLike", "FloorDiv", "FloorMod", "Index", "IndexLike", "Load", "Ramp", "Reduce", "Select",
    "Tuple", "TupleReduce", "Var", "all_of", "any_of", "as_expr", "binary", "call", "cast", "compare", "const",
    "distinct", "div_mod", "index", "indices", "join", "logical", "maximum", "minimum", "parts", "select", "variables",
]
