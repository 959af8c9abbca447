"""Warpgroup products on Hopper: wgmma on operands in shared memory (PTX ISA, "Asynchronous warpgroup level matrix").

The sums of a warpgroup's 64 rows and n columns are float32[n/2] a thread: with g = lane / 4 and t = lane % 4, element
4j + i is row 16 warp + g + 8 (i / 2), column 8j + 2t + i % 2, as in mma.m16n8k16.
"""

from dspark_compiler.schedules.cuda.mma import PTX_TYPE
from dspark_compiler.schedules.cuda.threads import address, device, run
from dspark_compiler.schedules.tir import Buffer, Expr

WARPGROUP = 128  # threads, four warps of the multiprocessor's four quarters
GROUP_ROWS = 64
STEP_DEPTH = 16


def multiply_stage(sums: Buffer, x: Expr, w: Expr, dtype: str, *, columns: int, steps: int, accumulate: Expr) -> None:
    """Starts sums = x @ w.T, or += where ``accumulate`` is not 0, over 16 ``steps`` of depth: one group.

    Args:
        sums: float32[columns / 2] registers, untouched until ``wait_products``.
        x: pointer to [64 rows, 64] in 128-byte swizzle: row r's octet o is piece o ^ r % 8 of its 128 bytes.
        w: pointer to tiles of fragments.py, [steps / 2, columns / 16] of 1 KB, at a multiple of 512.
        dtype: "bfloat16" or "float16".
        columns: features, a multiple of 16 up to 256.
        steps: 1 to 4.
        accumulate: int32.
    """
    kind = PTX_TYPE[dtype]
    count = columns // 2
    registers = ",".join(f"%{i}" for i in range(count))
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    products = []
    for step in range(steps):
        # 16 columns further on: 32 bytes of x's rows; in W 32 bytes of a tile's rows, or the next tiles.
        further = (step // 2 * columns * 64 + step % 2 * 32) // 16
        products.append(
            f"add.s64 a, %{count}, {2 * step}; add.s64 b, %{count + 1}, {further};\\n"
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
            f"{{{registers}}}, a, b, {1 if step else 'p'}, 1, 1, 0, 0;\\n"
        )
    body = "\n    ".join(f'"{line}"' for line in products)
    name = f"dspark_wgmma_{kind}_{columns}x{steps}"
    # Descriptors: address / 16, stride / 16 between eights of rows (bit 32), swizzle (bit 62: 1 of 128 bytes, 2 of 64).
    source = f"""
__device__ __forceinline__ void {name}(float* d, const void* x, const void* w, int accumulate) {{
  unsigned long long a = (unsigned)__cvta_generic_to_shared(x) >> 4 | 1ull << 62 | 64ull << 32 | 1ull << 16;
  unsigned long long b = (unsigned)__cvta_generic_to_shared(w) >> 4 | 2ull << 62 | 32ull << 32 | 1ull << 16;
  asm volatile("{{\\n.reg .b64 a, b; .reg .pred p;\\nsetp.ne.b32 p, %{count + 2}, 0;\\nwgmma.fence.sync.aligned;\\n"
    {body}
    "wgmma.commit_group.sync.aligned;\\n}}\\n"
    : {operands}
    : "l"(a), "l"(b), "r"(accumulate) : "memory");
}}
"""
    run(device(name, address(sums), x, w, accumulate, source=source))


def wait_products(sums: Buffer, pending: int) -> None:
    """Waits until at most ``pending`` of the warpgroup's groups are under way."""
    count = int(sums.shape[0])
    operands = ", ".join(f'"+f"(d[{i}])' for i in range(count))
    name = f"dspark_wait_products_{count}_{pending}"
    source = f"""
__device__ __forceinline__ void {name}(float* d) {{
  asm volatile("wgmma.wait_group.sync.aligned {pending};" : {operands} :: "memory");
}}
"""
    run(device(name, address(sums), source=source))
