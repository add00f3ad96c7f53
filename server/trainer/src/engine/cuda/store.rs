//! Weights and gradients on the GPU: one flat block each, so that the optimizer goes over all of them in one launch.
//!
//! A trained weight is kept as the 16-bit copy that networks read and the rest of its exact f32 value; nothing is kept
//! twice. Frozen weights have only the copy, and so have all in low memory, where gradients have no block either: they lie
//! among the activations.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{
    super::{
        ir::{ParamId, ParamTable},
        optim::adamw_8bit::{BLOCK, SMALL},
        session::{Moments, OptimizerSettings, Result},
    },
    call::{Address, Element},
    calls::master,
    convert,
    gpu::{Gpu, Memory, Pinned},
};

/// Where a weight lies, in elements from the start of all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub start: usize,
    pub len: usize,
    pub trained: bool,
}

/// The order of weights: trained ones whose moments are f32, other trained ones, frozen ones. Each starts on a multiple
/// of [`BLOCK`], so that no block of the optimizer has two owners; what is between them stays zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    slots: Vec<Slot>,
    /// Elements of trained weights whose moments are f32.
    pub exact: usize,
    /// Elements of all trained weights.
    pub trained: usize,
    pub all: usize,
}

impl Layout {
    pub fn new(params: &ParamTable, moments: Moments) -> Self {
        let rank = |id: usize| {
            let param = &params.params[id];
            match (param.trained, moments == Moments::F32 || param.len() < SMALL) {
                (true, true) => 0,
                (true, false) => 1,
                (false, _) => 2,
            }
        };
        let mut order: Vec<usize> = (0..params.params.len()).collect();
        // Stable: within a rank the order of registration.
        order.sort_by_key(|&id| rank(id));
        let mut slots = vec![
            Slot {
                start: 0,
                len: 0,
                trained: false
            };
            order.len()
        ];
        let (mut at, mut ends) = (0, [0; 3]);
        for id in order {
            let param = &params.params[id];
            slots[id] = Slot {
                start: at,
                len: param.len(),
                trained: param.trained,
            };
            at += param.len().next_multiple_of(BLOCK);
            ends[rank(id)..].fill(at);
        }
        Self {
            slots,
            exact: ends[0],
            trained: ends[1],
            all: ends[2],
        }
    }

    pub fn slot(&self, id: ParamId) -> Slot {
        self.slots[id.0 as usize]
    }

    /// Of the copies that networks read.
    pub fn copy_bytes(&self, element: Element) -> usize {
        self.all * element.bytes()
    }

    /// Of what trained copies lack; in low memory nothing is kept of it.
    pub fn rest_bytes(&self, element: Element, low_memory: bool) -> usize {
        if low_memory {
            return 0;
        }
        self.trained * master::rest_bytes(element)
    }

    pub fn gradient_bytes(&self, element: Element) -> usize {
        self.trained * element.bytes()
    }

    /// Elements that go between host and GPU at a time.
    fn chunk(&self) -> usize {
        self.slots.iter().map(|slot| slot.len).max().unwrap_or(0).min(CHUNK)
    }

    /// Of all that a store holds before there are gradients.
    pub fn weight_bytes(&self, element: Element, low_memory: bool) -> usize {
        self.copy_bytes(element) + self.rest_bytes(element, low_memory) + 4 * self.chunk()
    }

    /// Elements of all trained weights with coded moments in runs of whole weights, each of `len` at least, but for the last.
    pub fn runs(&self, len: usize) -> Vec<Range<usize>> {
        let coded = |slot: &&Slot| (self.exact..self.trained).contains(&slot.start);
        let mut starts: Vec<usize> = self.slots.iter().filter(coded).map(|slot| slot.start).collect();
        starts.sort_unstable();
        starts.push(self.trained);
        let mut runs = Vec::new();
        let mut from = self.exact;
        for start in starts {
            if start - from >= len || (start == self.trained && start > from) {
                runs.push(from..start);
                from = start;
            }
        }
        runs
    }
}

/// At most so many elements go between host and GPU at a time.
const CHUNK: usize = 4 << 20;

pub(super) struct Store {
    gpu: Arc<Gpu>,
    pub element: Element,
    pub layout: Layout,
    pub weights: Memory,
    /// What the copies of trained weights lack of their f32 value; nothing in f32, and in low memory.
    pub rests: Memory,
    low_memory: bool,
    pub gradients: Option<Memory>,
    /// A chunk in f32 on its way, on both sides.
    passing: Memory,
    staging: Pinned,
}

impl Store {
    /// # Errors
    /// When the weights do not fit.
    pub fn new(gpu: &Arc<Gpu>, params: &ParamTable, element: Element, settings: &OptimizerSettings) -> Result<Self> {
        let layout = Layout::new(params, settings.moments);
        let low_memory = settings.low_memory.is_some();
        let weights = Memory::new(gpu, layout.copy_bytes(element), "the weights")?;
        let rests = Memory::new(gpu, layout.rest_bytes(element, low_memory), "the weights' exact values")?;
        weights.fill(0)?;
        rests.fill(0)?;
        let longest = layout.chunk();
        Ok(Self {
            gpu: gpu.clone(),
            element,
            weights,
            rests,
            low_memory,
            gradients: None,
            passing: Memory::new(gpu, longest * 4, "the weights' way in")?,
            staging: Pinned::new(gpu, longest * 4)?,
            layout,
        })
    }

    pub fn weight_at(&self, id: ParamId) -> Address {
        let start = self.layout.slot(id).start;
        self.weights.address.offset(start * self.element.bytes())
    }

    /// Addresses of what networks read of it.
    pub fn weight_range(&self, id: ParamId) -> Range<u64> {
        self.range(self.layout.slot(id).start, self.layout.slot(id).len)
    }

    /// Addresses of `len` weights from `start` on.
    pub fn range(&self, start: usize, len: usize) -> Range<u64> {
        let [start, end] = [start, start + len].map(|at| self.weights.address.offset(at * self.element.bytes()).0);
        start..end
    }

    /// `None` when the weight is frozen, and in low memory.
    pub fn gradient_at(&self, id: ParamId) -> Option<Address> {
        let slot = self.layout.slot(id);
        let gradients = self.gradients.as_ref().filter(|_| slot.trained)?;
        Some(gradients.address.offset(slot.start * self.element.bytes()))
    }

    /// Makes room for gradients when the first program computes some; not in low memory.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn hold_gradients(&mut self, poison: bool) -> Result<()> {
        if self.gradients.is_some() || self.low_memory {
            return Ok(());
        }
        let width = self.element.bytes();
        let gradients = Memory::new(&self.gpu, self.layout.gradient_bytes(self.element), "the gradients")?;
        // Gaps stay zero, so that the norm and the update may pass over everything.
        gradients.fill(0)?;
        if poison {
            for slot in self.layout.slots.iter().filter(|slot| slot.trained) {
                gradients.fill_part(slot.start * width, slot.len * width, 0xff)?;
            }
        }
        self.gradients = Some(gradients);
        Ok(())
    }

    /// # Errors
    /// What the driver answers.
    pub fn set_weight(&mut self, id: ParamId, values: &[f32]) -> Result<()> {
        let (_, copy, rest) = self.places(id);
        for (index, values) in values.chunks(CHUNK).enumerate() {
            // The chunk before is still being read.
            self.gpu.wait()?;
            convert::to_bytes(values, Element::F32, &mut self.staging.slice()[..values.len() * 4]);
            self.staging.send(self.passing.address, values.len() * 4)?;
            let at = index * CHUNK;
            let rest = rest.map_or(Address::NONE, |rest| rest.offset(at * master::rest_bytes(self.element)));
            let copy = copy.offset(at * self.element.bytes());
            for call in master::split(self.element, self.passing.address, copy, rest, values.len()) {
                self.gpu.launch(&call)?;
            }
        }
        self.gpu.wait()
    }

    /// # Errors
    /// What the driver answers.
    pub fn weight(&mut self, id: ParamId) -> Result<Vec<f32>> {
        let (slot, copy, rest) = self.places(id);
        let mut values = vec![0f32; slot.len];
        for (at, values) in (0..).step_by(CHUNK).zip(values.chunks_mut(CHUNK)) {
            let len = values.len();
            let rest = rest.map_or(Address::NONE, |rest| rest.offset(at * master::rest_bytes(self.element)));
            let copy = copy.offset(at * self.element.bytes());
            for call in master::join(self.element, copy, rest, self.passing.address, len) {
                self.gpu.launch(&call)?;
            }
            self.staging.fetch(self.passing.address, len * 4)?;
            self.gpu.wait()?;
            convert::read_bytes(&self.staging.slice()[..len * 4], Element::F32, values);
        }
        Ok(values)
    }

    /// Its slot, its copy, and where it has one its rest.
    fn places(&self, id: ParamId) -> (Slot, Address, Option<Address>) {
        let slot = self.layout.slot(id);
        let rest = self.rests.address.offset(slot.start * master::rest_bytes(self.element));
        let has_rest = slot.trained && !self.low_memory;
        (slot, self.weight_at(id), has_rest.then_some(rest))
    }

    pub fn held_bytes(&self) -> BTreeMap<&'static str, u64> {
        BTreeMap::from([
            ("weights", self.weights.bytes as u64),
            ("rests of weights", self.rests.bytes as u64),
            (
                "gradients",
                self.gradients.as_ref().map_or(0, |gradients| gradients.bytes as u64),
            ),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::ir::{Group, Param};

    fn table(lens: &[(usize, bool)]) -> ParamTable {
        let param = |&(len, trained)| Param {
            name: String::new(),
            dims: vec![len],
            trained,
            group: Group::UNet,
        };
        ParamTable {
            params: lens.iter().map(param).collect(),
        }
    }

    #[test]
    fn small_trained_weights_come_first_and_frozen_ones_last() {
        let params = table(&[(5000, true), (10, false), (300, true), (256, true)]);
        let layout = Layout::new(&params, Moments::EightBit);
        let starts: Vec<usize> = layout.slots.iter().map(|slot| slot.start).collect();
        assert_eq!(starts, [768, 768 + 5120, 0, 512]);
        assert_eq!(
            (layout.exact, layout.trained, layout.all),
            (768, 768 + 5120, 768 + 5120 + 256)
        );
        let in_f32 = Layout::new(&params, Moments::F32);
        assert_eq!((in_f32.exact, in_f32.trained), (5120 + 768, 5120 + 768));
    }

    #[test]
    fn runs_are_of_whole_weights_and_leave_nothing_out() {
        let params = table(&[(5000, true), (10, true), (6000, true), (9000, false), (4096, true)]);
        let layout = Layout::new(&params, Moments::EightBit);
        assert_eq!(layout.runs(1), [256..5376, 5376..11520, 11520..15616]);
        assert_eq!(layout.runs(6000), [256..11520, 11520..15616]);
        assert_eq!(layout.runs(1 << 20), vec![layout.exact..layout.trained]);
        assert!(Layout::new(&params, Moments::F32).runs(1).is_empty());
    }
}
