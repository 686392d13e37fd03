//! Encoding at every SIMD level against the scalar reference: the first byte chooses the type and whether there are
//! importance weights, the rest are float32 values (weights first), with NaN and infinity made zero.
#![no_main]

use libfuzzer_sys::fuzz_target;
use subbyte_core::GgmlType;
use subbyte_core::block::rows::{Source, encode_with};
use subbyte_core::ggml::Importance;
use subbyte_core::kernels::Kernels;

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let types: Vec<GgmlType> = GgmlType::ALL.iter().copied().filter(|ty| ty.encodes()).collect();
    let ty = types[usize::from(choice & 0x7f) % types.len()];
    let (words, _) = bytes.as_chunks::<4>();
    let values: Vec<f32> =
        words.iter().map(|word| f32::from_le_bytes(*word)).map(|x| if x.is_finite() { x } else { 0.0 }).collect();
    let Some(&first) = values.first() else { return };
    // Short inputs reach whole blocks by repetition.
    let columns = ty.block().max(32);
    let rows = (values.len() / columns).clamp(1, 20);
    let weighted = match ty.importance() {
        Importance::Ignored => false,
        Importance::Optional => choice & 0x80 != 0,
        Importance::Required => true,
    };
    let weights: Vec<f32> = values.iter().cycle().take(columns).map(|x| x.abs().min(1e6)).collect();
    let x: Vec<f32> = values.iter().skip(1).chain([&first]).cycle().take(rows * columns).copied().collect();
    let run = |kernels: &Kernels| {
        let mut bytes = vec![0x5a; x.len() / ty.block() * ty.block_bytes()];
        let importance = weighted.then_some(weights.as_slice());
        encode_with(kernels, ty, Source::F32(&x), columns, importance, &mut bytes).map(|()| bytes)
    };
    let mut levels = Kernels::available();
    let reference = run(levels.next().expect("scalar is always available"));
    for kernels in levels {
        assert!(run(kernels) == reference, "{} at level {}", ty.name(), kernels.level.name());
    }
});
