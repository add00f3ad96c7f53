//! Matrix products and convolutions.

use crate::engine::ir::Window;

/// `y[n, o] = sum_i x[n, i] w[o, i]`.
pub fn linear(x: &[f64], w: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum();
        w.chunks_exact(inputs).map(dot).collect()
    };
    let y: Vec<f64> = x.chunks_exact(inputs).flat_map(row).collect();
    debug_assert_eq!(y.len() % outputs, 0);
    y
}

/// `dx[n, i] = sum_o dy[n, o] w[o, i]`.
pub fn linear_grad_x(dy: &[f64], w: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let mut dx = vec![0.; dy.len() / outputs * inputs];
    for (dy, dx) in dy.chunks_exact(outputs).zip(dx.chunks_exact_mut(inputs)) {
        for (dy, w) in dy.iter().zip(w.chunks_exact(inputs)) {
            dx.iter_mut().zip(w).for_each(|(dx, w)| *dx += dy * w);
        }
    }
    dx
}

/// `dw[o, i] = sum_n dy[n, o] x[n, i]`.
pub fn linear_grad_w(dy: &[f64], x: &[f64], inputs: usize, outputs: usize) -> Vec<f64> {
    let mut dw = vec![0.; outputs * inputs];
    for (dy, x) in dy.chunks_exact(outputs).zip(x.chunks_exact(inputs)) {
        for (dy, dw) in dy.iter().zip(dw.chunks_exact_mut(inputs)) {
            dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += dy * x);
        }
    }
    dw
}

/// A convolution from `[rows, h, w, inputs]` to `[rows, h', w', outputs]`.
pub struct ConvShape {
    x: [usize; 4],
    y: [usize; 4],
    window: Window,
}

impl ConvShape {
    pub fn new(x: &[usize], y: &[usize], window: Window) -> Self {
        Self {
            x: [x[0], x[1], x[2], x[3]],
            y: [y[0], y[1], y[2], y[3]],
            window,
        }
    }

    /// Calls `visit(input pixel, output pixel, place in the kernel)` for all that meet inside the map.
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let Window {
            kernel, stride, before, ..
        } = self.window;
        let ([rows, height, width, _], [_, out_height, out_width, _]) = (self.x, self.y);
        let inside =
            |at: usize, tap: usize, size: usize| (at * stride + tap).checked_sub(before).filter(|&at| at < size);
        for row in 0..rows {
            for (out_y, out_x) in (0..out_height).flat_map(|y| (0..out_width).map(move |x| (y, x))) {
                for (tap_y, tap_x) in (0..kernel).flat_map(|y| (0..kernel).map(move |x| (y, x))) {
                    let (Some(y), Some(x)) = (inside(out_y, tap_y, height), inside(out_x, tap_x, width)) else {
                        continue;
                    };
                    let input = (row * height + y) * width + x;
                    let output = (row * out_height + out_y) * out_width + out_x;
                    visit(input, output, tap_y * kernel + tap_x);
                }
            }
        }
    }

    /// Where the inputs of output channel `output` at `tap` start in the weight.
    fn weight(&self, output: usize, tap: usize) -> usize {
        (output * self.window.kernel * self.window.kernel + tap) * self.x[3]
    }

    fn weight_len(&self) -> usize {
        self.weight(self.y[3], 0)
    }

    pub fn forward(&self, x: &[f64], w: &[f64]) -> Vec<f64> {
        let (inputs, outputs) = (self.x[3], self.y[3]);
        let mut y = vec![0.; self.y.iter().product()];
        self.for_each_tap(|input, output, tap| {
            let x = &x[input * inputs..][..inputs];
            for channel in 0..outputs {
                let w = &w[self.weight(channel, tap)..][..inputs];
                y[output * outputs + channel] += x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            }
        });
        y
    }

    pub fn grad_x(&self, dy: &[f64], w: &[f64]) -> Vec<f64> {
        let (inputs, outputs) = (self.x[3], self.y[3]);
        let mut dx = vec![0.; self.x.iter().product()];
        self.for_each_tap(|input, output, tap| {
            let dx = &mut dx[input * inputs..][..inputs];
            for channel in 0..outputs {
                let (dy, w) = (
                    dy[output * outputs + channel],
                    &w[self.weight(channel, tap)..][..inputs],
                );
                dx.iter_mut().zip(w).for_each(|(dx, w)| *dx += dy * w);
            }
        });
        dx
    }

    pub fn grad_w(&self, dy: &[f64], x: &[f64]) -> Vec<f64> {
        let (inputs, outputs) = (self.x[3], self.y[3]);
        let mut dw = vec![0.; self.weight_len()];
        self.for_each_tap(|input, output, tap| {
            let x = &x[input * inputs..][..inputs];
            for channel in 0..outputs {
                let (dy, dw) = (
                    dy[output * outputs + channel],
                    &mut dw[self.weight(channel, tap)..][..inputs],
                );
                dw.iter_mut().zip(x).for_each(|(dw, x)| *dw += dy * x);
            }
        });
        dw
    }
}
