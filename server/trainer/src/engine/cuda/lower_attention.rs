//! Attention and its gradient on the GPU.

use super::{
    super::{
        ir::{Op, ValueId},
        plan::ALIGNMENT,
        session::Result,
    },
    blas,
    call::Address,
    calls::attention,
    library::failed,
    lower::Writing,
    work::Work,
};

impl Writing<'_, '_> {
    pub fn attention(&mut self, op: &Op) -> Result<()> {
        let shape = |q: ValueId, k: ValueId, heads: usize, causal: bool| attention::Shape {
            rows: self.of.dims(q)[0],
            queries: self.of.dims(q)[1],
            keys: self.of.dims(k)[1],
            heads,
            head_size: self.of.channels(q) / heads,
            causal,
        };
        let element = self.of.element;
        let too_wide = |error: attention::TooWide| failed("an attention", error.to_string());
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
                let at = attention::Forward {
                    q: self.of.at(q),
                    k: self.of.at(k),
                    v: self.of.at(v),
                    y: self.of.at(y),
                    stats: self.of.at(stats),
                };
                let shape = shape(q, k, heads, causal);
                if shape.is_wide() {
                    return self.wide_attention(&shape, &at);
                }
                self.calls(attention::forward(element, &shape, &at).map_err(too_wide)?);
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
                let shape = shape(q, k, heads, causal);
                let bytes = attention::backward_workspace(element, &shape).map_err(too_wide)?;
                let at = attention::Backward {
                    dy: self.of.at(dy),
                    q: self.of.at(q),
                    k: self.of.at(k),
                    v: self.of.at(v),
                    y: self.of.at(y),
                    stats: self.of.at(stats),
                    dq: self.of.at(dq),
                    dk: self.of.at(dk),
                    dv: self.of.at(dv),
                    workspace: self.room(bytes),
                };
                self.calls(attention::backward(element, &shape, &at).map_err(too_wide)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// A row and some queries at a time: their scores in F32, the weights, and what these make of the values. Products on tensor
    /// cores are worth far more here than scores that are never written.
    fn wide_attention(&mut self, shape: &attention::Shape, at: &attention::Forward) -> Result<()> {
        let (element, keys, width) = (self.of.element, shape.keys, shape.head_size);
        let at_once = shape.queries_at_once(element);
        for row in 0..shape.rows {
            let of_keys = row * keys * width * element.bytes();
            for first in (0..shape.queries).step_by(at_once) {
                let queries = at_once.min(shape.queries - first);
                let scoring = blas::Shape {
                    product: blas::Product::Forward { bias: false },
                    element,
                    rows: queries,
                    inputs: width,
                    outputs: keys,
                    plus: false,
                    exact: true,
                };
                let scoring = self.product_of(scoring)?;
                let weighing = blas::Shape {
                    product: blas::Product::GradX,
                    exact: false,
                    ..scoring.shape
                };
                let weighing = self.product_of(weighing)?;
                // The products have the beginning of the workspace for themselves.
                let own = scoring.workspace_bytes.max(weighing.workspace_bytes);
                let own = own.next_multiple_of(ALIGNMENT);
                let score_bytes = (4 * queries * keys).next_multiple_of(ALIGNMENT);
                let room = self
                    .room(own + score_bytes + queries * keys * element.bytes())
                    .offset(own);
                let query = row * shape.queries + first;
                let scores = attention::Scores {
                    scores: room,
                    weights: room.offset(score_bytes),
                    stats: at.stats.offset(4 * query),
                };
                let product = |a, b, result| blas::Operands {
                    a,
                    b,
                    bias: Address::NONE,
                    plus: Address::NONE,
                    result,
                };
                let of_queries = query * width * element.bytes();
                let operands = product(at.k.offset(of_keys), at.q.offset(of_queries), scores.scores);
                self.work.push(Work::Product(scoring, operands));
                self.calls([attention::weights(element, shape, queries, &scores)]);
                let operands = product(at.v.offset(of_keys), scores.weights, at.y.offset(of_queries));
                self.work.push(Work::Product(weighing, operands));
            }
        }
        Ok(())
    }
}
