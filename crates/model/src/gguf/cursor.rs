//! A forward reader over the head of a file that never believes a length before checking it.

use super::source::Source;
use crate::file_error::Fault;

/// How much is read ahead at a time.
const CHUNK: u64 = 256 << 10;
/// No real head comes near this; a claim beyond it is refused instead of read.
pub(crate) const MAX_HEAD: u64 = 512 << 20;

/// Positions of a run of bytes in the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Why bytes could not be had; a caller that knows the field's name turns it into a [`Fault`].
#[derive(Debug)]
pub(crate) enum Short {
    /// The file ends first.
    End { need: u64, len: u64 },
    /// The head would grow beyond [`MAX_HEAD`].
    TooLong { need: u64 },
    /// Reading failed.
    Io(std::io::Error),
}

impl Short {
    /// The fault, now that the field has a name.
    pub(crate) fn at(self, field: impl Into<String>) -> Fault {
        let field = field.into();
        match self {
            Self::End { need, len } => Fault::Truncated { field, need, len },
            Self::TooLong { need } => Fault::malformed(
                field,
                format_args!("so long that the header reaches byte {need}"),
                format!("a header of at most {MAX_HEAD} bytes"),
            ),
            Self::Io(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => Fault::Io {
                field,
                source,
                next: "the file was cut while being read: fetch it again",
            },
            Self::Io(source) => Fault::Io { field, source, next: "check the disk and try again" },
        }
    }
}

/// Reads a file's head front to back, keeping what it has read.
pub(crate) struct Cursor<'s> {
    source: &'s Source,
    head: Vec<u8>,
    pos: usize,
}

impl<'s> Cursor<'s> {
    pub(crate) fn new(source: &'s Source) -> Self {
        Self { source, head: Vec::new(), pos: 0 }
    }

    /// Bytes between the current position and the end of the file.
    pub(crate) fn remaining(&self) -> u64 {
        self.source.len().saturating_sub(self.pos as u64)
    }

    /// Current position, in bytes from the start of the file.
    pub(crate) fn position(&self) -> u64 {
        self.pos as u64
    }

    /// The bytes of a span read earlier.
    pub(crate) fn bytes(&self, span: Span) -> &[u8] {
        &self.head[span.start..span.end]
    }

    /// Ends reading and hands over the bytes read so far, without the read-ahead.
    pub(crate) fn into_head(mut self) -> Vec<u8> {
        self.head.truncate(self.pos);
        self.head.shrink_to_fit();
        self.head
    }

    /// Steps over `n` bytes. Nothing is allocated unless the file holds them.
    pub(crate) fn take(&mut self, n: u64) -> Result<Span, Short> {
        let len = self.source.len();
        let need = (self.pos as u64).saturating_add(n);
        if need > len {
            return Err(Short::End { need, len });
        }
        if need > MAX_HEAD {
            return Err(Short::TooLong { need });
        }
        // Below MAX_HEAD, so it fits a usize.
        let end = need as usize;
        if end > self.head.len() {
            self.read_to(need.saturating_add(CHUNK).min(len).min(MAX_HEAD)).map_err(Short::Io)?;
        }
        let span = Span { start: self.pos, end };
        self.pos = end;
        Ok(span)
    }

    fn read_to(&mut self, upto: u64) -> std::io::Result<()> {
        let old = self.head.len();
        let new = upto as usize;
        if new > self.head.capacity() {
            // Grow by doubling, but never past what the file holds.
            let room = (self.head.capacity() as u64 * 2).clamp(upto, self.source.len().max(upto));
            self.head.reserve_exact(room as usize - old);
        }
        self.head.resize(new, 0);
        let read = self.source.read_exact_at(&mut self.head[old..], old as u64);
        if read.is_err() {
            self.head.truncate(old);
        }
        read
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let span = self.take(N as u64)?;
        let mut out = [0; N];
        out.copy_from_slice(&self.head[span.start..span.end]);
        Ok(out)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_beyond_the_end_allocates_nothing_and_says_where_it_would_end() {
        let source = Source::Memory(vec![7; 10]);
        let mut cursor = Cursor::new(&source);
        assert!(matches!(cursor.take(u64::MAX), Err(Short::End { need: u64::MAX, len: 10 })));
        assert_eq!(cursor.head.capacity(), 0);
        assert_eq!(cursor.u64().unwrap(), 0x0707_0707_0707_0707);
        assert!(matches!(cursor.u32(), Err(Short::End { need: 12, len: 10 })));
        assert_eq!(cursor.take(2).unwrap(), Span { start: 8, end: 10 });
        assert_eq!(cursor.remaining(), 0);
    }

    #[test]
    fn reading_ahead_stops_at_the_end_and_is_dropped() {
        let bytes: Vec<u8> = (0..2_000_000u32).map(|i| i as u8).collect();
        let source = Source::Memory(bytes.clone());
        let mut cursor = Cursor::new(&source);
        for _ in 0..3 {
            cursor.take(300_001).unwrap();
        }
        assert!(cursor.head.capacity() <= bytes.len());
        assert_eq!(cursor.into_head(), bytes[..900_003]);
    }
}
