//! The machine that a pickle's instructions drive: a stack, marks on it, a memory, and the values it makes.

use std::collections::HashMap;

use super::globals::{INERT, ORDERED_DICT, REBUILD_PARAMETER, REBUILD_TENSOR, STORAGES, is_known, opcode_name};
use super::{Id, Pickle, PickleError, Storage, TensorRef, Value};

/// A pickle that is being read.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

/// Whether the pickle has ended.
type Done = bool;

impl<'a> Machine<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// What the instructions have built.
    pub(super) fn finish(mut self) -> Result<Pickle, PickleError> {
        Ok(Pickle {
            root: self.pop()?,
            length: self.at,
            values: self.values,
        })
    }

    /// Follows one instruction.
    pub(super) fn step(&mut self) -> Result<Done, PickleError> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'.' => return Ok(true),
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'}' => self.push(Value::Dict(Vec::new())),
            // EMPTY_SET; what is in it is of no use
            0x8f => self.push(Value::Opaque),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'K' | b'M' | b'J' | 0x8a | b'G' => self.number(opcode)?,
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'B' | b'C' => self.string(opcode)?,
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(opcode)?,
            b't' => {
                let items = self.since_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.since_mark()?;
                self.push(Value::List(items));
            }
            0x85..=0x87 => {
                let length = usize::from(opcode - 0x84);
                let start = self.stack.len().checked_sub(length).ok_or_else(underflow)?;
                let items = self.stack.split_off(start);
                self.push(Value::Tuple(items));
            }
            b'a' | b'e' | b's' | b'u' | b'd' | 0x90 => self.fill(opcode)?,
            b'c' => {
                let module = self.line()?;
                let name = self.line()?;
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop_text()?, self.pop_text()?);
                self.global(&module, &name)?;
            }
            b'Q' => self.persistent_id()?,
            b'R' | 0x81 => self.reduce()?,
            b'b' => {
                // BUILD would set attributes; only an OrderedDict's `_metadata` comes this way, which says nothing.
                self.pop()?;
            }
            other => {
                let name = opcode_name(other);
                return Err(PickleError::Refused(format!("pickle opcode {name} (0x{other:02x})")));
            }
        }
        Ok(false)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], PickleError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| PickleError::Unsound("the pickle ends in the middle".into()))?;
        self.at += count;
        Ok(taken)
    }

    fn little_endian(&mut self, count: usize) -> Result<u64, PickleError> {
        let bytes = self.take(count)?;
        Ok(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    fn line(&mut self) -> Result<String, PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&byte| byte == b'\n');
        let length = length.ok_or_else(|| PickleError::Unsound("a name does not end".into()))?;
        let text = text(self.take(length)?)?;
        self.at += 1;
        Ok(text)
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.values.len());
        self.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, PickleError> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn top(&self) -> Result<Id, PickleError> {
        self.stack.last().copied().ok_or_else(underflow)
    }

    fn pop_text(&mut self) -> Result<String, PickleError> {
        let id = self.pop()?;
        match &self.values[id] {
            Value::Text(text) => Ok(text.clone()),
            other => Err(PickleError::Unsound(format!("{other:?} where a name should be"))),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, PickleError> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        if mark > self.stack.len() {
            return Err(underflow());
        }
        Ok(self.stack.split_off(mark))
    }

    fn number(&mut self, opcode: u8) -> Result<(), PickleError> {
        let value = match opcode {
            b'K' => Value::Int(self.little_endian(1)? as i64),
            b'M' => Value::Int(self.little_endian(2)? as i64),
            b'J' => Value::Int(i64::from(self.little_endian(4)? as u32 as i32)),
            b'G' => Value::Float(f64::from_bits(self.little_endian(8)?.swap_bytes())),
            // LONG1: two's complement of any length
            _ => {
                let length = self.little_endian(1)? as usize;
                let bytes = self.take(length)?;
                let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
                if length > 8 {
                    Value::BigInt(bytes.to_vec())
                } else {
                    let mut all = [if negative { 0xff } else { 0 }; 8];
                    all[..length].copy_from_slice(bytes);
                    Value::Int(i64::from_le_bytes(all))
                }
            }
        };
        self.push(value);
        Ok(())
    }

    fn string(&mut self, opcode: u8) -> Result<(), PickleError> {
        let length_bytes = match opcode {
            0x8c | b'U' | b'C' => 1,
            0x8d => 8,
            _ => 4,
        };
        let length = usize::try_from(self.little_endian(length_bytes)?).unwrap_or(usize::MAX);
        let bytes = self.take(length)?;
        let value = match opcode {
            b'B' | b'C' => Value::Bytes(bytes.to_vec()),
            // Python 2's strings are bytes; names in them are ASCII.
            b'U' | b'T' => String::from_utf8(bytes.to_vec()).map_or_else(|e| Value::Bytes(e.into_bytes()), Value::Text),
            _ => Value::Text(text(bytes)?),
        };
        self.push(value);
        Ok(())
    }

    fn memory(&mut self, opcode: u8) -> Result<(), PickleError> {
        let slot = match opcode {
            b'q' | b'h' => self.little_endian(1)? as u32,
            b'r' | b'j' => self.little_endian(4)? as u32,
            // MEMOIZE counts by itself.
            _ => self.memo.len() as u32,
        };
        if matches!(opcode, b'h' | b'j') {
            let found = self.memo.get(&slot).copied();
            let found = found.ok_or_else(|| PickleError::Unsound(format!("nothing was remembered as {slot}")))?;
            self.stack.push(found);
        } else {
            let top = self.top()?;
            self.memo.insert(slot, top);
        }
        Ok(())
    }

    /// Puts items into the list, dict or set below them.
    fn fill(&mut self, opcode: u8) -> Result<(), PickleError> {
        let items = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.since_mark()?,
        };
        if opcode == b'd' {
            self.push(Value::Dict(Vec::new()));
        }
        let target = self.top()?;
        match &mut self.values[target] {
            Value::List(list) => list.extend(items),
            Value::Dict(dict) if items.len().is_multiple_of(2) => {
                dict.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
            }
            Value::Opaque => {}
            other => return Err(PickleError::Unsound(format!("items for {other:?}"))),
        }
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), PickleError> {
        let global = format!("{module}.{name}");
        if !is_known(&global) {
            return Err(PickleError::Refused(global));
        }
        self.push(Value::Global(global));
        Ok(())
    }

    /// `('storage', torch.HalfStorage, key, location, count)`, in the legacy format with a sixth item.
    fn persistent_id(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let unsound = || PickleError::Unsound("a persistent id that is no storage".into());
        let Value::Tuple(items) = &self.values[id] else {
            return Err(unsound());
        };
        let [tag, kind, key, _location, count, view @ ..] = items.as_slice() else {
            return Err(unsound());
        };
        if let [view] = view
            && self.values[*view] != Value::None
        {
            return Err(PickleError::Refused("a storage that is a view of another".into()));
        }
        let (Value::Text(tag), Value::Global(kind), Value::Text(key), Value::Int(count)) = (
            &self.values[*tag],
            &self.values[*kind],
            &self.values[*key],
            &self.values[*count],
        ) else {
            return Err(unsound());
        };
        let kind = kind.strip_prefix("torch.").filter(|kind| STORAGES.contains(kind));
        let (Some(kind), Ok(count), "storage") = (kind, usize::try_from(*count), tag.as_str()) else {
            return Err(unsound());
        };
        let (kind, key) = (kind.to_owned(), key.clone());
        self.push(Value::Storage(Storage { kind, key, count }));
        Ok(())
    }

    /// A global with its arguments: what Python would call.
    fn reduce(&mut self) -> Result<(), PickleError> {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let (Value::Tuple(arguments), Value::Global(callee)) = (&self.values[arguments], &self.values[callee]) else {
            return Err(PickleError::Unsound("a call of something that is no global".into()));
        };
        let value = match callee.as_str() {
            ORDERED_DICT => Value::Dict(Vec::new()),
            REBUILD_TENSOR => Value::Tensor(self.tensor(arguments)?),
            REBUILD_PARAMETER => {
                // Nothing else is copied: a copy of a copy could ask for any amount of memory.
                match arguments.first().map(|&id| &self.values[id]) {
                    Some(Value::Tensor(tensor)) => Value::Tensor(tensor.clone()),
                    _ => return Err(PickleError::Unsound("a parameter without a tensor".into())),
                }
            }
            "torch.Size" => Value::Opaque,
            callee if INERT.contains(&callee) => Value::Opaque,
            callee => return Err(PickleError::Refused(format!("a call of {callee}"))),
        };
        self.push(value);
        Ok(())
    }

    /// `(storage, offset, shape, strides, requires_grad, hooks)`.
    fn tensor(&self, arguments: &[Id]) -> Result<TensorRef, PickleError> {
        let unsound = || PickleError::Unsound("a tensor that is no view of a storage".into());
        let [storage, offset, shape, strides, ..] = arguments else {
            return Err(unsound());
        };
        let (Value::Storage(storage), Some(offset)) = (&self.values[*storage], self.size(*offset)) else {
            return Err(unsound());
        };
        let (shape, strides) = (self.sizes(*shape), self.sizes(*strides));
        let (Some(shape), Some(strides)) = (shape, strides) else {
            return Err(unsound());
        };
        if shape.len() != strides.len() {
            return Err(unsound());
        }
        Ok(TensorRef {
            storage: storage.clone(),
            offset,
            shape,
            strides,
        })
    }

    fn size(&self, id: Id) -> Option<usize> {
        match self.values[id] {
            Value::Int(size) => usize::try_from(size).ok(),
            _ => None,
        }
    }

    fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        match &self.values[id] {
            Value::Tuple(items) => items.iter().map(|&item| self.size(item)).collect(),
            _ => None,
        }
    }
}

fn underflow() -> PickleError {
    PickleError::Unsound("the pickle takes more than it has put".into())
}

fn text(bytes: &[u8]) -> Result<String, PickleError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| PickleError::Unsound("a text that is not UTF-8".into()))
}
