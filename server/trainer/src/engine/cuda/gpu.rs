//! One GPU: its context, a stream on which everything happens in order with another one beside it, and the kernels that were built for it.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use super::{
    super::session::{EngineError, Result},
    call::{Address, Argument, Call},
    driver::{self, Driver},
    library::{self, failed},
};

/// Kernels by source file, each an image with machine code for several kinds of GPU.
type Images = &'static [(&'static str, &'static [u8])];

/// What the kernels were compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Built {
    capability: (i32, i32),
    /// A driver compiles it when it is loaded, for this capability or a later one.
    ptx: bool,
}

#[cfg(feature = "cuda")]
const KERNELS: (Images, &[Built]) = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
#[cfg(not(feature = "cuda"))]
const KERNELS: (Images, &[Built]) = (&[], &[]);

/// Which of the kernels that there are a driver takes for a card: machine code runs on cards of its own major number that are
/// not older, PTX on any that is not, and machine code is taken first. `ptx_alone`: it is passed over.
fn taken(built: &[Built], card: (i32, i32), ptx_alone: bool) -> Option<Built> {
    let runs = |one: &&Built| one.capability <= card && (one.ptx || (one.capability.0 == card.0 && !ptx_alone));
    let fits = built.iter().filter(runs);
    fits.max_by_key(|one| (!one.ptx, one.capability)).copied()
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    pub name: String,
    /// Compute capability, such as (9, 0).
    pub capability: (i32, i32),
    /// That of the kernels that it runs, which can be less; without kernels its own.
    pub kernels: (i32, i32),
    /// The driver has compiled those kernels for it.
    pub compiled_by_driver: bool,
    pub multiprocessors: usize,
    pub memory_bytes: u64,
    /// The newest CUDA that the driver knows, such as 13000.
    pub driver: i32,
}

impl Card {
    /// Ampere and later compute in bf16, with kernels that do.
    pub fn has_bf16(&self) -> bool {
        self.kernels.0 >= 8
    }

    /// Hopper and later set up a kernel while the one before it still runs, where kernels wait by themselves for what came before.
    fn overlaps_launches(&self) -> bool {
        self.kernels.0 >= 9
    }
}

/// Work on one lane runs in order; the side lane's beside the main one's, which goes first where both want the same room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Main,
    Side,
}

pub(super) struct Gpu {
    pub driver: Driver,
    pub card: Card,
    device: c_int,
    context: driver::Context,
    pub stream: driver::Stream,
    side: driver::Stream,
    modules: Vec<driver::Module>,
    functions: Mutex<HashMap<String, Kernel>>,
}

#[derive(Clone, Copy)]
struct Kernel {
    function: driver::Function,
    /// Dynamic shared memory that it was allowed so far.
    shared_bytes: u32,
}

// SAFETY: the driver may be called from any thread; which context a thread uses is set on every way in ([`Gpu::enter`]).
unsafe impl Send for Gpu {}
// SAFETY: as above; the handles are not changed after `open`.
unsafe impl Sync for Gpu {}

/// Dynamic shared memory that every kernel may ask for.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;

impl Gpu {
    /// Opens the first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses).
    ///
    /// # Errors
    /// When there is no driver or no GPU, or this build has no kernels.
    pub fn open() -> Result<Arc<Self>> {
        if KERNELS.0.is_empty() {
            return Err(failed(
                "the GPU cannot be used",
                "this build has no kernels for it; use likeness-trainer-cuda",
            ));
        }
        let driver = Driver::bind(library::find(&library::DRIVER)?.library)?;
        let (device, card) = look(&driver)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device was just given by the driver, and results go to locals.
        unsafe {
            driver.cuDevicePrimaryCtxRetain(&mut context, device)?;
            driver.cuCtxSetCurrent(context)?;
        }
        let mut gpu = Self {
            driver,
            card,
            device,
            context,
            stream: std::ptr::null_mut(),
            side: std::ptr::null_mut(),
            modules: Vec::new(),
            functions: Mutex::default(),
        };
        // SAFETY: results go to our own fields, and images are whole.
        unsafe {
            (gpu.driver).cuStreamCreateWithPriority(&mut gpu.stream, driver::NON_BLOCKING, driver::FIRST)?;
            (gpu.driver).cuStreamCreateWithPriority(&mut gpu.side, driver::NON_BLOCKING, driver::LAST)?;
            for (file, image) in KERNELS.0 {
                let mut module = std::ptr::null_mut();
                let loaded = gpu.driver.cuModuleLoadData(&mut module, image.as_ptr().cast());
                loaded.map_err(|source| failed(&format!("the kernels of {file}.cu"), source.to_string()))?;
                gpu.modules.push(module);
            }
        }
        Ok(Arc::new(gpu))
    }

    /// Makes this GPU the calling thread's.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as `self`.
        unsafe { self.driver.cuCtxSetCurrent(self.context) }
    }

    /// Waits until all work so far is done; errors of kernels come to light here.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream is ours.
        unsafe { self.driver.cuStreamSynchronize(self.stream) }
    }

    /// Free and total bytes, as the driver counts them for all programs on the GPU.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: results go to locals.
        unsafe { self.driver.cuMemGetInfo_v2(&mut free, &mut total)? };
        Ok((free as u64, total as u64))
    }

    pub fn stream(&self, lane: Lane) -> driver::Stream {
        match lane {
            Lane::Main => self.stream,
            Lane::Side => self.side,
        }
    }

    /// Puts a copy within the GPU's memory on a lane.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn copy(&self, from: Address, to: Address, bytes: usize, lane: Lane) -> Result<()> {
        // SAFETY: both places were planned with that many bytes.
        unsafe { (self.driver).cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.stream(lane)) }
    }

    fn kernel(&self, call: &Call) -> Result<Kernel> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut kernel = match functions.get(&call.name) {
            Some(&kernel) => kernel,
            None => self.find(&call.name)?,
        };
        if call.shared_bytes > kernel.shared_bytes.max(SHARED_WITHOUT_ASKING) {
            let bytes = call.shared_bytes as c_int;
            // SAFETY: the function belongs to a module that lives as long as `self`.
            unsafe {
                self.driver
                    .cuFuncSetAttribute(kernel.function, driver::MAX_DYNAMIC_SHARED_BYTES, bytes)?;
            }
            kernel.shared_bytes = call.shared_bytes;
        }
        functions.insert(call.name.clone(), kernel);
        Ok(kernel)
    }

    fn find(&self, name: &str) -> Result<Kernel> {
        let text = CString::new(name).map_err(|source| failed(name, source.to_string()))?;
        for &module in &self.modules {
            let mut function = std::ptr::null_mut();
            // SAFETY: the name ends with a zero, the result goes to a local.
            if unsafe { self.driver.cuModuleGetFunction(&mut function, module, text.as_ptr()) }.is_ok() {
                return Ok(Kernel {
                    function,
                    shared_bytes: 0,
                });
            }
        }
        Err(failed(&format!("the kernel {name}"), "is not part of this build"))
    }

    /// Puts a kernel on the main lane.
    ///
    /// # Errors
    /// When there is no such kernel, or the driver refuses its grid.
    pub fn launch(&self, call: &Call) -> Result<()> {
        self.launch_on(call, Lane::Main, true)
    }

    /// Puts a kernel on a lane. `early`: it may be set up while what is before it on the lane still runs; not where the
    /// lane has just waited for the other one.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn launch_on(&self, call: &Call, lane: Lane, early: bool) -> Result<()> {
        let kernel = self.kernel(call)?;
        let mut values: Vec<[u8; 8]> = call.arguments.iter().map(bytes).collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
        let mut value = [0; 16];
        value[0] = 1;
        let attribute = driver::LaunchAttribute {
            id: driver::PROGRAMMATIC_SERIALIZATION,
            padding: 0,
            value,
        };
        let config = driver::LaunchConfig {
            grid: call.grid,
            block: call.block,
            shared_bytes: call.shared_bytes,
            stream: self.stream(lane),
            attributes: &attribute,
            // Every kernel of ours begins with `begin()`.
            attribute_count: u32::from(early && self.card.overlaps_launches()),
        };
        let (arguments, extra) = (pointers.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the arguments are those that `calls` lists for this kernel; the driver copies all before it returns.
        unsafe { self.driver.cuLaunchKernelEx(&config, kernel.function, arguments, extra) }.map_err(|source| {
            failed(
                &format!("{} over {:?} x {:?}", call.name, call.grid, call.block),
                source.to_string(),
            )
        })
    }
}

/// An argument's bytes, little end first, padded.
fn bytes(argument: &Argument) -> [u8; 8] {
    let mut bytes = [0; 8];
    match *argument {
        Argument::Address(address) => bytes = address.0.to_le_bytes(),
        Argument::I64(value) => bytes = value.to_le_bytes(),
        Argument::I32(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
        Argument::F32(value) => bytes[..4].copy_from_slice(&value.to_le_bytes()),
    }
    bytes
}

/// The first GPU and what it is.
fn look(driver: &Driver) -> Result<(c_int, Card)> {
    let (mut count, mut device, mut version, mut total) = (0, 0, 0, 0);
    let mut name = [0u8; 100];
    let mut attributes = [0; 3];
    // SAFETY: results go to locals of the sizes that are given.
    unsafe {
        driver.cuInit(0)?;
        driver.cuDriverGetVersion(&mut version)?;
        driver.cuDeviceGetCount(&mut count)?;
        driver.cuDeviceGet(&mut device, 0)?;
        driver.cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int - 1, device)?;
        driver.cuDeviceTotalMem_v2(&mut total, device)?;
        let wanted = [
            driver::COMPUTE_CAPABILITY_MAJOR,
            driver::COMPUTE_CAPABILITY_MINOR,
            driver::MULTIPROCESSORS,
        ];
        for (value, attribute) in attributes.iter_mut().zip(wanted) {
            driver.cuDeviceGetAttribute(value, attribute, device)?;
        }
    }
    let len = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let capability = (attributes[0], attributes[1]);
    // The driver's own switch.
    let ptx_alone = std::env::var_os("CUDA_FORCE_PTX_JIT").is_some_and(|value| value == "1");
    let built = taken(KERNELS.1, capability, ptx_alone);
    let card = Card {
        kernels: built.map_or(capability, |built| built.capability),
        compiled_by_driver: built.is_some_and(|built| built.ptx),
        name: String::from_utf8_lossy(&name[..len]).into_owned(),
        capability,
        multiprocessors: attributes[2] as usize,
        memory_bytes: total as u64,
        driver: version,
    };
    if card.capability < (7, 5) {
        let (major, minor) = card.capability;
        return Err(failed(
            &format!("{} cannot be used", card.name),
            format!("its compute capability is {major}.{minor}, and 7.5 (Turing) is the least"),
        ));
    }
    Ok((device, card))
}

/// What GPU answers, without opening it.
///
/// # Errors
/// When there is no driver or no GPU.
pub fn card() -> Result<Card> {
    Ok(look(&Driver::bind(library::find(&library::DRIVER)?.library)?)?.1)
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: nothing that uses them is left: memory and plans hold the GPU. A failure has nobody to tell.
        unsafe {
            let _ = self.driver.cuCtxSetCurrent(self.context);
            for &module in &self.modules {
                let _ = self.driver.cuModuleUnload(module);
            }
            let _ = self.driver.cuStreamDestroy_v2(self.side);
            let _ = self.driver.cuStreamDestroy_v2(self.stream);
            let _ = self.driver.cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// Memory of the GPU, given back when it goes.
pub(super) struct Memory {
    gpu: Arc<Gpu>,
    pub address: Address,
    pub bytes: usize,
}

impl Memory {
    /// `what` names who asks. Content is anything.
    ///
    /// # Errors
    /// When the GPU has less memory free.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize, what: &str) -> Result<Self> {
        let mut address = 0;
        if bytes > 0 {
            // SAFETY: the result goes to a local.
            let given = unsafe { gpu.driver.cuMemAlloc_v2(&mut address, bytes) };
            given.map_err(|source| match gpu.memory() {
                Ok((free_bytes, _)) if free_bytes < bytes as u64 => EngineError::OutOfMemory {
                    what: what.to_owned(),
                    wanted_bytes: bytes as u64,
                    free_bytes,
                },
                _ => source,
            })?;
        }
        Ok(Self {
            gpu: gpu.clone(),
            address: Address(address),
            bytes,
        })
    }

    /// Every byte becomes `value`; 0xff is NaN in all floating types.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn fill(&self, value: u8) -> Result<()> {
        self.fill_part(0, self.bytes, value)
    }

    /// [`Self::fill`] of `bytes` bytes from `start` on.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn fill_part(&self, start: usize, bytes: usize, value: u8) -> Result<()> {
        let bytes = bytes.min(self.bytes.saturating_sub(start));
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the range lies within this memory.
        unsafe { (self.gpu.driver).cuMemsetD8Async(self.address.0 + start as u64, value, bytes, self.gpu.stream) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.address.0 == 0 {
            return;
        }
        // SAFETY: nobody is left to use it; work on the stream is waited for first. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.gpu.wait();
            let _ = self.gpu.driver.cuMemFree_v2(self.address.0);
        }
    }
}

/// Page-locked memory of the host, which the GPU reads and writes by itself.
pub(super) struct Pinned {
    gpu: Arc<Gpu>,
    pointer: *mut c_void,
    pub bytes: usize,
}

// SAFETY: it is plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// # Errors
    /// When the host has no memory left to lock.
    pub fn new(gpu: &Arc<Gpu>, bytes: usize) -> Result<Self> {
        let (bytes, mut pointer) = (bytes.max(16), std::ptr::null_mut());
        // SAFETY: the result goes to a local; what is given is filled before anybody reads it.
        unsafe {
            gpu.driver.cuMemAllocHost_v2(&mut pointer, bytes)?;
            std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes);
        }
        Ok(Self {
            gpu: gpu.clone(),
            pointer,
            bytes,
        })
    }

    /// The caller has waited for copies that use it.
    pub fn slice(&mut self) -> &mut [u8] {
        // SAFETY: it is ours, of that many bytes, all written at the start.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.cast(), self.bytes) }
    }

    /// Starts a copy of the first `bytes` to the GPU.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn send(&self, to: Address, bytes: usize) -> Result<()> {
        // SAFETY: the caller gives a place of at least that many bytes; ours lives until the stream is waited for.
        unsafe { (self.gpu.driver).cuMemcpyHtoDAsync_v2(to.0, self.pointer, bytes.min(self.bytes), self.gpu.stream) }
    }

    /// Starts a copy from the GPU into the first `bytes`.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn fetch(&mut self, from: Address, bytes: usize) -> Result<()> {
        // SAFETY: as in `send`.
        unsafe { (self.gpu.driver).cuMemcpyDtoHAsync_v2(self.pointer, from.0, bytes.min(self.bytes), self.gpu.stream) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: nobody is left to use it once the stream has been waited for. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.gpu.wait();
            let _ = self.gpu.driver.cuMemFreeHost(self.pointer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(list: &[((i32, i32), bool)]) -> Vec<Built> {
        list.iter()
            .map(|&(capability, ptx)| Built { capability, ptx })
            .collect()
    }

    #[test]
    fn a_card_takes_machine_code_of_its_kind_and_else_the_newest_ptx() {
        let all = built(&[
            ((7, 5), false),
            ((8, 0), false),
            ((8, 6), false),
            ((9, 0), false),
            ((9, 0), true),
        ]);
        let of = |card| taken(&all, card, false).map(|one| (one.capability, one.ptx));
        assert_eq!(of((7, 5)), Some(((7, 5), false)));
        assert_eq!(of((8, 7)), Some(((8, 6), false)));
        assert_eq!(of((9, 0)), Some(((9, 0), false)));
        assert_eq!(of((12, 0)), Some(((9, 0), true)));
        assert_eq!(of((7, 0)), None);
        let turing = built(&[((7, 5), true)]);
        assert_eq!(taken(&turing, (9, 0), false), Some(turing[0]));
        assert_eq!(taken(&turing, (7, 2), false), None);
        let both = built(&[((9, 0), false), ((7, 5), true)]);
        assert_eq!(taken(&both, (9, 0), false), Some(both[0]));
        assert_eq!(taken(&both, (9, 0), true), Some(both[1]));
    }

    #[test]
    fn what_a_card_computes_in_goes_by_its_kernels() {
        let card = |kernels| Card {
            name: String::new(),
            capability: (9, 0),
            kernels,
            compiled_by_driver: false,
            multiprocessors: 1,
            memory_bytes: 0,
            driver: 13000,
        };
        assert!(card((9, 0)).has_bf16() && card((9, 0)).overlaps_launches());
        assert!(card((8, 0)).has_bf16() && !card((8, 0)).overlaps_launches());
        assert!(!card((7, 5)).has_bf16());
    }
}
