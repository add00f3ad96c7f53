//! Work recorded once and replayed as a whole, and clocks on the GPU.

use std::sync::Arc;

use super::{
    super::session::Result,
    driver,
    gpu::{Gpu, Lane},
};

/// A captured list of work.
pub(super) struct Recording {
    gpu: Arc<Gpu>,
    executable: driver::Executable,
    pub nodes: usize,
}

// SAFETY: the driver may be called from any thread.
unsafe impl Send for Recording {}

impl Recording {
    /// Records what `work` puts on the stream; none of it runs.
    ///
    /// # Errors
    /// Whatever `work` answers, and what the driver says of what cannot be recorded.
    pub fn new(gpu: &Arc<Gpu>, work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let (mut graph, mut executable, mut nodes) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        // SAFETY: the stream is ours and captures nothing yet; results go to locals; a capture is always ended.
        unsafe {
            gpu.driver
                .cuStreamBeginCapture_v2(gpu.stream, driver::CAPTURE_THREAD_LOCAL)?;
            let worked = work();
            let ended = gpu.driver.cuStreamEndCapture(gpu.stream, &mut graph);
            worked.and(ended)?;
            let made = (gpu.driver.cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes)).and_then(|()| {
                gpu.driver
                    .cuGraphInstantiateWithFlags(&mut executable, graph, driver::KEEP_PRIORITIES)
            });
            let _ = gpu.driver.cuGraphDestroy(graph);
            made?;
        }
        Ok(Self {
            gpu: gpu.clone(),
            executable,
            nodes,
        })
    }

    /// # Errors
    /// What the driver answers.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: the executable is ours, and what it uses is kept by whoever keeps it.
        unsafe { self.gpu.driver.cuGraphLaunch(self.executable, self.gpu.stream) }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: nobody is left to replay it. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.gpu.wait();
            let _ = self.gpu.driver.cuGraphExecDestroy(self.executable);
        }
    }
}

/// A point on the stream whose time the GPU notes.
pub(super) struct Mark {
    gpu: Arc<Gpu>,
    event: driver::Event,
}

// SAFETY: the driver may be called from any thread.
unsafe impl Send for Mark {}

impl Mark {
    /// # Errors
    /// What the driver answers.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self> {
        Self::with(gpu, 0)
    }

    /// One that is only waited for.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn untimed(gpu: &Arc<Gpu>) -> Result<Self> {
        Self::with(gpu, driver::DISABLE_TIMING)
    }

    fn with(gpu: &Arc<Gpu>, flags: u32) -> Result<Self> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the result goes to a local.
        unsafe { gpu.driver.cuEventCreate(&mut event, flags)? };
        Ok(Self {
            gpu: gpu.clone(),
            event,
        })
    }

    /// # Errors
    /// What the driver answers.
    pub fn set(&self, lane: Lane) -> Result<()> {
        // SAFETY: event and stream are ours.
        unsafe { self.gpu.driver.cuEventRecord(self.event, self.gpu.stream(lane)) }
    }

    /// What follows on `lane` waits until this mark, set on the other one, is past.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn hold(&self, lane: Lane) -> Result<()> {
        // SAFETY: event and stream are ours.
        unsafe { (self.gpu.driver).cuStreamWaitEvent(self.gpu.stream(lane), self.event, 0) }
    }

    /// Milliseconds from `start` to here; waits until both are past.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn since(&self, start: &Self) -> Result<f32> {
        let mut milliseconds = 0.;
        // SAFETY: both events were set; the result goes to a local.
        unsafe {
            self.gpu.driver.cuEventSynchronize(self.event)?;
            (self.gpu.driver).cuEventElapsedTime(&mut milliseconds, start.event, self.event)?;
        }
        Ok(milliseconds)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // SAFETY: nobody is left to ask it. A failure has nobody to tell.
        unsafe {
            let _ = self.gpu.enter();
            let _ = self.gpu.driver.cuEventDestroy_v2(self.event);
        }
    }
}

/// Milliseconds that the GPU takes for `work`: the best of several replays of ten in a row, so that launches cost nothing. What
/// is clearly slower than `best` is not run so often, which tells as much.
///
/// # Errors
/// Whatever `work` answers.
pub(super) fn time_against(best: f32, gpu: &Arc<Gpu>, mut work: impl FnMut() -> Result<()>) -> Result<f32> {
    const IN_A_ROW: usize = 10;
    const HOPELESS: f32 = 2.;
    /// Milliseconds that starting a single run may take beside the run itself.
    const START: f32 = 0.03;
    /// A replay that is so much slower than the best decides.
    const SLOWER: f32 = 1.25;
    // Once outside of the recording: libraries load kernels on first use, which cannot be recorded.
    work()?;
    let (start, end) = (Mark::new(gpu)?, Mark::new(gpu)?);
    start.set(Lane::Main)?;
    work()?;
    end.set(Lane::Main)?;
    let once = end.since(&start)?;
    if once > HOPELESS * best + START {
        return Ok(once);
    }
    let recording = Recording::new(gpu, || (0..IN_A_ROW).try_for_each(|_| work()))?;
    let mut least = f32::INFINITY;
    for _ in 0..4 {
        start.set(Lane::Main)?;
        recording.replay()?;
        end.set(Lane::Main)?;
        least = least.min(end.since(&start)? / IN_A_ROW as f32);
        if least > SLOWER * best {
            break;
        }
    }
    Ok(least)
}

/// [`time_against`] nothing.
///
/// # Errors
/// Whatever `work` answers.
pub(super) fn time(gpu: &Arc<Gpu>, work: impl FnMut() -> Result<()>) -> Result<f32> {
    time_against(f32::INFINITY, gpu, work)
}
