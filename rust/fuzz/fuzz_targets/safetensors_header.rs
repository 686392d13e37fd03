//! safetensors headers: no panic, and whatever is accepted keeps its promises.
#![no_main]

#[path = "../../core/tests/common/headers.rs"]
#[allow(dead_code)]
mod headers;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    headers::safetensors(input);
});
