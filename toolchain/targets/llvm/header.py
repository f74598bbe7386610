"""The C header of an artifact: declares, under the model's own prefix, what runtime/runtime.c defines; documented."""

from __future__ import annotations

import re
from collections.abc import Sequence

from toolchain.targets.llvm.plan import Plan, Value

# What a library exports, each as <model>_<function>; the runtime defines tc_<function>.
API = (
    "create",
    "create_from_memory",
    "run",
    "run_shapes",
    "run_bucket",
    "run_range",
    "destroy",
    "n_inputs",
    "n_outputs",
    "input",
    "output",
    "n_buckets",
    "find_bucket",
    "bucket_input",
    "bucket_output",
    "output_shape",
    "shape_error",
    "threads",
    "status_text",
    "missing_feature",
    "version",
    "n_ops",
    "op_name",
    "set_profile",
    "set_after_op",
    "arena",
)

_KEYWORDS = """
    alignas alignof and asm auto bool break case catch char class compl concept const constexpr continue decltype default
    delete do double else enum explicit export extern false float for friend goto if inline int long mutable namespace new
    noexcept not nullptr operator or private protected public register requires restrict return short signed sizeof static
    struct switch template this throw true try typedef typeid typename typeof union unsigned using virtual void volatile
    while xor
"""


def c_identifier(name: str) -> str:
    """A C and C++ identifier, and a safe file name, from any text: model names come from strangers.

    resnet-18 -> resnet_18, 2d -> m_2d, while -> m_while, ../../x -> x, "" -> model
    """
    text = re.sub(r"[^A-Za-z0-9]+", "_", name)[:64].strip("_") or "model"
    return f"m_{text}" if text[0].isdigit() or text in _KEYWORDS.split() or text == "tc" else text


def _comment(value: Value) -> str:
    """One line about a value; its name is a stranger's too and must not end the comment."""
    name = re.sub(r"[^A-Za-z0-9_.:-]", "_", value.name)
    extents = value.extents or (-1,) * len(value.shape)
    shape = ", ".join(f"{n} at most" if at >= 0 else str(n) for n, at in zip(value.shape, extents))
    return f" *   {name}: {value.dtype} [{shape}], {value.size_bytes} bytes"


def header_text(plans: Sequence[Plan], name: str) -> str:
    """The whole header of the model that `plans` run, one per shape bucket; `name` is its C identifier."""
    values = "".join(_values(plan, f" of shape bucket {n}" if len(plans) > 1 else "") for n, plan in enumerate(plans))
    text = _TEMPLATE.replace("@VALUES@", values).replace("@USE@", _FIXED if len(plans) == 1 else _BUCKETS)
    return text.replace("@NAME@", name.upper()).replace("@name@", name)


def _values(plan: Plan, bucket: str) -> str:
    inputs = "\n".join(_comment(v) for v in plan.inputs) or " *   (none)"
    outputs = "\n".join(_comment(v) for v in plan.outputs) or " *   (none)"
    return f" * Inputs{bucket}, in order:\n{inputs}\n * Outputs{bucket}, in order:\n{outputs}\n"


_FIXED = """\
 *     const void *inputs[] = { ... };
 *     void *outputs[] = { ... };
 *     status = @name@_run(model, inputs, outputs);
"""

_BUCKETS = """\
 *     const int64_t shape[] = { ... };                 one per input, as long as its rank
 *     const int64_t *shapes[] = {shape, ...};
 *     int64_t bucket = @name@_find_bucket(shapes);     says how large the outputs are: @name@_bucket_output(bucket, 0)
 *     const void *inputs[] = { ... };
 *     void *outputs[] = { ... };
 *     status = @name@_run_shapes(model, shapes, inputs, outputs);
"""

_TEMPLATE = """\
/* @name@: a compiled neural network. C99 and C++; link with -l@name@ (lib@name@.so, which itself needs no library).
 *
@VALUES@ *
 *     @name@_model *model;
 *     int status = @name@_create(&model, "weights.bin", 0);
 *     if (status != @NAME@_OK) { puts(@name@_status_text(status)); return 1; }
@USE@ *     @name@_destroy(model);
 *
 * Arrays are contiguous, in row-major order, aligned as their elements. Calls of one model take turns; create several models
 * to run side by side (to share weights, map the file and create them from memory). Results do not depend on the number of
 * threads.
 * After fork() the child may use the model: its first call starts threads of its own.
 */
#ifndef @NAME@_H
#define @NAME@_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct @name@_model @name@_model;

enum {
    @NAME@_OK = 0,
    @NAME@_BAD_ARGUMENT = 1,    /* a null pointer, misaligned weights in memory, operators or buckets that do not exist */
    @NAME@_MISSING_FEATURE = 2, /* not the CPU this was compiled for: see @name@_missing_feature */
    @NAME@_NO_FILE = 3,         /* the weights file cannot be opened */
    @NAME@_NOT_WEIGHTS = 4,     /* wrong size or magic number */
    @NAME@_OTHER_WEIGHTS = 5,   /* weights of another model or build */
    @NAME@_NO_MEMORY = 6,
    @NAME@_NO_THREADS = 7,      /* the system refuses to start threads */
    @NAME@_NO_PERMISSION = 8,   /* the system refuses the use of AMX tiles */
    @NAME@_WRONG_SHAPE = 9,     /* no bucket takes inputs of these shapes: see @name@_shape_error */
    @NAME@_SHAPES_NEEDED = 10,  /* @name@_run of a model with several buckets: call @name@_run_shapes */
    @NAME@_MISFIT = 11          /* the inputs' values lead to a branch that their shapes do not fit; outputs are undefined */
};

/* Load the network. threads: how many compute, the caller included; 0: one per CPU this process may run on. */
int @name@_create(@name@_model **model, const char *weights_path, int threads);

/* The same from the content of the weights file: aligned to 64 bytes, and alive as long as the model. */
int @name@_create_from_memory(@name@_model **model, const void *weights, size_t size_bytes, int threads);

/* Run once: read all inputs, write all outputs. Outputs may not overlap inputs. For models of one shape bucket. */
int @name@_run(@name@_model *model, const void *const *inputs, void *const *outputs);

/* The same for inputs of these shapes (shapes[i]: the extents of input i), in the bucket that is made for them. */
int @name@_run_shapes(@name@_model *model, const int64_t *const *shapes, const void *const *inputs, void *const *outputs);
/* The same in that bucket, whatever the shapes are. */
int @name@_run_bucket(@name@_model *model, int64_t bucket, const void *const *inputs, void *const *outputs);

/* Stop the threads and free everything. No run may be going on. NULL is fine. */
void @name@_destroy(@name@_model *model);

/* What the network takes and gives; NULL for an index out of range. dtype as NumPy spells it ("float32").
 * All buckets have the same names, dtypes and ranks; @name@_input and @name@_output are those of bucket 0.
 * Of an output whose shape depends on data, `shape` is the most it can be and `extents` is not NULL: -1 for each dimension
 * that is static all the same. A run writes the elements of its true shape one behind the other: see @name@_output_shape. */
typedef struct {
    const char *name, *dtype;
    const int64_t *shape;
    int32_t rank;
    int64_t size_bytes;
    const int64_t *extents;
} @name@_tensor;
int64_t @name@_n_inputs(void);
int64_t @name@_n_outputs(void);
const @name@_tensor *@name@_input(int64_t index);
const @name@_tensor *@name@_output(int64_t index);

/* The shape that the last run of this model gave output `index`: as many numbers as its rank. */
int @name@_output_shape(const @name@_model *model, int64_t index, int64_t *shape);

/* Shape buckets: what the model was built for. Their memory is shared; going from one to another costs little. */
int64_t @name@_n_buckets(void);
int64_t @name@_find_bucket(const int64_t *const *shapes); /* the one for inputs of these shapes, or -1 */
const @name@_tensor *@name@_bucket_input(int64_t bucket, int64_t index);
const @name@_tensor *@name@_bucket_output(int64_t bucket, int64_t index);
/* Why there is no bucket for these shapes and what to do, as text of at most size - 1 characters; "" when there is one.
 * Returns the length of the whole text. */
size_t @name@_shape_error(const int64_t *const *shapes, char *text, size_t size);

int @name@_threads(const @name@_model *model);
const char *@name@_status_text(int status);
const char *@name@_missing_feature(void); /* the first CPU feature this machine lacks, or NULL */
const char *@name@_version(void);

/* For tools. A bucket's operators are numbered as in plan.json, with bodies of loops and branches, outer before inner. */
int64_t @name@_n_ops(int64_t bucket);
const char *@name@_op_name(int64_t bucket, int64_t op);
/* Add the time of each operator, in nanoseconds, to ns[op] in every run from now on, of any bucket; NULL stops that. */
void @name@_set_profile(@name@_model *model, int64_t *ns);
/* Call hook(user, op) after each operator, on the thread that called run; NULL stops that. It may not call the model. */
void @name@_set_after_op(@name@_model *model, void (*hook)(void *user, int64_t op), void *user);
/* Run the operators [first, end) of a bucket only; both must lie on the outermost level. */
int @name@_run_range(@name@_model *model, int64_t bucket, const void *const *inputs, void *const *outputs, int64_t first,
                     int64_t end);
/* The memory of intermediate values, which all buckets use. */
void *@name@_arena(@name@_model *model, size_t *size_bytes);

#ifdef __cplusplus
}
#endif
#endif
"""
