"""What a processor can do at most with the instructions of a library, as kernels in LLVM IR.

Each has a kernel's C signature (emit.py), so that the same threads run it as run a step:

    rz_ceiling_read    args: memory, result; step[0]: KiB to read, shared among the threads
    rz_ceiling_int8    args: 16 vectors of 64 bytes, result; step[0]: dot products of each thread,
                       16 lanes each; one factor has 7 bits
    rz_ceiling_bf16    the same, of pairs of bf16
    rz_ceiling_f32     the same, a multiplication and an addition in 16 lanes

Sums stay in registers, as many as a matmul kernel holds. One factor is read anew each time, since
nothing that stays the same would be computed more than once.
"""

from __future__ import annotations

NAMES = ("rz_ceiling_read", "rz_ceiling_int8", "rz_ceiling_bf16", "rz_ceiling_f32")

_READ = """
declare <16 x float> @llvm.fmuladd.v16f32(<16 x float>, <16 x float>, <16 x float>)
define linkonce_odr i32 @rz_ceiling_read_body(ptr %args, ptr %step, i32 %tid, i32 %nth) nounwind {
entry:
  %memory = load ptr, ptr %args, align 8
  %out_at = getelementptr ptr, ptr %args, i64 1
  %out = load ptr, ptr %out_at, align 8
  %count = load i64, ptr %step, align 8
  %thread = sext i32 %tid to i64
  %threads = sext i32 %nth to i64
  %a = mul i64 %count, %thread
  %first = udiv i64 %a, %threads
  %b = add i64 %a, %count
  %last = udiv i64 %b, %threads
  br label %head
head:
  %i = phi i64 [ %first, %entry ], [ %next, %body ]
SUMS
  %more = icmp ult i64 %i, %last
  br i1 %more, label %body, label %done
body:
  %block = getelementptr [1024 x i8], ptr %memory, i64 %i
LOADS
  %next = add i64 %i, 1
  br label %head
done:
TOTAL
  %mine = getelementptr <16 x i32>, ptr %out, i64 %thread
  store <16 x i32> %total, ptr %mine, align 4
  ret i32 0
}
"""
_LOADS_PER_BLOCK, _READ_SUMS = 16, 4

_DOTS = """
define linkonce_odr i32 @rz_ceiling_KIND_body(ptr %args, ptr %step, i32 %tid, i32 %nth) nounwind {
entry:
  %factors = load ptr, ptr %args, align 8
  %out_at = getelementptr ptr, ptr %args, i64 1
  %out = load ptr, ptr %out_at, align 8
  %dots = load i64, ptr %step, align 8
  %count = udiv i64 %dots, ROWS
  %thread = sext i32 %tid to i64
LEFT
  br label %head
head:
  %i = phi i64 [ 0, %entry ], [ %next, %body ]
SUMS
  %more = icmp ult i64 %i, %count
  br i1 %more, label %body, label %done
body:
  %loaded = load volatile <16 x TYPE>, ptr %factors, align 4
RIGHT
DOTS
  %next = add i64 %i, 1
  br label %head
done:
TOTAL
  %mine = getelementptr <16 x ACC>, ptr %out, i64 %thread
  store <16 x ACC> %total, ptr %mine, align 4
  ret i32 0
}
"""
_DOT_LINES = {
    "int8": "%d{s} = call <16 x i32> @rz_dot4(<16 x i32> %s{s}, <16 x i32> %right, <16 x i32> %a{s})",
    "bf16": "%d{s} = call <16 x float> @rz_dot_bf16(<16 x float> %s{s}, <16 x i32> %a{s}, <16 x i32> %right)",
    "f32": "%d{s} = call <16 x float> @llvm.fmuladd.v16f32("
    "<16 x float> %a{s}, <16 x float> %right, <16 x float> %s{s})",
}  # fmt: skip
# Codes of 7 bits, as weights of 4 bits are: AVX2 needs half the work for them.
_RIGHT_LINES = {
    "int8": "%right = and <16 x i32> %loaded, splat (i32 2139062143)",
    "bf16": "%right = bitcast <16 x i32> %loaded to <16 x i32>",
    "f32": "%right = bitcast <16 x float> %loaded to <16 x float>",
}
# element type of sums and of factors
_TYPES = {"int8": ("i32", "i32"), "bf16": ("float", "i32"), "f32": ("float", "float")}


def ceilings_text(rows: int) -> str:
    """The kernels for a library whose largest tile of a matmul has ``rows`` rows."""
    return _read() + "".join(_dots(kind, rows) for kind in _DOT_LINES)


def _read() -> str:
    loads = []
    for n in range(_LOADS_PER_BLOCK):
        s, before = n % _READ_SUMS, n // _READ_SUMS
        summed = f"%s{s}" if before == 0 else f"%s{s}.{before}"
        name = f"%d{s}" if n >= _LOADS_PER_BLOCK - _READ_SUMS else f"%s{s}.{before + 1}"
        loads += [
            f"%at{n} = getelementptr i8, ptr %block, i64 {64 * n}",
            f"%v{n} = load <16 x i32>, ptr %at{n}, align 64",
            f"{name} = add <16 x i32> {summed}, %v{n}",
        ]
    return _filled(_READ, _READ_SUMS, "i32", "add", LOADS=_lines(loads))


def _dots(kind: str, rows: int) -> str:
    sums, factors = _TYPES[kind]
    left = []
    for s in range(rows):
        left += [
            f"%left{s} = getelementptr <16 x {factors}>, ptr %factors, i64 {s}",
            f"%a{s} = load <16 x {factors}>, ptr %left{s}, align 4",
        ]
    dots = _lines([_DOT_LINES[kind].format(s=s) for s in range(rows)])
    add = "add" if sums == "i32" else "fadd"
    text = _filled(_DOTS, rows, sums, add, LEFT=_lines(left), RIGHT=_lines([_RIGHT_LINES[kind]]), DOTS=dots)
    for word, value in {"KIND": kind, "ROWS": str(rows), "TYPE": factors, "ACC": sums}.items():
        text = text.replace(word, value)
    return text


def _filled(text: str, count: int, element: str, add: str, **parts: str) -> str:
    """``text`` with ``count`` running sums %s0 …, whose next values are %d0 …, and %total of them."""
    vector = f"<16 x {element}>"
    parts["SUMS"] = _lines(
        [f"%s{s} = phi {vector} [ zeroinitializer, %entry ], [ %d{s}, %body ]" for s in range(count)]
    )
    names = ["%s0", *(f"%t{s}" for s in range(1, count - 1)), "%total"]
    parts["TOTAL"] = _lines(
        [f"{names[s]} = {add} {vector} {names[s - 1]}, %s{s}" for s in range(1, count)]
    )
    for word in ("LOADS", "LEFT", "RIGHT", "DOTS", "SUMS", "TOTAL"):
        if word in parts:
            text = text.replace(f"\n{word}\n", f"\n{parts[word]}\n")
    return text


def _lines(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
