//! Keeps candle's own thread pool out of the way.

/// Makes candle's element-by-element loops run on the thread that calls them.
///
/// candle spreads each addition of 64 thousand values or more over a pool of its own that spins until all its threads
/// are done. Where other processes want the cores too, that is most of a training step: 1,885 ms of processor time
/// with the pool, 715 ms without, for the example `step_time` at 4 rows on two shared cores. The ops here have threads
/// of their own, which sleep when they wait.
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
