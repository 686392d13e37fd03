//! DLPack import: a producer's capsule as an object with the buffer protocol, so that NumPy can view element types
//! that its own importer refuses (bfloat16, float8). Layouts follow dlpack.h, versions 0 and 1.

use pyo3::exceptions::PyBufferError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use std::ffi::{CStr, c_int, c_void};
use std::ptr::NonNull;
use subbyte_core::{Error, Result};

#[repr(C)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

#[repr(C)]
struct Managed {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: DlTensor,
}

const READ_ONLY: u64 = 1;
/// Host memory, and host memory pinned for CUDA.
const HOST: [i32; 2] = [1, 3];
const MAX_DIMS: i32 = 64;

enum Owner {
    Plain(NonNull<Managed>),
    Versioned(NonNull<ManagedVersioned>),
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the pointers came out of a capsule that was marked as used, so the deleter is ours to call, once.
        unsafe {
            match self {
                Owner::Plain(m) => m.as_ref().deleter.map(|delete| delete(m.as_ptr())),
                Owner::Versioned(m) => m.as_ref().deleter.map(|delete| delete(m.as_ptr())),
            };
        }
    }
}

/// Memory of a DLPack producer. The buffer protocol gives its elements as unsigned integers of the same size;
/// `dtype` names what they are.
#[pyclass(frozen, module = "subbyte._native")]
pub struct DlpackMemory {
    data: *mut c_void,
    shape: Vec<ffi::Py_ssize_t>,
    strides: Vec<ffi::Py_ssize_t>,
    item: usize,
    len: usize,
    read_only: bool,
    #[pyo3(get)]
    dtype: &'static str,
    _owner: Owner,
}

// SAFETY: the memory belongs to the producer, which allows any thread that holds the interpreter to read and release it.
unsafe impl Send for DlpackMemory {}
// SAFETY: as above; the object itself never changes.
unsafe impl Sync for DlpackMemory {}

/// Takes the tensor out of the capsule that `__dlpack__` returned.
#[pyfunction]
fn from_dlpack(capsule: &Bound<'_, PyCapsule>) -> PyResult<DlpackMemory> {
    let (owner, read_only) = if let Some(m) = take(capsule, c"dltensor", c"used_dltensor")? {
        (Owner::Plain(m), false)
    } else if let Some(m) = take::<ManagedVersioned>(capsule, c"dltensor_versioned", c"used_dltensor_versioned")? {
        // SAFETY: the flags are where they are in every version with this capsule name; the rest depends on the version.
        let (major, flags) = unsafe { (m.as_ref().major, m.as_ref().flags) };
        let owner = Owner::Versioned(m);
        if major != 1 {
            let message = format!("a DLPack capsule of version {major}: expected 0 or 1");
            return Err(crate::errors::to_py(Error::unsupported(message)));
        }
        (owner, flags & READ_ONLY != 0)
    } else {
        let message = "the DLPack capsule was used before, or is none: pass the array itself";
        return Err(crate::errors::to_py(Error::argument(message)));
    };
    view(owner, read_only).map_err(crate::errors::to_py)
}

fn take<T>(capsule: &Bound<'_, PyCapsule>, name: &'static CStr, used: &'static CStr) -> PyResult<Option<NonNull<T>>> {
    if !capsule.is_valid_checked(Some(name)) {
        return Ok(None);
    }
    let pointer = capsule.pointer_checked(Some(name))?;
    // SAFETY: the capsule is valid and the new name is static.
    if unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } != 0 {
        return Err(PyErr::fetch(capsule.py()));
    }
    Ok(Some(pointer.cast()))
}

fn view(owner: Owner, read_only: bool) -> Result<DlpackMemory> {
    // SAFETY: the capsule's name promises a managed tensor of this layout.
    let t = unsafe {
        match &owner {
            Owner::Plain(m) => &m.as_ref().tensor,
            Owner::Versioned(m) => &m.as_ref().tensor,
        }
    };
    if !HOST.contains(&t.device_type) {
        return Err(Error::argument("the array is not in host memory: copy it to the CPU first"));
    }
    let (dtype, bits) = element(t.code, t.bits)?;
    if t.lanes != 1 || !(0..=MAX_DIMS).contains(&t.ndim) || (t.ndim > 0 && t.shape.is_null()) {
        return Err(Error::unsupported(format!("a DLPack tensor with {} lanes and {} dimensions", t.lanes, t.ndim)));
    }
    let (dims, item) = (t.ndim as usize, bits / 8);
    let read = |p: *const i64| (0..dims).map(|i| unsafe { *p.add(i) as isize }).collect::<Vec<_>>();
    let shape = read(t.shape);
    let overflow = || Error::argument(format!("a DLPack tensor of shape {shape:?} does not fit into memory"));
    let mut len = item as isize;
    let mut strides = vec![0; dims];
    for (i, n) in shape.iter().enumerate().rev() {
        strides[i] = len;
        len = len.checked_mul(*n).filter(|n| *n >= 0).ok_or_else(overflow)?;
    }
    if !t.strides.is_null() && len > 0 {
        for (ours, theirs) in strides.iter_mut().zip(read(t.strides)) {
            *ours = theirs.checked_mul(item as isize).ok_or_else(overflow)?;
        }
    }
    let data = t.data.cast::<u8>().wrapping_add(t.byte_offset as usize).cast();
    Ok(DlpackMemory { data, shape, strides, item, len: len as usize, read_only, dtype, _owner: owner })
}

/// Name and bits of an element type (DLDataTypeCode of dlpack.h).
fn element(code: u8, bits: u8) -> Result<(&'static str, usize)> {
    let name = match (code, bits) {
        (0, 8) => "int8",
        (0, 16) => "int16",
        (0, 32) => "int32",
        (0, 64) => "int64",
        (1, 8) => "uint8",
        (1, 16) => "uint16",
        (1, 32) => "uint32",
        (1, 64) => "uint64",
        (2, 16) => "float16",
        (2, 32) => "float32",
        (2, 64) => "float64",
        (4, 16) => "bfloat16",
        (6, 8) => "bool",
        (7, 8) => "float8_e3m4",
        (8, 8) => "float8_e4m3",
        (9, 8) => "float8_e4m3b11fnuz",
        (10, 8) => "float8_e4m3fn",
        (11, 8) => "float8_e4m3fnuz",
        (12, 8) => "float8_e5m2",
        (13, 8) => "float8_e5m2fnuz",
        (14, 8) => "float8_e8m0fnu",
        _ => {
            return Err(Error::unsupported(format!(
                "DLPack element type {code} with {bits} bits: pass a float32 array"
            )));
        }
    };
    Ok((name, bits as usize))
}

#[pymethods]
impl DlpackMemory {
    unsafe fn __getbuffer__(slf: Bound<'_, Self>, buffer: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let memory = slf.get();
        if memory.read_only && flags & ffi::PyBUF_WRITABLE != 0 {
            return Err(PyBufferError::new_err("the DLPack tensor is read-only"));
        }
        if flags & ffi::PyBUF_STRIDES != ffi::PyBUF_STRIDES {
            return Err(PyBufferError::new_err("only strided access is offered"));
        }
        let format = match memory.item {
            1 => c"B",
            2 => c"H",
            4 => c"I",
            _ => c"Q",
        };
        // SAFETY: `buffer` is the caller's to fill; shape and strides live as long as `obj`, which it holds.
        unsafe {
            (*buffer).buf = memory.data;
            (*buffer).len = memory.len as ffi::Py_ssize_t;
            (*buffer).readonly = memory.read_only.into();
            (*buffer).itemsize = memory.item as ffi::Py_ssize_t;
            (*buffer).format = format.as_ptr().cast_mut();
            (*buffer).ndim = memory.shape.len() as c_int;
            (*buffer).shape = memory.shape.as_ptr().cast_mut();
            (*buffer).strides = memory.strides.as_ptr().cast_mut();
            (*buffer).suboffsets = std::ptr::null_mut();
            (*buffer).internal = std::ptr::null_mut();
            (*buffer).obj = slf.into_ptr();
        }
        Ok(())
    }
}

/// Adds the functions of this file to the module.
pub fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<DlpackMemory>()?;
    m.add_function(wrap_pyfunction!(from_dlpack, m)?)
}
