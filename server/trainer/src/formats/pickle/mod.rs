//! Python's pickle, as far as files of weights use it: a list of instructions that build values.
//!
//! Nothing is executed. Opcodes and globals are a whitelist; a global that would be called by Python is only looked at,
//! and anything outside the list is refused by name. Values lie in an arena and refer to each other by number, so that
//! neither deep nor circular values can overflow the stack.

mod globals;
mod machine;

use machine::Machine;

/// Index of a value in its `Pickle`.
pub(super) type Id = usize;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// Larger than 64 bits: the magic number of the legacy format is one.
    BigInt(Vec<u8>),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A whitelisted name, such as `torch.HalfStorage`.
    Global(String),
    /// What a persistent id names: a storage.
    Storage(Storage),
    Tensor(TensorRef),
    /// Something of a training run, such as an optimizer's state; of no use here.
    Opaque,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Storage {
    /// `HalfStorage` and its like, without `torch.`.
    pub kind: String,
    pub key: String,
    /// In elements.
    pub count: usize,
}

/// A view of a storage, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorRef {
    pub storage: Storage,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

#[derive(Debug, PartialEq)]
pub(super) enum PickleError {
    /// Outside of what weights need.
    Refused(String),
    /// Broken.
    Unsound(String),
}

pub(super) struct Pickle {
    values: Vec<Value>,
    pub root: Id,
    /// Bytes read, the final STOP included.
    pub length: usize,
}

impl Pickle {
    pub fn get(&self, id: Id) -> &Value {
        &self.values[id]
    }

    pub fn root(&self) -> &Value {
        self.get(self.root)
    }

    /// All values, in the order they were made.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// The text of a value that is one.
    pub fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Reads the pickle that `bytes` start with.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, PickleError> {
    let mut machine = Machine::new(bytes);
    while !machine.step()? {}
    machine.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pickle_that_would_run_something_is_refused_by_name() {
        let evil = b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00id\x85R.";
        assert_eq!(read(evil).err(), Some(PickleError::Refused("posix.system".into())));
        let evil = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.";
        assert_eq!(read(evil).err(), Some(PickleError::Refused("builtins.eval".into())));
        // INST, which names and calls in one.
        let evil = b"(iposix\nsystem\n.";
        assert_eq!(
            read(evil).err(),
            Some(PickleError::Refused("pickle opcode INST (0x69)".into()))
        );
        // A storage is a name, not something to call.
        let odd = b"\x80\x02ctorch\nHalfStorage\n)R.";
        assert!(matches!(read(odd).err(), Some(PickleError::Refused(_))));
    }

    #[test]
    fn a_parameter_is_a_tensor_and_nothing_else() {
        let parameter = b"\x80\x02ctorch._utils\n_rebuild_parameter\n(Nt";
        let of_nothing = [&parameter[..], b"R."].concat();
        assert!(matches!(read(&of_nothing).err(), Some(PickleError::Unsound(_))));
        // A list that is copied over and over would fill the memory.
        let of_a_list = b"\x80\x02ctorch._utils\n_rebuild_parameter\n]\x85R.";
        assert!(matches!(read(of_a_list).err(), Some(PickleError::Unsound(_))));
    }

    #[test]
    fn broken_pickles_are_errors_wherever_they_break() {
        let good = b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x07s.";
        let pickle = read(good).map_err(|e| format!("{e:?}")).expect("good");
        assert_eq!(pickle.length, good.len());
        let Value::Dict(items) = pickle.root() else {
            panic!("a dict")
        };
        assert_eq!(
            (pickle.text(items[0].0), pickle.get(items[0].1)),
            (Some("a"), &Value::Int(7))
        );
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "cut to {length} bytes");
        }
        for bad in [
            &b"."[..],
            b"t.",
            b"h\x05.",
            b"\x85.",
            b"(0.",
            b"K\x01Q.",
            b"N}s.",
            b"(0t.",
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_deep_value_needs_no_stack() {
        let mut deep = vec![b')'];
        deep.extend(std::iter::repeat_n(0x85, 1_000_000));
        deep.push(b'.');
        assert!(read(&deep).is_ok());
    }

    #[test]
    fn numbers_keep_their_sign_and_size() {
        let number = |bytes: &[u8]| read(bytes).map(|p| p.root().clone()).ok();
        assert_eq!(number(b"J\xff\xff\xff\xff."), Some(Value::Int(-1)));
        assert_eq!(number(b"\x8a\x01\xfe."), Some(Value::Int(-2)));
        assert_eq!(number(b"\x8a\x00."), Some(Value::Int(0)));
        assert_eq!(number(b"M\xe9\x03."), Some(Value::Int(1001)));
        assert_eq!(number(b"G\x3f\xf0\x00\x00\x00\x00\x00\x00."), Some(Value::Float(1.0)));
        assert!(matches!(number(b"\x8a\x09123456789."), Some(Value::BigInt(_))));
    }
}
