//! The check that everything that is to learn does: an operation without a gradient is otherwise silent.

use crate::engine::ir::Param;
use crate::engine::nets::networks::Networks;
use crate::engine::session::EngineError;

#[derive(Debug, thiserror::Error)]
pub enum GradientError {
    #[error("the gradient of `{0}` is zero everywhere: it would not learn")]
    Zero(String),
    #[error("the gradient of `{0}` is not finite")]
    NotFinite(String),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Every weight that `learns` got a finite gradient in the last step that is not all zero, but for those that
/// `may_be_zero`.
///
/// # Errors
/// Names the first that would not learn.
pub fn check(
    networks: &mut Networks,
    learns: impl Fn(&Param) -> bool,
    may_be_zero: impl Fn(&str) -> bool,
) -> Result<(), GradientError> {
    for (id, param) in networks.trained() {
        if !learns(&param) {
            continue;
        }
        let gradient = networks.session().gradient(id)?;
        let squares: f64 = gradient.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
        if !squares.is_finite() {
            return Err(GradientError::NotFinite(param.name));
        }
        if squares == 0.0 && !may_be_zero(&param.name) {
            return Err(GradientError::Zero(param.name));
        }
    }
    Ok(())
}
