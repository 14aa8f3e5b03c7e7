"""llama.cpp's own library writes a GGUF file anew as Q4_0, the format for which its kernels are fastest.

    PYTHON requantize.py MODEL.gguf OUT.gguf THREADS

The weights then differ a little from the file's: a row for speed, not for accuracy.
"""

from __future__ import annotations

import ctypes
import sys

import llama_cpp

SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)


def main() -> None:
    source, target, threads = sys.argv[1:]
    llama_cpp.llama_log_set(SILENT, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, int(threads)
    params.allow_requantize = params.pure = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot requantise {source}")


if __name__ == "__main__":
    main()
