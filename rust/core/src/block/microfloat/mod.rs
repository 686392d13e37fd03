//! Floats, plain and with block scales: F32, F16, BF16, F64, MXFP4, NVFP4.

super::stub_formats!(F32: F32, F16: F16, Bf16: BF16, F64: F64, Mxfp4: MXFP4, Nvfp4: NVFP4);
