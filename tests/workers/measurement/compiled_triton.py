"""Compiles the Triton kernels of `statistics.cuda` for a compute capability, such as 90; prints the name of each.

python compiled_triton.py CAPABILITY
"""

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers.measurement.statistics.cuda import divergence, products

POINTERS = {
    "y": "*bf16",
    "q": "*fp16",
    "logits": "*bf16",
    "reference": "*bf16",
    "scheme": "*bf16",
    "reference_log_sum_exp": "*fp64",
    "next_ids": "*i64",
    "out": "*fp64",
}


def compile_kernel(kernel: triton.JITFunction, capability: int) -> None:
    """Compile a kernel down to machine code."""
    names = [parameter.name for parameter in kernel.params]
    constants = {(place,): 1024 for place, name in enumerate(names) if name.isupper()}
    signature = {name: "constexpr" if name.isupper() else POINTERS.get(name, "i32") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000


for kernel in (products._products, divergence._score, divergence._compare):
    compile_kernel(kernel, int(sys.argv[1]))
    print(kernel.__name__)
