//! Names of Python's that a pickle of weights may hold. None of them is ever called.

/// Globals whose values matter.
pub(super) const ORDERED_DICT: &str = "collections.OrderedDict";
pub(super) const REBUILD_TENSOR: &str = "torch._utils._rebuild_tensor_v2";
pub(super) const REBUILD_PARAMETER: &str = "torch._utils._rebuild_parameter";
/// Globals that full training checkpoints hold, and whose values do not.
pub(super) const INERT: [&str; 14] = [
    "_codecs.encode",
    "__builtin__.set",
    "builtins.set",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "torch.float32",
    "torch.float16",
    "torch.bfloat16",
    "torch.nn.modules.container.ParameterDict",
];
/// Number types, after `torch.`.
pub(super) const STORAGES: [&str; 9] = [
    "HalfStorage",
    "BFloat16Storage",
    "FloatStorage",
    "DoubleStorage",
    "LongStorage",
    "IntStorage",
    "ShortStorage",
    "ByteStorage",
    "BoolStorage",
];

/// What Python's `pickletools` calls an opcode that no file of weights has.
pub(super) fn opcode_name(opcode: u8) -> &'static str {
    match opcode {
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'P' => "PERSID",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'g' => "GET",
        b'i' => "INST",
        b'o' => "OBJ",
        b'p' => "PUT",
        0x82 => "EXT1",
        0x83 => "EXT2",
        0x84 => "EXT4",
        0x8b => "LONG4",
        0x8e => "BINBYTES8",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => "without a name",
    }
}

/// Whether a pickle may name it.
pub(super) fn is_known(global: &str) -> bool {
    let is_storage = global
        .strip_prefix("torch.")
        .is_some_and(|name| STORAGES.contains(&name));
    is_storage
        || [ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, "torch.Size"].contains(&global)
        || INERT.contains(&global)
}
