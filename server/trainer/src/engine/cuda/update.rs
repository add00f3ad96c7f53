//! stub
use std::{collections::BTreeMap, sync::Arc};
use super::{super::{ir::ParamTable, session::*}, gpu::Gpu, store::Store};
pub(super) struct Optimizer;
impl Optimizer {
    pub fn new(_: &Arc<Gpu>, _: OptimizerSettings) -> Result<Self> { Ok(Self) }
    pub fn prepare(&mut self, _: &Store, _: &ParamTable) -> Result<()> { Ok(()) }
    pub fn set(&mut self, _: &Update) -> Result<()> { Ok(()) }
    pub fn issue(&self) -> Result<()> { Ok(()) }
    pub fn result(&mut self) -> Result<Updated> { Ok(Updated { grad_norm: 0., skipped: false }) }
    pub fn held_bytes(&self) -> u64 { 0 }
    pub fn moments(&mut self, _: &Store, _: &ParamTable) -> Result<BTreeMap<String, Vec<u8>>> { Ok(BTreeMap::new()) }
    pub fn restore(&mut self, _: &Store, _: &ParamTable, _: &BTreeMap<String, Vec<u8>>) -> Result<()> { Ok(()) }
}
