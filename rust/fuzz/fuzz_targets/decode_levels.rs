//! Decoding at every SIMD level against the scalar reference: the first byte chooses the type, the rest are its blocks.
#![no_main]

use libfuzzer_sys::fuzz_target;
use subbyte_core::GgmlType;
use subbyte_core::block::rows::{Floats, decode_with};
use subbyte_core::kernels::Kernels;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let types: Vec<GgmlType> = GgmlType::ALL.iter().copied().filter(|ty| ty.decodes()).collect();
    let ty = types[usize::from(choice) % types.len()];
    let blocks = bytes.len() / ty.block_bytes();
    if blocks == 0 {
        return;
    }
    let (bytes, n) = (&bytes[..blocks * ty.block_bytes()], blocks * ty.block());
    let run = |kernels: &Kernels| {
        let (mut wide, mut f16, mut bf16) = (vec![0.5f32; n], vec![1u16; n], vec![1u16; n]);
        for destination in [Floats::F32(&mut wide), Floats::F16(&mut f16), Floats::Bf16(&mut bf16)] {
            decode_with(kernels, ty, bytes, n, destination).expect("whole blocks decode");
        }
        // Payloads of NaN are not promised.
        for i in 0..n {
            if wide[i].is_nan() {
                (wide[i], f16[i], bf16[i]) = (f32::NAN, 0x7fff, 0x7fff);
            }
        }
        let wide: Vec<u32> = wide.into_iter().map(f32::to_bits).collect();
        (wide, f16, bf16)
    };
    let mut levels = Kernels::available();
    let reference = run(levels.next().expect("scalar is always available"));
    for kernels in levels {
        assert!(run(kernels) == reference, "{} at level {}", ty.name(), kernels.level.name());
    }
});
