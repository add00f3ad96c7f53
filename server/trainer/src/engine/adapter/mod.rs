//! LoRA: low-rank additions to linear layers, trained in place of the layers' own weights (Hu et al. 2021, section 4.1).
//!
//! `y = base(x) + alpha / rank * up(down(x))`. `down` starts random and `up` as zeros, so that training starts at the
//! base model; and so the first step has no gradient of `down` but zeros.

use std::collections::BTreeMap;

use super::builder::{Bias, Builder, Scope};
use super::ir::{Param, ParamId, ParamTable, ValueId};
use super::session::{Result, Session};
use crate::noise::{Noise, Purpose};

/// Of all adapted layers of a network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adapter {
    pub rank: usize,
    /// The addition is multiplied by alpha / rank.
    pub alpha: f64,
}

/// Names of `down` and `up` below their layer's path, those of PEFT.
const DOWN: &str = "lora_A";
const UP: &str = "lora_B";
/// A frozen `[rank, rank]` diagonal of alpha / rank between `down` and `up`, where that is not 1. As a layer like any
/// other it costs the devices nothing to know of it, and next to nothing to run.
const SCALE: &str = "adapter.scale";

impl Adapter {
    fn scale(self) -> f64 {
        self.alpha / self.rank as f64
    }

    /// Of a weight of the adapters, before the first step; `None` of any other.
    ///
    /// `down` is uniform in +-1 / sqrt(inputs): `kaiming_uniform_(a=sqrt(5))`, as kohya's trainer and PEFT start it.
    fn first_values(self, param: &Param, number: u64, noise: &Noise) -> Option<Vec<f32>> {
        Some(match Role::of(&param.name)? {
            Role::Down(_) => {
                let bound = (param.dims[1] as f64).sqrt().recip();
                let uniform = noise.uniform(Purpose::Adapters, number, param.len());
                uniform.into_iter().map(|u| (bound * (2. * u - 1.)) as f32).collect()
            }
            Role::Up(_) => vec![0.; param.len()],
            Role::Scale => {
                let on_diagonal = |index| index / self.rank == index % self.rank;
                let value = |index| if on_diagonal(index) { self.scale() as f32 } else { 0. };
                (0..param.len()).map(value).collect()
            }
        })
    }

    /// Gives the adapters of a session their first values, which are a function of `seed`.
    ///
    /// # Errors
    /// What the device answers.
    pub fn start(self, session: &mut dyn Session, seed: u64) -> Result<()> {
        let noise = Noise::new(seed);
        for index in 0..session.params().params.len() {
            let id = ParamId(index as u32);
            if let Some(values) = self.first_values(session.params().get(id), index as u64, &noise) {
                session.set_weight(id, &values)?;
            }
        }
        Ok(())
    }
}

/// What a weight is to the adapters, with the path of the layer that it is added to.
enum Role<'n> {
    Down(&'n str),
    Up(&'n str),
    Scale,
}

impl<'n> Role<'n> {
    fn of(name: &'n str) -> Option<Self> {
        let path = name.strip_suffix(".weight")?;
        match path.rsplit_once('.')? {
            (layer, DOWN) => Some(Self::Down(layer)),
            (layer, UP) => Some(Self::Up(layer)),
            _ => (path == SCALE).then_some(Self::Scale),
        }
    }
}

/// Whether a weight belongs to an adapter and not to the model.
pub fn is_of_adapter(name: &str) -> bool {
    Role::of(name).is_some()
}

/// Whether a weight rightly gets a gradient of zeros until an update has moved its adapter's `up` away from zero.
pub fn waits_for_the_other_half(name: &str) -> bool {
    matches!(Role::of(name), Some(Role::Down(_)))
}

/// An adapted layer's two weights: `down` `[rank, inputs]` and `up` `[outputs, rank]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub down: ParamId,
    pub up: ParamId,
}

/// The adapted layers by path, such as `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q`.
pub fn pairs(params: &ParamTable) -> BTreeMap<String, Pair> {
    let ids = || (params.params.iter().zip(0..)).map(|(param, id)| (Role::of(&param.name), ParamId(id)));
    let ups: BTreeMap<&str, ParamId> = ids()
        .filter_map(|(role, id)| match role {
            Some(Role::Up(layer)) => Some((layer, id)),
            _ => None,
        })
        .collect();
    ids()
        .filter_map(|(role, down)| match role {
            Some(Role::Down(layer)) => Some((
                layer.to_string(),
                Pair {
                    down,
                    up: *ups.get(layer)?,
                },
            )),
            _ => None,
        })
        .collect()
}

impl Builder<'_> {
    /// [`Builder::linear`], and what the scope's adapter adds to it.
    pub fn adapted(
        &mut self,
        x: ValueId,
        scope: &Scope,
        outputs: usize,
        bias: Bias,
        residual: Option<ValueId>,
    ) -> ValueId {
        let base = self.linear(x, scope, outputs, bias, residual);
        let Some(adapter) = scope.adapter() else { return base };
        let rank = adapter.rank;
        let low = self.linear(x, &scope.of_adapter(DOWN), rank, Bias::None, None);
        let low = match adapter.scale() == 1. {
            true => low,
            false => self.linear(low, &scope.of_all_adapters(SCALE), rank, Bias::None, None),
        };
        self.linear(low, &scope.of_adapter(UP), outputs, Bias::None, Some(base))
    }
}

#[cfg(test)]
mod tests;
