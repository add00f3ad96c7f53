//! Keeps candle's own thread pool out of the way.

/// Makes candle's element-by-element loops run on the thread that calls them.
///
/// candle spreads each addition of 64 thousand values or more over a pool of its own that spins until all its threads
/// are done, in the way of other processes and of the engine's threads, which sleep when they wait. What is left to
/// candle, a sampler's arithmetic on latents and the conversion of files, is too little to be worth it.
///
/// Does nothing when the user has set `CANDLE_NUM_THREADS`.
///
/// # Safety
/// Changes the environment: call it before the process has a second thread.
pub unsafe fn keep_candle_on_one_thread() {
    const SETTING: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(SETTING).is_none() {
        // SAFETY: no other thread reads the environment, by this function's own condition.
        unsafe { std::env::set_var(SETTING, "1") };
    }
}
