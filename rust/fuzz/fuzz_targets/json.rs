//! The JSON parser against serde_json: both accept the same texts, our limits and numbers beyond f64 aside.
#![no_main]

use libfuzzer_sys::fuzz_target;
use subbyte_core::ErrorKind;
use subbyte_core::container::json::{self, Json};

fuzz_target!(|input: &[u8]| {
    let ours = json::check(input);
    match (&ours, serde_json::from_slice::<serde_json::Value>(input)) {
        (Ok(()), Err(error)) => assert!(error.to_string().starts_with("number out of range"), "accepted, but {error}"),
        (Err(error), Ok(_)) => assert_eq!(error.kind, ErrorKind::Limit, "refused: {}", error.message),
        _ => {}
    }
    // A text that is one string has the same value for both, and survives being written.
    if let Ok(expected) = serde_json::from_slice::<String>(input) {
        let text = Json::new(input, 0).and_then(|mut json| json.string()).expect("serde_json accepts the string");
        assert_eq!(text, expected);
        let mut written = String::new();
        json::write_string(&mut written, &text);
        assert_eq!(serde_json::from_str::<String>(&written).ok().as_ref(), Some(&expected));
    }
});
