//! How much noise the latents hold at each timestep, and adding it.

use app::recipe::Precision;
use candle_core::{DType, Tensor};
use half::{bf16, f16};

use super::SchedulerError;
use crate::models::config::SchedulerConfig;

/// Ho et al. 2020: `x_t = sqrt(ac[t]) * x_0 + sqrt(1 - ac[t]) * noise`, with `ac` the running product of `1 - beta`.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f32>,
    alphas_cumprod: Vec<f32>,
    /// What `scales` rounds to.
    precision: Precision,
}

impl NoiseSchedule {
    /// # Errors
    /// An unknown `beta_schedule`.
    pub fn new(config: &SchedulerConfig) -> Result<Self, SchedulerError> {
        let n = config.num_train_timesteps;
        let betas: Vec<f32> = match config.beta_schedule.as_str() {
            "linear" => linspace(config.beta_start as f32, config.beta_end as f32, n),
            "scaled_linear" => linspace(config.beta_start.sqrt() as f32, config.beta_end.sqrt() as f32, n)
                .into_iter()
                .map(|root| root * root)
                .collect(),
            "squaredcos_cap_v2" => (0..n).map(|i| cosine_beta(i, n)).collect(),
            other => return Err(SchedulerError::BetaSchedule(other.into())),
        };
        // torch's cumprod keeps its running product of f32 factors in f64.
        let mut product = 1f64;
        let alphas_cumprod = betas
            .iter()
            .map(|&beta| {
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        Ok(Self {
            betas,
            alphas_cumprod,
            precision: Precision::No,
        })
    }

    /// Noise is then mixed in as the tutorial's script does it, which casts `ac` to the latents' 16 bits first: in fp16 the
    /// noise at timestep 0 is 7 % too strong, in bf16 there is none.
    pub fn rounded_to(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    pub fn betas(&self) -> &[f32] {
        &self.betas
    }

    /// What is left of the picture's variance at each timestep.
    pub fn alphas_cumprod(&self) -> &[f32] {
        &self.alphas_cumprod
    }

    /// `alphas_cumprod` at a whole timestep of a sampler's own list.
    pub(super) fn at(&self, timestep: f64) -> f64 {
        f64::from(self.alphas_cumprod[timestep as usize])
    }

    /// The same, and below timestep 0 what the schedule ends with: no noise at all, or that of timestep 0.
    pub(super) fn at_or_end(&self, timestep: f64, end_without_noise: bool) -> f64 {
        if timestep >= 0.0 {
            self.at(timestep)
        } else if end_without_noise {
            1.0
        } else {
            self.at(0.0)
        }
    }

    /// Number of timesteps, 1000 in Stable Diffusion.
    pub fn len(&self) -> usize {
        self.alphas_cumprod.len()
    }

    pub fn is_empty(&self) -> bool {
        self.alphas_cumprod.is_empty()
    }

    /// Signal-to-noise ratio at each timestep, `(sqrt(ac) / sqrt(1 - ac))^2` in f32 as diffusers' `compute_snr`.
    pub fn snr(&self) -> Vec<f32> {
        self.alphas_cumprod
            .iter()
            .map(|&ac| {
                let ratio = ac.sqrt() / (1.0 - ac).sqrt();
                ratio * ratio
            })
            .collect()
    }

    /// `sqrt(ac)` and `sqrt(1 - ac)` at each of `timesteps`.
    ///
    /// # Errors
    /// A timestep that the model does not have.
    pub fn scales(&self, timesteps: &[u32]) -> Result<(Vec<f32>, Vec<f32>), SchedulerError> {
        let mut signal = Vec::with_capacity(timesteps.len());
        let mut noise = Vec::with_capacity(timesteps.len());
        for &timestep in timesteps {
            let ac = *self
                .alphas_cumprod
                .get(timestep as usize)
                .ok_or(SchedulerError::Timestep {
                    timestep,
                    count: self.len(),
                })?;
            let round = |x: f32| rounded(x, self.precision);
            let ac = round(ac);
            signal.push(round(ac.sqrt()));
            noise.push(round(round(1.0 - ac).sqrt()));
        }
        Ok((signal, noise))
    }

    /// `latents` [rows, ...] with `noise` of the same shape mixed in, each row as of its own timestep.
    ///
    /// # Errors
    /// As many timesteps as rows are needed, all below `len()`.
    pub fn add_noise(&self, latents: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor, SchedulerError> {
        let (signal, sigma) = self.row_scales(latents, timesteps)?;
        Ok((latents.broadcast_mul(&signal)? + noise.broadcast_mul(&sigma)?)?)
    }

    /// The target of v-prediction, `sqrt(ac) * noise - sqrt(1 - ac) * latents`.
    ///
    /// # Errors
    /// As `add_noise`.
    pub fn velocity(&self, latents: &Tensor, noise: &Tensor, timesteps: &[u32]) -> Result<Tensor, SchedulerError> {
        let (signal, sigma) = self.row_scales(latents, timesteps)?;
        Ok((noise.broadcast_mul(&signal)? - latents.broadcast_mul(&sigma)?)?)
    }

    /// `scales` as tensors [rows, 1, ..., 1] beside `latents`.
    fn row_scales(&self, latents: &Tensor, timesteps: &[u32]) -> Result<(Tensor, Tensor), SchedulerError> {
        let rows = latents.dim(0)?;
        if rows != timesteps.len() {
            return Err(SchedulerError::Rows {
                rows,
                timesteps: timesteps.len(),
            });
        }
        let (signal, sigma) = self.scales(timesteps)?;
        let mut shape = vec![1; latents.rank()];
        shape[0] = rows;
        let beside = |values: Vec<f32>| {
            Tensor::from_vec(values, shape.as_slice(), latents.device()).and_then(|t| match latents.dtype() {
                DType::F32 => Ok(t),
                dtype => t.to_dtype(dtype),
            })
        };
        Ok((beside(signal)?, beside(sigma)?))
    }
}

fn rounded(x: f32, precision: Precision) -> f32 {
    match precision {
        Precision::No => x,
        Precision::Fp16 => f16::from_f32(x).to_f32(),
        Precision::Bf16 => bf16::from_f32(x).to_f32(),
    }
}

/// torch.linspace in f32: it counts from the start in the first half and from the end in the second.
fn linspace(start: f32, end: f32, n: usize) -> Vec<f32> {
    let step = (end - start) / (n.max(2) - 1) as f32;
    (0..n)
        .map(|i| {
            if i < n / 2 {
                step.mul_add(i as f32, start)
            } else {
                step.mul_add(-((n - 1 - i) as f32), end)
            }
        })
        .collect()
}

/// Nichol and Dhariwal 2021, with beta capped at 0.999.
fn cosine_beta(i: usize, n: usize) -> f32 {
    let alpha_bar = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
    let (now, next) = (i as f64 / n as f64, (i + 1) as f64 / n as f64);
    (1.0 - alpha_bar(next) / alpha_bar(now)).min(0.999) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Facts: `ac[0]` is 0.99915, in fp16 0.99902; so the noise is sqrt(0.00098) in place of sqrt(0.00085).
    #[test]
    fn sixteen_bits_of_a_strict_run_change_the_noise_where_there_is_least() {
        let exact = NoiseSchedule::new(&SchedulerConfig::default()).expect("known");
        let noise_at = |precision: Precision, t: u32| {
            let scales = exact.clone().rounded_to(precision).scales(&[t]).expect("is there");
            (scales.0[0], scales.1[0])
        };
        let ratio = noise_at(Precision::Fp16, 0).1 / noise_at(Precision::No, 0).1;
        assert!((1.06..1.08).contains(&ratio), "{ratio}");
        assert_eq!(noise_at(Precision::Bf16, 0), (1.0, 0.0));
        let late = noise_at(Precision::Fp16, 900).1 / noise_at(Precision::No, 900).1;
        assert!((late - 1.0).abs() < 1e-3, "{late}");
    }
}
