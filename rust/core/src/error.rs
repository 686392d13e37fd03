//! One error type: what is wrong ([`ErrorKind`] and message) and where (file, tensor, byte).

use std::fmt;

/// `Result` with subbyte's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// The class of an error; the Python binding maps each to one exception type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The bytes are not in the format they were opened as, or break one of its rules.
    Format,
    /// The bytes are in the right format but damaged: truncated, inconsistent, contradictory.
    Corrupt,
    /// Well-formed, but outside what subbyte supports (yet).
    Unsupported,
    /// A ceiling of [`crate::limits`] was met.
    Limit,
    /// The caller passed something unusable (shape, dtype, missing importance weights).
    Argument,
    /// A value to encode, or the encoded result, is NaN or infinite.
    NonFinite,
    /// The operating system refused; `errno` is kept where known.
    Io(Option<i32>),
    /// A source of the caller's own failed; the caller has the details.
    Caller,
}

/// An error with its place. Build it with [`Error::new`] and add places as they become known on the way up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Class of the error.
    pub kind: ErrorKind,
    /// What is wrong: expected, found, and the next step.
    pub message: String,
    /// File name, when known.
    pub file: Option<String>,
    /// Tensor name, when known.
    pub tensor: Option<String>,
    /// Byte offset in the file or slice, when known.
    pub byte: Option<u64>,
    /// Row and column of an element, when known.
    pub element: Option<(usize, usize)>,
}

impl Error {
    /// A new error of `kind` saying `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), file: None, tensor: None, byte: None, element: None }
    }
    /// [`ErrorKind::Format`].
    pub fn format(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Format, message)
    }
    /// [`ErrorKind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, message)
    }
    /// [`ErrorKind::Unsupported`].
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }
    /// [`ErrorKind::Limit`].
    pub fn limit(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Limit, message)
    }
    /// [`ErrorKind::Argument`].
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Argument, message)
    }
    /// [`ErrorKind::NonFinite`] at `row`, `column`.
    pub fn non_finite(message: impl Into<String>, row: usize, column: usize) -> Self {
        Self { element: Some((row, column)), ..Self::new(ErrorKind::NonFinite, message) }
    }
    /// Adds the file name, unless one is already known.
    #[must_use]
    pub fn in_file(mut self, file: impl Into<String>) -> Self {
        self.file.get_or_insert(file.into());
        self
    }
    /// Adds the tensor name, unless one is already known.
    #[must_use]
    pub fn in_tensor(mut self, tensor: impl Into<String>) -> Self {
        self.tensor.get_or_insert(tensor.into());
        self
    }
    /// Adds the byte offset, unless one is already known.
    #[must_use]
    pub fn at_byte(mut self, byte: u64) -> Self {
        self.byte.get_or_insert(byte);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{file}: ")?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "tensor '{tensor}': ")?;
        }
        if let Some((row, column)) = self.element {
            write!(f, "row {row}, column {column}: ")?;
        }
        write!(f, "{}", self.message)?;
        if let Some(byte) = self.byte {
            write!(f, " (at byte {byte})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(e: std::io::Error) -> Self {
        Self::new(ErrorKind::Io(e.raw_os_error()), e.to_string())
    }
}
