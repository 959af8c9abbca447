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


def multiply_stage(sums: Buffer, x: Expr, w: Expr, dtype: str, *, columns: int, accumulate: Expr) -> None:
    """Starts sums = x @ w.T, or += where ``accumulate`` is not 0, over a depth of 64: one group.

    Args:
        sums: float32[columns / 2] registers, untouched until ``wait_products``.
        x: pointer to [64 rows, 64] in 128-byte swizzle: row r's octet o is piece o ^ r % 8 of its 128 bytes.
        w: pointer to tiles of fragments.py, [2, columns / 16] of 1 KB, at a multiple of 512.
        dtype: "bfloat16" or "float16".
        columns: features, a multiple of 16 up to 256.
        accumulate: int32.
    """
    kind, count = PTX_TYPE[dtype], columns // 2
    products = []
    for step in range(4):
        # 16 columns further on: 32 bytes of x's rows; in W 32 bytes of a tile's rows, or the next tiles.
        further = (step // 2 * columns * 64 + step % 2 * 32) // 16
        products.append(
            f"add.s64 a, %{count}, {2 * step}; add.s64 b, %{count + 1}, {further};\\n"
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
            f"{{{_names(count)}}}, a, b, {1 if step else 'p'}, 1, 1, 0, 0;\\n"
        )
    name = f"dspark_wgmma_{kind}_{columns}"
    # Descriptors: address / 16, stride / 16 between eights of rows (bit 32), swizzle (bit 62: 1 of 128 bytes, 2 of 64).
    source = f"""
__device__ __forceinline__ void {name}(float* d, const void* x, const void* w, int accumulate) {{
  unsigned long long a = (unsigned)__cvta_generic_to_shared(x) >> 4 | 1ull << 62 | 64ull << 32 | 1ull << 16;
  unsigned long long b = (unsigned)__cvta_generic_to_shared(w) >> 4 | 2ull << 62 | 32ull << 32 | 1ull << 16;
  {_group(products, f"setp.ne.b32 p, %{count + 2}, 0;")}
    : {_sums(count)} : "l"(a), "l"(b), "r"(accumulate) : "memory");
}}
"""
    run(device(name, address(sums), x, w, accumulate, source=source))


def multiply_rows(
    sums: Buffer, a: Expr, b: Expr, dtype: str, *, columns: int, depth: int, a_step: int, b_step: int
) -> None:
    """Starts sums = a @ b.T: one group.

    Args:
        sums: float32[columns / 2] registers, untouched until ``wait_products``.
        a: pointer to [64 rows, depth], in 128-byte swizzle for each 64 columns.
        b: pointer to [columns, depth], likewise.
        dtype: "bfloat16" or "float16".
        columns: rows of b, a multiple of 8 up to 256.
        depth: a multiple of 16.
        a_step: bytes from 64 columns of a to the next.
        b_step: the same of b.
    """
    kind, count = PTX_TYPE[dtype], columns // 2
    steps = range(depth // STEP_DEPTH)
    offsets = [tuple(step // 4 * size // 16 + step % 4 * 2 for size in (a_step, b_step)) for step in steps]
    body = [
        f"add.s64 a, %{count}, {at}; add.s64 b, %{count + 1}, {bt};\\n"
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
        f"{{{_names(count)}}}, a, b, {min(step, 1)}, 1, 1, 0, 0;\\n"
        for step, (at, bt) in zip(steps, offsets, strict=True)
    ]
    name = f"dspark_wgmma_rows_{kind}_{columns}x{depth}_{a_step}_{b_step}"
    source = f"""
__device__ __forceinline__ void {name}(float* d, const void* a, const void* b) {{
  unsigned long long from = (unsigned)__cvta_generic_to_shared(a) >> 4 | 1ull << 62 | 64ull << 32 | 1ull << 16;
  unsigned long long with = (unsigned)__cvta_generic_to_shared(b) >> 4 | 1ull << 62 | 64ull << 32 | 1ull << 16;
  {_group(body)}
    : {_sums(count)} : "l"(from), "l"(with) : "memory");
}}
"""
    run(device(name, address(sums), a, b, source=source))


def multiply_columns(sums: Buffer, a: Buffer, b: Expr, dtype: str, *, columns: int, depth: int, b_step: int) -> None:
    """Starts sums += a @ b: one group.

    Args:
        sums: float32[columns / 2] registers, untouched until ``wait_products``.
        a: uint32[depth / 4], 64 rows as the A fragments of mma.m16n8k16; not written to until then, either.
        b: pointer to [depth, columns], in 128-byte swizzle for each 64 columns.
        dtype: "bfloat16" or "float16".
        columns: a multiple of 64 up to 256.
        depth: a multiple of 16.
        b_step: bytes from 64 columns of b to the next.
    """
    kind, count, parts = PTX_TYPE[dtype], columns // 2, depth // 4
    body = []
    for step in range(depth // STEP_DEPTH):
        fragment = ",".join(f"%{count + 4 * step + i}" for i in range(4))
        body.append(
            f"add.s64 b, %{count + parts}, {step * STEP_DEPTH * 128 // 16};\\n"
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind} "
            f"{{{_names(count)}}}, {{{fragment}}}, b, 1, 1, 1, 1;\\n"
        )
    given = ", ".join(f'"r"(a[{i}])' for i in range(parts))
    name = f"dspark_wgmma_columns_{kind}_{columns}x{depth}_{b_step}"
    # Eights of rows are 1 KB apart (stride), 64 columns from the next b_step (leading).
    source = f"""
__device__ __forceinline__ void {name}(float* d, const unsigned* a, const void* b) {{
  unsigned long long with = (unsigned)__cvta_generic_to_shared(b) >> 4 | 1ull << 62 | 64ull << 32
    | {b_step // 16}ull << 16;
  {_group(body)}
    : {_sums(count)} : {given}, "l"(with) : "memory");
}}
"""
    run(device(name, address(sums), address(a), b, source=source))


def _names(count: int) -> str:
    return ",".join(f"%{i}" for i in range(count))


def _sums(count: int) -> str:
    return ", ".join(f'"+f"(d[{i}])' for i in range(count))


def _group(products: list[str], before: str = "") -> str:
    """The beginning of an assembler statement that starts products and makes them a group."""
    body = "\n    ".join(f'"{line}"' for line in products)
    return f"""asm volatile("{{\\n.reg .b64 a, b; .reg .pred p;\\n{before}\\nwgmma.fence.sync.aligned;\\n"
    {body}
    "wgmma.commit_group.sync.aligned;\\n}}\\n\""""


def wait_products(sums: Buffer, pending: int) -> None:
    """Waits until at most ``pending`` of the warpgroup's groups are under way."""
    count = int(sums.shape[0])
    name = f"dspark_wait_products_{count}_{pending}"
    source = f"""
__device__ __forceinline__ void {name}(float* d) {{
  asm volatile("wgmma.wait_group.sync.aligned {pending};" : {_sums(count)} :: "memory");
}}
"""
    run(device(name, address(sums), source=source))


def set_registers(count: int, *, more: bool) -> None:
    """Gives a warpgroup ``count`` registers a thread, a multiple of 8 (PTX ISA, "setmaxnreg").

    All of the block's warpgroups do it once, in branches of one condition; those that get ``more`` wait for what the
    others give up. The launch has to bound its registers (launch_bounds.py).
    """
    what = "inc" if more else "dec"
    name = f"dspark_registers_{what}_{count}"
    source = f"""
__device__ __forceinline__ void {name}() {{ asm volatile("setmaxnreg.{what}.sync.aligned.u32 {count};"); }}
"""
    run(device(name, source=source))
