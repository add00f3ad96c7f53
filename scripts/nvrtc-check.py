"""Compiles the kernels with the compiler of another CUDA, NVRTC from its wheels, and keeps nothing:

    python3 scripts/nvrtc-check.py SITE_PACKAGES ARCH...

SITE_PACKAGES holds nvidia/cuda_nvrtc and nvidia/cuda_runtime; ARCH is a compute capability such as 75. Machine code is made, so
that the assembler has its say, too. The exit status is 1 when a kernel does not compile.
"""

import ctypes
import pathlib
import sys

# What NVRTC has no file for, and what its own types are called.
STDINT = b"""#pragma once
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t; typedef unsigned long long uint64_t;
"""


def compiled(nvrtc, source, options):
    """The length of the machine code, and what the compiler had to say."""
    program = ctypes.c_void_p()
    names = (ctypes.c_char_p * 1)(b"stdint.h")
    headers = (ctypes.c_char_p * 1)(STDINT)
    text = source.read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 1, headers, names)
    arguments = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    failed = nvrtc.nvrtcCompileProgram(program, len(options), arguments)
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    size.value = 0
    if not failed:
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return size.value, log.value.decode(errors="replace")


def main():
    site, archs = pathlib.Path(sys.argv[1]), sys.argv[2:]
    nvrtc = ctypes.CDLL(str(next((site / "nvidia/cuda_nvrtc/lib").glob("libnvrtc.so.*"))))
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    kernels = pathlib.Path(__file__).parent.parent / "server/trainer/kernels"
    sources = sorted(kernels.glob("*.cu"))
    broken = 0
    for arch in archs:
        # As math.h defines it.
        infinity = "-DINFINITY=__int_as_float(0x7f800000)"
        options = [infinity, f"-arch=sm_{arch}", "--std=c++17", f"-I{kernels}", f"-I{site / 'nvidia/cuda_runtime/include'}"]
        for source in sources:
            size, log = compiled(nvrtc, source, options)
            if not size:
                broken += 1
                print(f"{source.name} for {arch}:\n{log}", file=sys.stderr)
    print(f"CUDA {major.value}.{minor.value}: {len(sources)} files of kernels for {', '.join(archs)}, {broken} do not compile")
    sys.exit(broken > 0 or not sources)


main()
