//! The engine's instructions: what a network computes, forward and backward, as one flat list over planned buffers.
//!
//! A model is written once, as code that emits instructions (`models/` over `Builder`). The backward is emitted from the
//! forward by `autodiff`, buffers are given places by `plan`, and a backend runs the list: plain kernels on the CPU in
//! f32, cuDNN, cuBLAS and own kernels on a GPU, where the whole list is captured as one CUDA graph. So there is one
//! order of work for every device, nothing is allocated while it runs, and what it will need is known before it starts.
//!
//! Everything is channels-last: a feature map is `[rows, h, w, channels]`, the tokens of an attention are the same
//! memory as `[rows, h * w, channels]`, and a convolution's weight lies as `[outputs, kernel, kernel, inputs]`.

use std::collections::BTreeMap;

/// A buffer that an instruction reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

/// A weight. Ids are those of a [`ParamTable`], which programs of one model share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// In the type that the backend computes in: f32 on the CPU, bf16 or fp16 (or f32) on a GPU.
    Activation,
    /// Always f32: statistics, losses, inputs from the host.
    F32,
    /// u32: token ids.
    Ids,
}

/// Row-major; the last dimension is the channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    pub dims: Vec<usize>,
    pub kind: Kind,
    /// The same memory under other dimensions. Never a view of a view.
    pub view_of: Option<ValueId>,
}

impl Value {
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last dimension.
    pub fn channels(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Param {
    /// Model and diffusers path, such as `unet.conv_in.weight`.
    pub name: String,
    /// As it lies in the engine: a convolution's weight is `[outputs, kernel, kernel, inputs]`, in a checkpoint it is
    /// `[outputs, inputs, kernel, kernel]`; all others lie as in the checkpoint.
    pub dims: Vec<usize>,
    /// Gets a gradient and is updated.
    pub trained: bool,
    /// Whose learning rate it follows.
    pub group: Group,
}

/// Weights that share a learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    UNet,
    TextEncoder,
    /// Trained in `pretrain` alone.
    Vae,
}

impl Param {
    pub fn len(&self) -> usize {
        self.dims.iter().product()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The weights of a run, by id. Order is registration order and so the same on every start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParamTable {
    pub params: Vec<Param>,
}

impl ParamTable {
    pub fn get(&self, id: ParamId) -> &Param {
        &self.params[id.0 as usize]
    }
}

/// A square window that a convolution moves over a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    pub kernel: usize,
    pub stride: usize,
    /// Zeros before the first and after the last row and column; they differ in the VAE's encoder.
    pub before: usize,
    pub after: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    Silu,
    /// x * sigmoid(1.702 x), CLIP's.
    QuickGelu,
    /// x * Phi(x), with erf.
    Gelu,
}

/// What a group norm adds to its input before it normalises, so that nobody has to write the sum down:
/// `x[row, pixel, channel] + rows[row, channel] + channels[channel]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Shift {
    /// `[rows, channels]`: a resnet's time embedding.
    pub rows: Option<ValueId>,
    /// `[channels]`: the bias of the convolution before the norm.
    pub channels: Option<ParamId>,
}

/// One step of work. Names ending in `Grad` belong to the backward; `d` stands before what a gradient is of.
///
/// Values are written whole. `plus` of a gradient instruction names a value that is added to the result; it may be the
/// result itself, which then accumulates in place. Gradients of weights go to the weight's own gradient buffer: `add`
/// says whether they are added to what is there (`+=`) or replace it (`=`).
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `y = x` in another kind (`F32` to `Activation` or back).
    Cast {
        x: ValueId,
        y: ValueId,
    },
    /// `y = a + b`; `y` may be `a`.
    Add {
        a: ValueId,
        b: ValueId,
        y: ValueId,
    },

    /// `y = x w^T + bias + residual`: `x` `[.., inputs]`, `w` `[outputs, inputs]` (or a 1x1 convolution's
    /// `[outputs, 1, 1, inputs]`), `bias` `[outputs]`.
    Linear {
        x: ValueId,
        w: ParamId,
        bias: Option<ParamId>,
        residual: Option<ValueId>,
        y: ValueId,
    },
    /// `dx = dy w + plus`.
    LinearGradX {
        dy: ValueId,
        w: ParamId,
        plus: Option<ValueId>,
        dx: ValueId,
    },
    /// `dw = dy^T x`, `dbias` = column sums of `dy`.
    LinearGradW {
        dy: ValueId,
        x: ValueId,
        w: ParamId,
        bias: Option<ParamId>,
        add: bool,
    },

    /// `y = conv(x, w) + bias + residual`: `x` `[rows, h, w, inputs]`.
    Conv {
        x: ValueId,
        w: ParamId,
        bias: Option<ParamId>,
        residual: Option<ValueId>,
        window: Window,
        y: ValueId,
    },
    /// `dx` = transposed convolution of `dy`, plus `plus`.
    ConvGradX {
        dy: ValueId,
        w: ParamId,
        window: Window,
        plus: Option<ValueId>,
        dx: ValueId,
    },
    ConvGradW {
        dy: ValueId,
        x: ValueId,
        w: ParamId,
        bias: Option<ParamId>,
        window: Window,
        add: bool,
    },

    /// `z = (s - mean) * rstd * w + b` with `s = x + shift`, mean and variance over a group of channels and all pixels of
    /// a row; `y = z * sigmoid(z)` where `silu`, else `y = z`. `stats` F32 `[rows, groups, 2]`: mean and rstd of `s`.
    GroupNorm {
        x: ValueId,
        shift: Shift,
        w: ParamId,
        b: ParamId,
        groups: usize,
        eps: f64,
        silu: bool,
        y: ValueId,
        stats: ValueId,
    },
    /// `ds = rstd * (w dz - (sum w dz + n sum w dz n) / m)`, `dx = ds + plus`. `dshift` of the kind of `shift.rows` `[rows, channels]`: sums of
    /// `ds` over pixels, wanted when `shift.rows` needs a gradient. Gradients of `w`, `b` and `shift.channels` where trained.
    GroupNormGrad {
        dy: ValueId,
        x: ValueId,
        shift: Shift,
        w: ParamId,
        b: ParamId,
        groups: usize,
        silu: bool,
        stats: ValueId,
        plus: Option<ValueId>,
        dx: ValueId,
        dshift: Option<ValueId>,
        add: bool,
    },

    /// Over the channels of each pixel or token. `stats` F32 `[.., 2]`: mean and rstd.
    LayerNorm {
        x: ValueId,
        w: ParamId,
        b: ParamId,
        eps: f64,
        y: ValueId,
        stats: ValueId,
    },
    LayerNormGrad {
        dy: ValueId,
        x: ValueId,
        w: ParamId,
        b: ParamId,
        stats: ValueId,
        plus: Option<ValueId>,
        dx: ValueId,
        add: bool,
    },

    /// `softmax(q k^T / sqrt(d)) v` per head, heads side by side in the channels: `q` `[rows, queries, heads * d]`, `k` and `v`
    /// `[rows, keys, heads * d]`. `stats` F32 `[rows, heads, queries]`: log of the sum of exponentials of the scaled scores.
    Attention {
        q: ValueId,
        k: ValueId,
        v: ValueId,
        heads: usize,
        causal: bool,
        y: ValueId,
        stats: ValueId,
    },
    AttentionGrad {
        dy: ValueId,
        q: ValueId,
        k: ValueId,
        v: ValueId,
        y: ValueId,
        stats: ValueId,
        heads: usize,
        causal: bool,
        dq: ValueId,
        dk: ValueId,
        dv: ValueId,
    },

    /// `y = a * gelu(b)` with `x = [a, b]`, halves of the channels; gelu with erf.
    Geglu {
        x: ValueId,
        y: ValueId,
    },
    GegluGrad {
        dy: ValueId,
        x: ValueId,
        dx: ValueId,
    },
    Activate {
        kind: Activation,
        x: ValueId,
        y: ValueId,
    },
    ActivateGrad {
        kind: Activation,
        dy: ValueId,
        x: ValueId,
        plus: Option<ValueId>,
        dx: ValueId,
    },

    /// Nearest neighbour, to `y`'s height and width: source index = floor(i * size_in / size_out).
    Upsample {
        x: ValueId,
        y: ValueId,
    },
    UpsampleGrad {
        dy: ValueId,
        plus: Option<ValueId>,
        dx: ValueId,
    },
    /// Channels of `a`, then those of `b`.
    Concat {
        a: ValueId,
        b: ValueId,
        y: ValueId,
    },
    /// The parts of `dy` where the channels of `a` and `b` lay; one that nobody needs is left out.
    ConcatGrad {
        dy: ValueId,
        da: Option<ValueId>,
        db: Option<ValueId>,
    },

    /// `y[row, i] = table[ids[row, i]] + positions[i]`: `ids` `[rows, tokens]`, `table` `[vocabulary, width]`.
    Embedding {
        ids: ValueId,
        table: ParamId,
        positions: ParamId,
        y: ValueId,
    },
    EmbeddingGrad {
        dy: ValueId,
        ids: ValueId,
        table: ParamId,
        positions: ParamId,
        add: bool,
    },

    /// What chance gives a step, by `philox`: `clock` Ids `[4]` is whose [`Clock`](super::philox::Clock). `latents` and `noise` F32
    /// `[rows, ..]` and `offsets` F32 `[rows, channels]` are standard normal, `timesteps` F32 `[rows]` whole numbers below `steps`.
    Draw {
        clock: ValueId,
        steps: usize,
        latents: ValueId,
        noise: ValueId,
        offsets: Option<ValueId>,
        timesteps: ValueId,
    },
    /// The forward process (Ho et al. 2020) of rows at their own timesteps t: with `strengths` F32 `[2]`,
    /// `clean = (mean + deviation * latents) * strengths[0]`, `n = noise + strengths[1] * offsets[row, channel]`,
    /// `noisy = signal(t) * clean + sigma(t) * n`, `target = n`, or with `velocity` `signal(t) * n - sigma(t) * clean`;
    /// `weights[row] = shares[row] * weight(t)`, and `time[row] = times[t]`. `schedule` F32 `[steps, 3]`: signal, sigma and weight.
    /// All F32 but `noisy` and `time`, which are of one kind.
    Diffuse {
        mean: ValueId,
        deviation: ValueId,
        latents: ValueId,
        noise: ValueId,
        offsets: Option<ValueId>,
        timesteps: ValueId,
        schedule: ValueId,
        times: ValueId,
        shares: ValueId,
        strengths: ValueId,
        velocity: bool,
        noisy: ValueId,
        target: ValueId,
        time: ValueId,
        weights: ValueId,
    },
    /// `losses[row]` = mean of `(predicted - target)^2` over the row; `dpredicted = scale * weights[row] * d losses[row]`.
    /// `predicted` and `dpredicted` are of one kind, `target` F32 of the same dimensions, `weights` F32 `[rows]`, `scale` F32 `[1]` (the loss scale), `losses` F32 `[rows]`. All in f32.
    Mse {
        predicted: ValueId,
        target: ValueId,
        weights: ValueId,
        scale: ValueId,
        losses: ValueId,
        dpredicted: ValueId,
    },
}

/// A list of instructions with all it speaks of, but for the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Program {
    pub values: Vec<Value>,
    pub code: Vec<Op>,
    /// Written by the host before a run; they keep their places for the whole run.
    pub inputs: BTreeMap<String, ValueId>,
    /// Read by the host after a run.
    pub outputs: BTreeMap<String, ValueId>,
}

impl Program {
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn push_value(&mut self, dims: Vec<usize>, kind: Kind) -> ValueId {
        self.values.push(Value {
            dims,
            kind,
            view_of: None,
        });
        ValueId(self.values.len() as u32 - 1)
    }

    /// The memory of `id` under other dimensions: `id` itself where it has them already.
    pub fn view(&mut self, id: ValueId, dims: &[usize]) -> ValueId {
        if self.value(id).dims == dims {
            return id;
        }
        let (root, kind) = (self.root(id), self.value(id).kind);
        if self.value(root).dims == dims {
            return root;
        }
        self.values.push(Value {
            dims: dims.to_vec(),
            kind,
            view_of: Some(root),
        });
        ValueId(self.values.len() as u32 - 1)
    }

    /// The value whose memory this one lies in.
    pub fn root(&self, id: ValueId) -> ValueId {
        self.value(id).view_of.unwrap_or(id)
    }
}
