//! The functions of NVIDIA's driver that the engine calls.

use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

use super::library::library;

pub(super) type Context = *mut c_void;
pub(super) type Stream = *mut c_void;
pub(super) type Event = *mut c_void;
pub(super) type Module = *mut c_void;
pub(super) type Function = *mut c_void;
pub(super) type Graph = *mut c_void;
pub(super) type Executable = *mut c_void;

pub(super) const COMPUTE_CAPABILITY_MAJOR: c_int = 75;
pub(super) const COMPUTE_CAPABILITY_MINOR: c_int = 76;
pub(super) const MULTIPROCESSORS: c_int = 16;
pub(super) const MAX_DYNAMIC_SHARED_BYTES: c_int = 8;
/// A stream that does not wait for the legacy default stream; that one cannot be captured.
pub(super) const NON_BLOCKING: c_uint = 1;
/// Only this thread's unsafe calls would break a capture.
pub(super) const CAPTURE_THREAD_LOCAL: c_uint = 1;
/// Main work goes first where both lanes want the GPU. The driver takes the nearest that it has.
pub(super) const FIRST: c_int = -5;
pub(super) const LAST: c_int = 0;
/// Kernels of a graph keep the priorities of the streams that they were recorded on.
pub(super) const KEEP_PRIORITIES: c_ulonglong = 8;
/// An event that only orders work.
pub(super) const DISABLE_TIMING: c_uint = 2;
pub(super) const OUT_OF_MEMORY: i32 = 2;

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub grid: [c_uint; 3],
    pub block: [c_uint; 3],
    pub shared_bytes: c_uint,
    pub stream: Stream,
    pub attributes: *const LaunchAttribute,
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute` with a value of one integer.
#[repr(C)]
pub(super) struct LaunchAttribute {
    pub id: c_uint,
    pub padding: c_uint,
    pub value: [c_int; 16],
}

/// A kernel may be set up while the one before it still runs; it waits by itself before it touches memory.
pub(super) const PROGRAMMATIC_SERIALIZATION: c_uint = 6;

library!(
    /// `libcuda`.
    Driver, describe {
        fn cuInit(flags: c_uint);
        fn cuDriverGetVersion(version: *mut c_int);
        fn cuDeviceGetCount(count: *mut c_int);
        fn cuDeviceGet(device: *mut c_int, ordinal: c_int);
        fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int);
        fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int);
        fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
        fn cuDevicePrimaryCtxRetain(context: *mut Context, device: c_int);
        fn cuDevicePrimaryCtxRelease_v2(device: c_int);
        fn cuCtxSetCurrent(context: Context);
        fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
        fn cuMemAlloc_v2(address: *mut u64, bytes: usize);
        fn cuMemFree_v2(address: u64);
        fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize);
        fn cuMemFreeHost(pointer: *mut c_void);
        fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: Stream);
        fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: Stream);
        fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Stream);
        fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: Stream);
        fn cuStreamCreateWithPriority(stream: *mut Stream, flags: c_uint, priority: c_int);
        fn cuStreamDestroy_v2(stream: Stream);
        fn cuStreamSynchronize(stream: Stream);
        fn cuStreamWaitEvent(stream: Stream, event: Event, flags: c_uint);
        fn cuStreamBeginCapture_v2(stream: Stream, mode: c_uint);
        fn cuStreamEndCapture(stream: Stream, graph: *mut Graph);
        fn cuGraphInstantiateWithFlags(executable: *mut Executable, graph: Graph, flags: c_ulonglong);
        fn cuGraphGetNodes(graph: Graph, nodes: *mut *mut c_void, count: *mut usize);
        fn cuGraphLaunch(executable: Executable, stream: Stream);
        fn cuGraphExecDestroy(executable: Executable);
        fn cuGraphDestroy(graph: Graph);
        fn cuModuleLoadData(module: *mut Module, image: *const c_void);
        fn cuModuleUnload(module: Module);
        fn cuModuleGetFunction(function: *mut Function, module: Module, name: *const c_char);
        fn cuFuncSetAttribute(function: Function, attribute: c_int, value: c_int);
        fn cuLaunchKernelEx(
            config: *const LaunchConfig,
            function: Function,
            arguments: *mut *mut c_void,
            extra: *mut *mut c_void,
        );
        fn cuEventCreate(event: *mut Event, flags: c_uint);
        fn cuEventDestroy_v2(event: Event);
        fn cuEventRecord(event: Event, stream: Stream);
        fn cuEventSynchronize(event: Event);
        fn cuEventElapsedTime(milliseconds: *mut f32, start: Event, end: Event);
    }
);

/// The driver's statuses that people meet.
fn describe(status: i32) -> String {
    let words = match status {
        1 => "invalid value",
        OUT_OF_MEMORY => "out of memory",
        3 => "not initialised",
        35 => "the driver is older than CUDA asks for",
        100 => "no NVIDIA GPU answers",
        200 => "the kernels are not for this GPU",
        209 => "the kernels are not for this GPU",
        222 => "the driver is too old for the kernels; update it to 580 or newer",
        500 => "not found",
        700 => "a kernel touched memory that is not its own",
        701 => "a kernel needs more registers or shared memory than there are",
        719 => "a kernel failed",
        900..=908 => "the work could not be captured as a graph",
        _ => "see CUresult in NVIDIA's documentation",
    };
    format!("status {status}: {words}")
}
