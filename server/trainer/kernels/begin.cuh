// How kernels follow each other.

#pragma once

/// First thing in every kernel. A launch may begin while the one before it ends, which hides what starting costs: from here on
/// everything that the one before wrote is there, and the next may begin.
__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
