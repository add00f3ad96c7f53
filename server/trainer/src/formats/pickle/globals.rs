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

/// Whether a pickle may name it.
pub(super) fn is_known(global: &str) -> bool {
    let is_storage = global
        .strip_prefix("torch.")
        .is_some_and(|name| STORAGES.contains(&name));
    is_storage
        || [ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, "torch.Size"].contains(&global)
        || INERT.contains(&global)
}
