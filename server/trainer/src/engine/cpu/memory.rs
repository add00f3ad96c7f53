//! Where programs' values lie, and how instructions get at them.
//!
//! The planner lets values that are never needed at the same time share memory, so an instruction's slices are cut out
//! of one block. [`Lease`] makes that sound by itself, whatever the plan says: it lasts for one instruction, remembers
//! every range that it handed out, and refuses (by a panic, since the plan or the instruction is then wrong) a range
//! that is written and meets another. An instruction that works in place takes its result once, and reads it there.

use std::{cell::RefCell, marker::PhantomData, ops::Range};

use super::super::{
    plan::{ALIGNMENT, Area, Place},
    session::{EngineError, Result},
};

/// A block of memory of any content.
#[derive(Default)]
pub(super) struct Memory(Vec<Line>);

#[derive(Clone, Copy)]
#[repr(C, align(256))]
struct Line([u32; LINE]);

/// Values of four bytes, f32 or u32.
const LINE: usize = ALIGNMENT / 4;

impl Memory {
    /// # Errors
    /// When the machine has less memory free than that; `what` names who asks.
    pub fn new(bytes: usize, what: &str) -> Result<Self> {
        check_free(bytes, what)?;
        // NaN in tests, so that a value that nobody wrote shows.
        let content = if cfg!(test) { f32::NAN.to_bits() } else { 0 };
        Ok(Self(vec![Line([content; LINE]); bytes.div_ceil(ALIGNMENT)]))
    }

    pub fn bytes(&self) -> usize {
        self.0.len() * ALIGNMENT
    }

    fn start(&mut self) -> *mut u32 {
        self.0.as_mut_ptr().cast()
    }
}

/// # Errors
/// When the machine says that it has less memory free.
pub(super) fn check_free(bytes: usize, what: &str) -> Result<()> {
    match free_bytes() {
        Some(free_bytes) if free_bytes < bytes as u64 => Err(EngineError::OutOfMemory {
            what: what.to_owned(),
            wanted_bytes: bytes as u64,
            free_bytes,
        }),
        _ => Ok(()),
    }
}

/// Linux's estimate of what can be had without swapping; elsewhere nothing is known.
fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// The slices of one instruction.
pub(super) struct Lease<'a> {
    kept: (*mut u32, usize),
    arena: (*mut u32, usize),
    held: RefCell<Vec<(Area, Range<usize>, Use)>>,
    life: PhantomData<&'a mut Memory>,
}

impl<'a> Lease<'a> {
    pub fn new(kept: &'a mut Memory, arena: &'a mut Memory) -> Self {
        Self {
            kept: (kept.start(), kept.bytes()),
            arena: (arena.start(), arena.bytes()),
            held: RefCell::default(),
            life: PhantomData,
        }
    }

    /// The start of `place` and its length in values of four bytes.
    fn lend(&self, place: Place, wanted: Use) -> (*mut u32, usize) {
        let (start, bytes) = match place.area {
            Area::Kept => self.kept,
            Area::Arena => self.arena,
        };
        let range = place.offset..place.offset + place.bytes;
        assert!(
            range.end <= bytes && range.start % 4 == 0 && range.end % 4 == 0,
            "{place:?} of {bytes} bytes"
        );
        let mut held = self.held.borrow_mut();
        for (area, other, use_of) in held.iter() {
            let meet = *area == place.area && range.start < other.end && other.start < range.end;
            let both_read = wanted == Use::Read && *use_of == Use::Read;
            assert!(
                !meet || both_read,
                "{place:?} meets what this instruction holds at {other:?}"
            );
        }
        held.push((place.area, range, wanted));
        // SAFETY: the place lies inside its memory.
        (unsafe { start.add(place.offset / 4) }, place.bytes / 4)
    }

    pub fn read(&self, place: Place) -> &'a [f32] {
        let (start, len) = self.lend(place, Use::Read);
        // SAFETY: `lend` saw that it lies inside memory borrowed for 'a and that nobody writes there; all bits are an f32.
        unsafe { std::slice::from_raw_parts(start.cast(), len) }
    }

    pub fn ids(&self, place: Place) -> &'a [u32] {
        let (start, len) = self.lend(place, Use::Read);
        // SAFETY: as in `read`; all bits are a u32.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    #[expect(
        clippy::mut_from_ref,
        reason = "every range is handed out for writing once, which `lend` checks"
    )]
    pub fn write(&self, place: Place) -> &'a mut [f32] {
        let (start, len) = self.lend(place, Use::Write);
        // SAFETY: as in `read`, and nobody else holds any of it.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }
    }

    #[expect(clippy::mut_from_ref, reason = "as in `write`")]
    pub fn write_ids(&self, place: Place) -> &'a mut [u32] {
        let (start, len) = self.lend(place, Use::Write);
        // SAFETY: as in `write`; all bits are a u32.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(offset: usize, bytes: usize) -> Place {
        Place {
            area: Area::Arena,
            offset,
            bytes,
        }
    }

    #[test]
    fn what_is_written_is_lent_once() {
        let (mut kept, mut arena) = (Memory::new(0, "").unwrap(), Memory::new(1024, "").unwrap());
        let meets = |first: Use, second: Use, at: usize| {
            let both = std::panic::AssertUnwindSafe((&mut kept, &mut arena));
            std::panic::catch_unwind(move || {
                let both = both;
                let lease = Lease::new(both.0.0, both.0.1);
                lease.lend(place(256, 100), first);
                lease.lend(place(at, 100), second);
            })
            .is_err()
        };
        let mut meets = meets;
        assert!(meets(Use::Write, Use::Write, 256));
        assert!(meets(Use::Write, Use::Read, 352));
        assert!(meets(Use::Read, Use::Write, 160));
        assert!(!meets(Use::Read, Use::Read, 256));
        assert!(!meets(Use::Write, Use::Write, 356));
        assert!(meets(Use::Read, Use::Read, 1000));
    }
}
