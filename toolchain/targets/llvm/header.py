"""The C header of an artifact: declares, under the model's own prefix, what runtime/runtime.c defines; documented."""

from __future__ import annotations

import re

from toolchain.targets.llvm.plan import Plan, Value

# What a library exports, each as <model>_<function>; the runtime defines tc_<function>.
API = (
    "create",
    "create_from_memory",
    "run",
    "run_range",
    "destroy",
    "n_inputs",
    "n_outputs",
    "input",
    "output",
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
    return f" *   {name}: {value.dtype} [{', '.join(map(str, value.shape))}], {value.size_bytes} bytes"


def header_text(plan: Plan, name: str) -> str:
    """The whole header of the model that `plan` runs; `name` is its C identifier."""
    inputs = "\n".join(_comment(v) for v in plan.inputs) or " *   (none)"
    outputs = "\n".join(_comment(v) for v in plan.outputs) or " *   (none)"
    text = _TEMPLATE.replace("@INPUTS@", inputs).replace("@OUTPUTS@", outputs)
    return text.replace("@NAME@", name.upper()).replace("@name@", name)


_TEMPLATE = """\
/* @name@: a compiled neural network. C99 and C++; link with -l@name@ (lib@name@.so, which itself needs no library).
 *
 * Inputs, in order:
@INPUTS@
 * Outputs, in order:
@OUTPUTS@
 *
 *     @name@_model *model;
 *     int status = @name@_create(&model, "weights.bin", 0);
 *     if (status != @NAME@_OK) { puts(@name@_status_text(status)); return 1; }
 *     const void *inputs[] = { ... };
 *     void *outputs[] = { ... };
 *     status = @name@_run(model, inputs, outputs);
 *     @name@_destroy(model);
 *
 * Arrays are contiguous, in row-major order, aligned as their elements. Calls of one model take turns; create several models
 * to run side by side (they share the pages of the weights file). Results do not depend on the number of threads.
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
    @NAME@_BAD_ARGUMENT = 1,    /* a null pointer, misaligned weights in memory, operators that do not exist */
    @NAME@_MISSING_FEATURE = 2, /* not the CPU this was compiled for: see @name@_missing_feature */
    @NAME@_NO_FILE = 3,         /* the weights file cannot be opened */
    @NAME@_NOT_WEIGHTS = 4,     /* wrong size or magic number */
    @NAME@_OTHER_WEIGHTS = 5,   /* weights of another model or build */
    @NAME@_NO_MEMORY = 6,
    @NAME@_NO_THREADS = 7,      /* the system refuses to start threads */
    @NAME@_NO_PERMISSION = 8    /* the system refuses the use of AMX tiles */
};

/* Load the network. threads: how many compute, the caller included; 0: one per CPU this process may run on. */
int @name@_create(@name@_model **model, const char *weights_path, int threads);

/* The same from the content of the weights file: aligned to 64 bytes, and alive as long as the model. */
int @name@_create_from_memory(@name@_model **model, const void *weights, size_t size_bytes, int threads);

/* Run once: read all inputs, write all outputs. Outputs may not overlap inputs. */
int @name@_run(@name@_model *model, const void *const *inputs, void *const *outputs);

/* Stop the threads and free everything. No run may be going on. NULL is fine. */
void @name@_destroy(@name@_model *model);

/* What the network takes and gives; NULL for an index out of range. dtype as NumPy spells it ("float32"). */
typedef struct {
    const char *name, *dtype;
    const int64_t *shape;
    int32_t rank;
    int64_t size_bytes;
} @name@_tensor;
int64_t @name@_n_inputs(void);
int64_t @name@_n_outputs(void);
const @name@_tensor *@name@_input(int64_t index);
const @name@_tensor *@name@_output(int64_t index);

int @name@_threads(const @name@_model *model);
const char *@name@_status_text(int status);
const char *@name@_missing_feature(void); /* the first CPU feature this machine lacks, or NULL */
const char *@name@_version(void);

/* For tools. Operators are numbered as in plan.json, bodies of loops and branches included, outer before inner. */
int64_t @name@_n_ops(void);
const char *@name@_op_name(int64_t op);
/* Add the time of each operator, in nanoseconds, to ns[op] in every run from now on; NULL stops that. */
void @name@_set_profile(@name@_model *model, int64_t *ns);
/* Call hook(user, op) after each operator, on the thread that called run; NULL stops that. It may not call the model. */
void @name@_set_after_op(@name@_model *model, void (*hook)(void *user, int64_t op), void *user);
/* Run the operators [first, end) only; both must lie on the outermost level. */
int @name@_run_range(@name@_model *model, const void *const *inputs, void *const *outputs, int64_t first, int64_t end);
/* The memory of intermediate values. */
void *@name@_arena(@name@_model *model, size_t *size_bytes);

#ifdef __cplusplus
}
#endif
#endif
"""
