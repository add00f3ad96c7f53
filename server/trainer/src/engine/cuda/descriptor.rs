//! cuDNN's descriptors: objects that are filled attribute by attribute, then finished. Numbers are those of
//! `cudnn_graph.h`, which cuDNN 9 keeps.

use std::{ffi::c_int, sync::Arc};

use super::{
    super::session::Result,
    dnn::{Dnn, Handle},
};

/// Kinds of descriptors.
pub(super) mod object {
    use std::ffi::c_int;
    pub const CONVOLUTION: c_int = 1;
    pub const ENGINE: c_int = 2;
    pub const CONFIGURATION: c_int = 3;
    pub const HEURISTIC: c_int = 4;
    pub const PLAN: c_int = 5;
    pub const FORWARD: c_int = 10;
    pub const GRAD_W: c_int = 11;
    pub const GRAD_X: c_int = 12;
    pub const GRAPH: c_int = 15;
    pub const PACK: c_int = 16;
    pub const TENSOR: c_int = 17;
}

/// Names of attributes.
pub(super) mod attribute {
    use std::ffi::c_int;
    pub const CONVOLUTION_COMPUTE_TYPE: c_int = 100;
    pub const CONVOLUTION_MODE: c_int = 101;
    pub const CONVOLUTION_DILATIONS: c_int = 102;
    pub const CONVOLUTION_STRIDES: c_int = 103;
    pub const CONVOLUTION_PADDING_AFTER: c_int = 104;
    pub const CONVOLUTION_PADDING_BEFORE: c_int = 105;
    pub const CONVOLUTION_SPATIAL_DIMS: c_int = 106;
    pub const HEURISTIC_MODE: c_int = 200;
    pub const HEURISTIC_GRAPH: c_int = 201;
    pub const HEURISTIC_RESULTS: c_int = 202;
    pub const CONFIGURATION_ENGINE: c_int = 300;
    pub const PLAN_HANDLE: c_int = 400;
    pub const PLAN_CONFIGURATION: c_int = 401;
    pub const PLAN_WORKSPACE_BYTES: c_int = 402;
    pub const GRAPH_HANDLE: c_int = 800;
    pub const GRAPH_OPERATIONS: c_int = 801;
    pub const TENSOR_BYTE_ALIGNMENT: c_int = 900;
    pub const TENSOR_DATA_TYPE: c_int = 901;
    pub const TENSOR_DIMENSIONS: c_int = 902;
    pub const TENSOR_STRIDES: c_int = 903;
    pub const TENSOR_UNIQUE_ID: c_int = 906;
    pub const PACK_IDS: c_int = 1000;
    pub const PACK_POINTERS: c_int = 1001;
    pub const PACK_WORKSPACE: c_int = 1003;
    pub const ENGINE_NUMERICAL_NOTES: c_int = 1303;
    pub const ENGINE_BEHAVIOUR_NOTES: c_int = 1305;

    /// Of one of the three operations: `x`, `w` and `y` stand for their gradients where those are computed.
    pub struct Operation {
        pub alpha: c_int,
        pub beta: c_int,
        pub window: c_int,
        pub w: c_int,
        pub x: c_int,
        pub y: c_int,
    }
    pub const FORWARD: Operation = Operation {
        alpha: 700,
        beta: 701,
        window: 702,
        w: 703,
        x: 704,
        y: 705,
    };
    pub const GRAD_X: Operation = Operation {
        alpha: 706,
        beta: 707,
        window: 708,
        w: 709,
        x: 710,
        y: 711,
    };
    pub const GRAD_W: Operation = Operation {
        alpha: 712,
        beta: 713,
        window: 714,
        w: 715,
        x: 716,
        y: 717,
    };
}

/// Types of attributes.
pub(super) mod number {
    use std::ffi::c_int;
    pub const HANDLE: c_int = 0;
    pub const DATA_TYPE: c_int = 1;
    pub const INT64: c_int = 3;
    pub const FLOAT: c_int = 4;
    pub const POINTER: c_int = 6;
    pub const CONVOLUTION_MODE: c_int = 7;
    pub const HEURISTIC_MODE: c_int = 8;
    pub const NUMERICAL_NOTE: c_int = 11;
    pub const DESCRIPTOR: c_int = 15;
    pub const BEHAVIOUR_NOTE: c_int = 19;
}

pub(super) struct Descriptor {
    dnn: Arc<Dnn>,
    handle: Handle,
}

// SAFETY: a finished descriptor is plain memory of the library's that is only read.
unsafe impl Send for Descriptor {}
// SAFETY: as above.
unsafe impl Sync for Descriptor {}

impl Descriptor {
    /// # Errors
    /// What the library answers, here and below.
    pub fn new(dnn: &Arc<Dnn>, kind: c_int) -> Result<Self> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: the result goes to a local.
        unsafe { dnn.api.cudnnBackendCreateDescriptor(kind, &mut handle)? };
        Ok(Self {
            dnn: dnn.clone(),
            handle,
        })
    }

    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// `T` is as large as the values of type `kind`.
    pub fn set<T: Copy>(&self, name: c_int, kind: c_int, values: &[T]) -> Result<()> {
        let (count, pointer) = (values.len() as i64, values.as_ptr().cast());
        // SAFETY: the library copies that many values of that type.
        unsafe { (self.dnn.api).cudnnBackendSetAttribute(self.handle, name, kind, count, pointer) }
    }

    pub fn set_descriptor(&self, name: c_int, other: &Self) -> Result<()> {
        self.set(name, number::DESCRIPTOR, &[other.handle])
    }

    pub fn finish(self) -> Result<Self> {
        // SAFETY: the descriptor is ours.
        unsafe { self.dnn.api.cudnnBackendFinalize(self.handle)? };
        Ok(self)
    }

    pub fn count(&self, name: c_int, kind: c_int) -> Result<usize> {
        let mut count = 0;
        // SAFETY: with no room for values only the count is written, to a local.
        unsafe {
            let values = std::ptr::null_mut();
            (self.dnn.api).cudnnBackendGetAttribute(self.handle, name, kind, 0, &mut count, values)?;
        }
        Ok(count.max(0) as usize)
    }

    /// At most `most` values; `T` is as large as the values of type `kind`.
    pub fn get<T: Copy + Default>(&self, name: c_int, kind: c_int, most: usize) -> Result<Vec<T>> {
        let (mut values, mut count) = (vec![T::default(); most], 0);
        let (room, pointer) = (most as i64, values.as_mut_ptr().cast());
        // SAFETY: the library writes at most `most` values of that type.
        unsafe {
            (self.dnn.api).cudnnBackendGetAttribute(self.handle, name, kind, room, &mut count, pointer)?;
        }
        values.truncate(count.max(0) as usize);
        Ok(values)
    }

    /// Fills descriptors that were made for it; how many were.
    pub fn get_descriptors(&self, name: c_int, into: &[Self]) -> Result<usize> {
        let mut handles: Vec<Handle> = into.iter().map(|descriptor| descriptor.handle).collect();
        let mut count = 0;
        let (room, pointer) = (handles.len() as i64, handles.as_mut_ptr().cast());
        // SAFETY: the library fills at most as many descriptors as are given.
        unsafe {
            (self.dnn.api).cudnnBackendGetAttribute(
                self.handle,
                name,
                number::DESCRIPTOR,
                room,
                &mut count,
                pointer,
            )?;
        }
        Ok((count.max(0) as usize).min(into.len()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more. A failure has nobody to tell.
        let _ = unsafe { self.dnn.api.cudnnBackendDestroyDescriptor(self.handle) };
    }
}
