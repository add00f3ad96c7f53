//! The check that everything that is to learn does: an operation without a gradient is otherwise silent.

use std::collections::BTreeMap;

use crate::engine::adapter;
use crate::engine::ir::{Group, Param};
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
    may_be_zero: impl Fn(&Param) -> bool,
) -> Result<(), GradientError> {
    for (id, param) in networks.trained() {
        if !learns(&param) {
            continue;
        }
        let norm = networks.session().gradient_norm(id)?;
        if !norm.is_finite() {
            return Err(GradientError::NotFinite(param.name));
        }
        if norm == 0.0 && !may_be_zero(&param) {
            return Err(GradientError::Zero(param.name));
        }
    }
    Ok(())
}

/// Whether a weight has no gradient yet, and rightly: it belongs to an adapter whose other half no update has moved.
/// `has_moved`: an update was made before this one, with a rate above zero where `rates` of the groups are.
pub fn waits(param: &Param, rates: &BTreeMap<Group, f64>, has_moved: bool) -> bool {
    let other_half_moved = has_moved && rates.get(&param.group).is_some_and(|rate| *rate > 0.0);
    adapter::waits_for_the_other_half(&param.name) && !other_half_moved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_half_of_an_adapter_is_let_off_until_the_other_has_moved() {
        let param = |name: &str, group| Param {
            name: name.into(),
            dims: vec![2, 3],
            trained: true,
            group,
        };
        let down = param("unet.attn1.to_q.lora_A.weight", Group::UNet);
        let up = param("unet.attn1.to_q.lora_B.weight", Group::UNet);
        let of_text = param("text_encoder.self_attn.q_proj.lora_A.weight", Group::TextEncoder);
        let rates = BTreeMap::from([(Group::UNet, 1e-4), (Group::TextEncoder, 0.0)]);
        assert!(waits(&down, &rates, false) && !waits(&down, &rates, true));
        assert!(!waits(&up, &rates, false), "it has a gradient at once");
        assert!(waits(&of_text, &rates, true), "at a rate of zero nothing moves");
    }
}
