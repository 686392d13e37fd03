//! Scalar searches for scales (specification: GGUF, section 5, helpers H1 to H8). Accumulations run in index order;
//! comparisons are strict as written: both decide bytes.
