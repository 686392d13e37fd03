//! Metadata that contradicts itself (specification: GGUF, section 12.2, "Semantics"): a reader that trusts one of
//! two lengths would index outside the other.

use super::{ARCHITECTURE_KEY, Header, Value};
use crate::error::{Error, Result};

const TOKENS: &str = "tokenizer.ggml.tokens";
/// Arrays with one entry per token.
const PER_TOKEN: [&str; 2] = ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"];
/// Hyper-parameters that are one number or one per layer.
const PER_LAYER: [&str; 3] = ["attention.head_count", "attention.head_count_kv", "feed_forward_length"];
/// Written by some tools for "no such token" (-1 as u32).
const NO_TOKEN: u64 = u32::MAX as u64;

/// Checks vocabulary lengths, token ids and per-layer arrays.
///
/// # Errors
/// [`crate::ErrorKind::Corrupt`] naming the two values that disagree.
pub fn check(header: &Header) -> Result<()> {
    if let Some(tokens) = header.get(TOKENS) {
        let Value::Strings(tokens) = tokens else {
            return Err(Error::corrupt(format!("{TOKENS} has type {}, expected arr[str]", tokens.type_name())));
        };
        check_vocabulary(header, tokens.len())?;
    }
    let Some(architecture) = header.get_str(ARCHITECTURE_KEY) else { return Ok(()) };
    let Some(blocks) = header.get(&format!("{architecture}.block_count")).and_then(Value::as_u64) else {
        return Ok(());
    };
    for key in PER_LAYER.map(|key| format!("{architecture}.{key}")) {
        if let Some(length) = header.get(&key).and_then(Value::array_len)
            && (length as u64) < blocks
        {
            return Err(Error::corrupt(format!("{key} has {length} entries for {blocks} layers")));
        }
    }
    Ok(())
}

fn check_vocabulary(header: &Header, tokens: usize) -> Result<()> {
    for (key, value) in &header.metadata {
        if PER_TOKEN.contains(&key.as_str()) && value.array_len() != Some(tokens) {
            let found = value.array_len().map_or_else(|| value.type_name(), |n| n.to_string());
            return Err(Error::corrupt(format!("{key} has {found} entries, {TOKENS} has {tokens}")));
        }
        if key.starts_with("tokenizer.ggml.")
            && key.ends_with("_token_id")
            && let Some(id) = value.as_u64()
            && id >= tokens as u64
            && id != NO_TOKEN
        {
            return Err(Error::corrupt(format!("{key} is {id}, but there are {tokens} tokens")));
        }
    }
    Ok(())
}
