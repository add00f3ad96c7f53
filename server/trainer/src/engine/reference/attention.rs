//! Attention with every score written down.

use super::Values;
use crate::engine::ir::Op;

/// `q` `[rows, queries, heads * d]`, `k` and `v` `[rows, keys, heads * d]`.
struct Shape {
    rows: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    causal: bool,
}

impl Shape {
    fn new(q: &[usize], k: &[usize], heads: usize, causal: bool) -> Self {
        Self {
            rows: q[0],
            queries: q[1],
            keys: k[1],
            heads,
            d: q[2] / heads,
            causal,
        }
    }

    fn scale(&self) -> f64 {
        1. / (self.d as f64).sqrt()
    }

    /// All (row, head, query).
    fn queries(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (heads, queries) = (self.heads, self.queries);
        (0..self.rows)
            .flat_map(move |row| (0..heads).flat_map(move |head| (0..queries).map(move |query| (row, head, query))))
    }

    /// Keys that `query` may look at.
    fn visible(&self, query: usize) -> std::ops::Range<usize> {
        0..if self.causal { query + 1 } else { self.keys }
    }

    fn query_at(&self, row: usize, head: usize, query: usize) -> std::ops::Range<usize> {
        let start = ((row * self.queries + query) * self.heads + head) * self.d;
        start..start + self.d
    }

    fn key_at(&self, row: usize, head: usize, key: usize) -> std::ops::Range<usize> {
        let start = ((row * self.keys + key) * self.heads + head) * self.d;
        start..start + self.d
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(sum: &mut [f64], factor: f64, values: &[f64]) {
    sum.iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum += factor * value);
}

pub fn execute(op: &Op, values: &mut Values) {
    match *op {
        Op::Attention {
            q,
            k,
            v,
            heads,
            causal,
            y,
            stats,
        } => {
            let shape = Shape::new(values.dims(q), values.dims(k), heads, causal);
            let (result, logs) = forward(&shape, values.get(q), values.get(k), values.get(v));
            values.set(y, result);
            values.set(stats, logs);
        }
        Op::AttentionGrad {
            dy,
            q,
            k,
            v,
            y,
            stats,
            heads,
            causal,
            dq,
            dk,
            dv,
        } => {
            let shape = Shape::new(values.dims(q), values.dims(k), heads, causal);
            let [of_q, of_k, of_v] = backward(&shape, [dy, q, k, v, y, stats].map(|id| values.get(id)));
            values.set(dq, of_q);
            values.set(dk, of_k);
            values.set(dv, of_v);
        }
        _ => {}
    }
}

fn forward(shape: &Shape, q: &[f64], k: &[f64], v: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut y, mut logs) = (vec![0.; q.len()], Vec::new());
    for (row, head, query) in shape.queries() {
        let own = shape.query_at(row, head, query);
        let scores: Vec<f64> = (shape.visible(query))
            .map(|key| shape.scale() * dot(&q[own.clone()], &k[shape.key_at(row, head, key)]))
            .collect();
        let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = largest + scores.iter().map(|score| (score - largest).exp()).sum::<f64>().ln();
        for (key, score) in scores.iter().enumerate() {
            add_scaled(
                &mut y[own.clone()],
                (score - log).exp(),
                &v[shape.key_at(row, head, key)],
            );
        }
        logs.push(log);
    }
    (y, logs)
}

/// With p the probabilities: `dv = p^T dy`, `ds = p (dy v^T - sum(dy y))`, `dq = ds k scale`, `dk = ds^T q scale`.
fn backward(shape: &Shape, [dy, q, k, v, y, logs]: [&[f64]; 6]) -> [Vec<f64>; 3] {
    let (mut dq, mut dk, mut dv) = (vec![0.; q.len()], vec![0.; k.len()], vec![0.; v.len()]);
    for ((row, head, query), log) in shape.queries().zip(logs) {
        let own = shape.query_at(row, head, query);
        let (dy, q) = (&dy[own.clone()], &q[own.clone()]);
        let mean = dot(dy, &y[own.clone()]);
        for key in shape.visible(query) {
            let other = shape.key_at(row, head, key);
            let p = (shape.scale() * dot(q, &k[other.clone()]) - log).exp();
            add_scaled(&mut dv[other.clone()], p, dy);
            let ds = shape.scale() * p * (dot(dy, &v[other.clone()]) - mean);
            add_scaled(&mut dq[own.clone()], ds, &k[other.clone()]);
            add_scaled(&mut dk[other], ds, q);
        }
    }
    [dq, dk, dv]
}
