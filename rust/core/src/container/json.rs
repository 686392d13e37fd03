//! A strict pull parser for JSON: bounded depth, no recursion on input beyond it, byte positions in errors.
//!
//! Written for safetensors headers and index files, where a general parser accepts what must be refused
//! (duplicate keys) and builds what is never needed (a tree).

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::limits;

/// A position in a JSON text.
pub struct Json<'a> {
    text: &'a str,
    position: usize,
    depth: usize,
    /// Added to positions in errors: where the text begins in its file.
    base: u64,
}

impl<'a> Json<'a> {
    /// Starts at the first byte of `bytes`, which lie at `base` of a file.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Format`] when the bytes are not UTF-8.
    pub fn new(bytes: &'a [u8], base: u64) -> Result<Self> {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| Error::format("JSON is not UTF-8").at_byte(base + e.valid_up_to() as u64))?;
        Ok(Self { text, position: 0, depth: 0, base })
    }

    /// An error at the current position.
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::format(message).at_byte(self.base + self.position as u64)
    }

    /// The next significant byte, without moving over it.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.position) {
            if !matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
                return Some(byte);
            }
            self.position += 1;
        }
        None
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.peek() == Some(byte) {
            self.position += 1;
            return Ok(());
        }
        Err(self.error(format!("invalid JSON: expected '{}'", byte as char)))
    }

    /// Requires that nothing but white space follows.
    pub fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("invalid JSON: text after the end of the value")),
        }
    }

    fn enter(&mut self, open: u8) -> Result<()> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > limits::JSON_DEPTH {
            let message = format!("JSON nested deeper than {}", limits::JSON_DEPTH);
            return Err(Error::limit(message).at_byte(self.base + self.position as u64));
        }
        Ok(())
    }

    /// Whether another item follows in the container closed by `close`; moves over the comma or the closing byte.
    fn more(&mut self, close: u8, first: &mut bool) -> Result<bool> {
        let was_first = std::mem::replace(first, false);
        match self.peek() {
            Some(byte) if byte == close => {
                self.position += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b',') if !was_first => {
                self.position += 1;
                Ok(true)
            }
            Some(_) if was_first => Ok(true),
            _ => Err(self.error(format!("invalid JSON: expected ',' or '{}'", close as char))),
        }
    }

    /// Reads an object; `field` is called at each value and must move over it.
    pub fn object(&mut self, mut field: impl FnMut(&mut Self, Cow<'a, str>) -> Result<()>) -> Result<()> {
        self.enter(b'{')?;
        let mut first = true;
        while self.more(b'}', &mut first)? {
            let key = self.string()?;
            self.expect(b':')?;
            field(self, key)?;
        }
        Ok(())
    }

    /// Reads an array; `item` is called at each value and must move over it.
    pub fn array(&mut self, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.enter(b'[')?;
        let mut first = true;
        while self.more(b']', &mut first)? {
            item(self)?;
        }
        Ok(())
    }

    /// Reads a string; borrowed unless it has escapes.
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.expect(b'"')?;
        let start = self.position;
        let mut owned: Option<String> = None;
        let mut run = start;
        loop {
            let Some(&byte) = self.text.as_bytes().get(self.position) else {
                return Err(self.error("invalid JSON: a string does not end"));
            };
            match byte {
                b'"' => {
                    let tail = &self.text[run..self.position];
                    self.position += 1;
                    return Ok(match owned {
                        None => Cow::Borrowed(tail),
                        Some(text) => Cow::Owned(text + tail),
                    });
                }
                b'\\' => {
                    let text = owned.get_or_insert_with(String::new);
                    text.push_str(&self.text[run..self.position]);
                    let escaped = self.escape()?;
                    owned.get_or_insert_with(String::new).push(escaped);
                    run = self.position;
                }
                0..0x20 => return Err(self.error("invalid JSON: a control character inside a string")),
                _ => self.position += 1,
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        let code = self.text.as_bytes().get(self.position + 1).copied();
        self.position += 2;
        Ok(match code {
            Some(byte @ (b'"' | b'\\' | b'/')) => byte as char,
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let first = self.hex4()?;
                if !(0xd800..0xe000).contains(&first) {
                    return char::from_u32(first).ok_or_else(|| self.error("invalid JSON: bad \\u escape"));
                }
                let pair = self.text.as_bytes().get(self.position..self.position + 2) == Some(b"\\u");
                let second = if pair && first < 0xdc00 {
                    self.position += 2;
                    self.hex4()?
                } else {
                    0
                };
                if !(0xdc00..0xe000).contains(&second) {
                    return Err(self.error("invalid JSON: a lone surrogate"));
                }
                char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
                    .ok_or_else(|| self.error("invalid JSON: bad \\u escape"))?
            }
            _ => return Err(self.error("invalid JSON: unknown escape")),
        })
    }

    fn hex4(&mut self) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.position..self.position + 4);
        let value = digits
            .filter(|d| d.iter().all(u8::is_ascii_hexdigit))
            .and_then(|d| u32::from_str_radix(std::str::from_utf8(d).ok()?, 16).ok())
            .ok_or_else(|| self.error("invalid JSON: \\u needs four hexadecimal digits"))?;
        self.position += 4;
        Ok(value)
    }

    /// The characters of the number at the position.
    fn number(&mut self) -> Result<&'a str> {
        self.peek();
        let rest = &self.text[self.position..];
        let length = rest
            .bytes()
            .take(limits::JSON_NUMBER + 1)
            .take_while(|b| matches!(b, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'))
            .count();
        if length > limits::JSON_NUMBER {
            return Err(self.error(format!("a number of more than {} characters", limits::JSON_NUMBER)));
        }
        if !is_number(&rest.as_bytes()[..length]) {
            return Err(self.error("invalid JSON: expected a value"));
        }
        self.position += length;
        Ok(&rest[..length])
    }

    /// Reads a non-negative integer written as plain digits.
    pub fn unsigned(&mut self) -> Result<u64> {
        let number = self.number()?;
        number.parse().map_err(|_| self.error(format!("{number} is no integer between 0 and 2^64 - 1")))
    }

    /// Moves over any value, checking it.
    pub fn skip(&mut self) -> Result<()> {
        match self.peek() {
            Some(b'{') => self.object(|json, _| json.skip()),
            Some(b'[') => self.array(Self::skip),
            Some(b'"') => self.string().map(|_| ()),
            Some(b't') => self.literal("true"),
            Some(b'f') => self.literal("false"),
            Some(b'n') => self.literal("null"),
            Some(_) => self.number().map(|_| ()),
            None => Err(self.error("invalid JSON: the text ends where a value should be")),
        }
    }

    fn literal(&mut self, word: &str) -> Result<()> {
        if !self.text[self.position..].starts_with(word) {
            return Err(self.error("invalid JSON: expected a value"));
        }
        self.position += word.len();
        Ok(())
    }
}

/// Whether `text` follows the number grammar of JSON.
fn is_number(text: &[u8]) -> bool {
    fn digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|b| b.is_ascii_digit()).count();
        (count, &text[count..])
    }
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let (whole, mut rest) = digits(text);
    if whole == 0 || (whole > 1 && text[0] == b'0') {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(b".") {
        let (count, tail) = digits(fraction);
        if count == 0 {
            return false;
        }
        rest = tail;
    }
    if let Some(exponent) = rest.strip_prefix(b"e").or_else(|| rest.strip_prefix(b"E")) {
        let unsigned = exponent.strip_prefix(b"+").or_else(|| exponent.strip_prefix(b"-")).unwrap_or(exponent);
        let (count, tail) = digits(unsigned);
        if count == 0 {
            return false;
        }
        rest = tail;
    }
    rest.is_empty()
}

/// Checks a whole JSON document (depth, number length, encoding) before a general parser builds objects from it.
///
/// # Errors
/// [`crate::ErrorKind::Format`] or [`crate::ErrorKind::Limit`], with the byte.
pub fn check(bytes: &[u8]) -> Result<()> {
    let mut json = Json::new(bytes, 0)?;
    json.skip()?;
    json.end()
}

/// Appends `text` as a JSON string.
pub fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn accepts_what_serde_json_accepts() {
        let texts = [
            "{}",
            "[]",
            " [1, -2.5e+3, 0, \"a\\u00e9\\ud83d\\ude00\", true, false, null] ",
            "{\"a\":{\"b\":[[]]}}",
            "[1,]",
            "[01]",
            "[1.]",
            "[.5]",
            "[+1]",
            "[-]",
            "[1e]",
            "{\"a\"}",
            "{\"a\":}",
            "{,}",
            "[\"\\ud800\"]",
            "[\"\\x\"]",
            "[\"\u{1}\"]",
            "tru",
            "\"abc",
            "",
            "1 2",
            "[1 2]",
            "{\"a\":1,}",
            "nul",
            "[\"\\u12\"]",
            "-0",
            "1E5",
            "[}",
        ];
        for text in texts {
            let expected = serde_json::from_str::<serde_json::Value>(text).is_ok();
            assert_eq!(check(text.as_bytes()).is_ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn strings_equal_those_of_serde_json() {
        for text in [r#""plain""#, r#""\u00e9\n\"\\\/\b\f\r\t""#, r#""x\ud83d\ude00y""#, r#""\u0000""#] {
            let ours = Json::new(text.as_bytes(), 0).unwrap().string().unwrap().into_owned();
            assert_eq!(ours, serde_json::from_str::<String>(text).unwrap());
            let mut written = String::new();
            write_string(&mut written, &ours);
            assert_eq!(serde_json::from_str::<String>(&written).unwrap(), ours);
        }
    }

    #[test]
    fn depth_and_number_length_are_limited() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(check(nested(limits::JSON_DEPTH).as_bytes()).is_ok());
        assert_eq!(check(nested(limits::JSON_DEPTH + 1).as_bytes()).unwrap_err().kind, ErrorKind::Limit);
        assert!(check("9".repeat(limits::JSON_NUMBER + 1).as_bytes()).is_err());
        assert!(check(b"[\"\xff\"]").is_err());
    }
}
