//! Keeps lists in answers unparsed.
//!
//! Parsing every field of every consumer into a value that is read once would be most of the cost of a pass. This wrapper splits
//! the answers of a connection without parsing them: redis-rs receives each list as one bulk string, from which
//! [`super::resp_reader::Reply`] reads the fields.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes to read from the network at a time.
const CHUNK: usize = 32 * 1024;

/// A connection that delivers lists as bulk strings while [`Switch`] is on.
pub struct LazyList<S> {
    inner: S,
    on: Switch,
    /// Received bytes that are not passed on yet; starts at an answer. `filled` bytes are valid, the rest is spare.
    came: Vec<u8>,
    filled: usize,
    scan: Scan,
    /// Bytes to pass on, and the current position.
    out: Vec<u8>,
    given: usize,
}

/// Turned on after the handshake, whose answers redis-rs parses itself.
pub type Switch = Arc<AtomicBool>;

impl<S> LazyList<S> {
    /// Wraps `inner`.
    pub fn new(inner: S, on: Switch) -> Self {
        Self { inner, on, came: Vec::new(), filled: 0, scan: Scan::default(), out: Vec::new(), given: 0 }
    }

    /// Moves complete answers from `came` to `out`.
    fn hand_on(&mut self) {
        let lists_as_text = self.on.load(Ordering::Acquire);
        let mut begins = 0;
        while let Some(answer) = self.scan.next(self.came.get(begins..self.filled).unwrap_or_default()) {
            begins += answer.len();
            let is_list = answer.starts_with(b"*") && !answer.starts_with(b"*-");
            if lists_as_text && is_list && !self.scan.lost {
                self.out.extend_from_slice(format!("${}\r\n", answer.len()).as_bytes());
                self.out.extend_from_slice(answer);
                self.out.extend_from_slice(b"\r\n");
            } else {
                self.out.extend_from_slice(answer);
            }
        }
        self.came.copy_within(begins..self.filled, 0);
        self.filled -= begins;
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LazyList<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.given == this.out.len() {
            this.out.clear();
            this.given = 0;
            if this.came.len() < this.filled + CHUNK {
                this.came.resize(this.filled + CHUNK, 0);
            }
            let mut room = ReadBuf::new(this.came.get_mut(this.filled..).unwrap_or_default());
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut room))?;
            let count = room.filled().len();
            this.filled += count;
            if count == 0 {
                return Poll::Ready(Ok(()));
            }
            this.hand_on();
        }
        let rest = this.out.get(this.given..).unwrap_or_default();
        let some = rest.get(..rest.len().min(to.remaining())).unwrap_or_default();
        to.put_slice(some);
        this.given += some.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LazyList<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Finds the end of an answer incrementally, without scanning any byte twice.
#[derive(Debug, Default)]
struct Scan {
    /// Number of scanned bytes of the current answer.
    at: usize,
    /// Number of known elements that are still to come.
    left: usize,
    /// Invalid protocol data was received; everything after it is passed on unchanged.
    lost: bool,
}

impl Scan {
    /// Returns the answer at the beginning of `came` once it is complete.
    fn next<'a>(&mut self, came: &'a [u8]) -> Option<&'a [u8]> {
        if self.at == 0 {
            self.left = 1;
        }
        while self.left > 0 && !self.lost {
            let rest = came.get(self.at..)?;
            let Some(head) = Head::of(rest)? else {
                self.lost = true;
                break;
            };
            if rest.len() < head.ends {
                return None;
            }
            self.at += head.ends;
            self.left = self.left.saturating_add(head.holds) - usize::from(!head.is_aside);
        }
        if self.lost {
            return Some(came).filter(|came| !came.is_empty());
        }
        came.get(..std::mem::take(&mut self.at))
    }
}

/// The header of an element.
#[derive(Debug, Clone, Copy)]
struct Head {
    kind: u8,
    /// Start of its own bytes, and the ends of those and of their terminator.
    begins: usize,
    ends: usize,
    /// Number of elements that it contains.
    holds: usize,
    /// An out-of-band element (such as a push), not an answer.
    is_aside: bool,
}

impl Head {
    /// Returns `None` if its line is incomplete, `Some(None)` if it is not an element.
    fn of(rest: &[u8]) -> Option<Option<Self>> {
        let (kind, told) = rest.split_first()?;
        let plain = |line: usize| Self { kind: *kind, begins: 1, ends: 1 + line, holds: 0, is_aside: false };
        if matches!(kind, b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') {
            let line = told.iter().position(|byte| *byte == b'\n')? + 1;
            return Some(Some(plain(line)).filter(|_| told.get(..line).is_some_and(|line| line.ends_with(b"\r\n"))));
        }
        let Some((length, line)) = length(told)? else { return Some(None) };
        Some(Self::with_length(plain(line), length))
    }

    /// `length` is `None` for nil.
    fn with_length(plain: Self, length: Option<usize>) -> Option<Self> {
        let text = |length: usize| plain.ends.checked_add(length)?.checked_add(2);
        match (plain.kind, length) {
            (b'$' | b'!' | b'=', None) => Some(Self { kind: b'_', ..plain }),
            (b'$' | b'!' | b'=', Some(length)) => Some(Self { begins: plain.ends, ends: text(length)?, ..plain }),
            (b'*' | b'~' | b'>', length) => Some(Self { holds: length.unwrap_or(0), ..plain }),
            (b'%', length) => Some(Self { holds: length.unwrap_or(0).checked_mul(2)?, ..plain }),
            (b'|', length) => Some(Self { holds: length.unwrap_or(0).checked_mul(2)?, is_aside: true, ..plain }),
            _ => None,
        }
    }
}

/// Parses the length in a line (`None` for -1), and the end of the line. Results as for [`Head::of`].
fn length(told: &[u8]) -> Option<Option<(Option<usize>, usize)>> {
    if let Some(rest) = told.strip_prefix(b"-1") {
        return Some((rest.get(..2)? == b"\r\n").then_some((None, 4)));
    }
    let mut length = 0_usize;
    for (at, byte) in told.iter().enumerate() {
        let longer = match byte {
            b'0'..=b'9' => length.checked_mul(10).and_then(|length| length.checked_add(usize::from(byte - b'0'))),
            b'\r' if at > 0 => return Some((told.get(at + 1)? == &b'\n').then_some((Some(length), at + 2))),
            // An incomplete "-1".
            b'-' if told.len() == 1 => return None,
            _ => None,
        };
        match longer {
            Some(longer) => length = longer,
            None => return Some(None),
        }
    }
    None
}

/// An element in its raw form.
#[derive(Debug, Clone, Copy)]
pub struct Raw<'a> {
    head: Option<Head>,
    bytes: &'a [u8],
}

impl<'a> Raw<'a> {
    /// Returns the element at the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { head: Head::of(bytes).flatten(), bytes }
    }

    /// Returns its elements; none if it is not a list.
    #[must_use]
    pub fn children(self) -> Children<'a> {
        match self.head {
            Some(head) if matches!(head.kind, b'*' | b'~' | b'%') => {
                Children { rest: self.bytes.get(head.ends..).unwrap_or_default(), left: head.holds }
            }
            _ => Children { rest: &[], left: 0 },
        }
    }

    /// Returns a string.
    #[must_use]
    pub fn bytes(self) -> Option<&'a [u8]> {
        let head = self.head?;
        let bytes = self.bytes.get(head.begins..head.ends.checked_sub(2)?);
        match head.kind {
            b'$' | b'+' => bytes,
            b'=' => bytes?.get(4..),
            _ => None,
        }
    }

    /// Returns the digits of an integer.
    #[must_use]
    pub fn integer(self) -> Option<&'a [u8]> {
        let head = self.head.filter(|head| head.kind == b':')?;
        self.bytes.get(head.begins..head.ends.checked_sub(2)?)
    }
}

/// Iterator of [`Raw::children`].
#[derive(Debug)]
pub struct Children<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Children<'a> {
    type Item = Raw<'a>;

    fn next(&mut self) -> Option<Raw<'a>> {
        self.left = self.left.checked_sub(1)?;
        let head = Head::of(self.rest)??;
        let length = if head.holds == 0 && !head.is_aside {
            head.ends
        } else {
            let mut scan = Scan::default();
            scan.next(self.rest).filter(|_| !scan.lost)?.len()
        };
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(Raw { head: Some(head), bytes })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    const ANSWERS: &[u8] = b"+OK\r\n*2\r\n$1\r\na\r\n*2\r\n:1\r\n*0\r\n$5\r\nx\r\n*1\r\n*-1\r\n:7\r\n-ERR no\r\n%1\r\n+k\r\n*1\r\n_\r\n*0\r\n";
    const HANDED_ON: &[u8] =
        b"+OK\r\n$23\r\n*2\r\n$1\r\na\r\n*2\r\n:1\r\n*0\r\n\r\n$5\r\nx\r\n*1\r\n*-1\r\n:7\r\n-ERR no\r\n%1\r\n+k\r\n*1\r\n_\r\n$4\r\n*0\r\n\r\n";

    /// Delivers a few bytes at a time.
    struct Dripping(&'static [u8], usize);

    impl AsyncRead for Dripping {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let (some, rest) = self.0.split_at(self.1.min(self.0.len()).min(to.remaining()));
            to.put_slice(some);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    async fn handed_on(on: bool, sent: &'static [u8], at_a_time: usize) -> Vec<u8> {
        let mut got = Vec::new();
        let mut stream = LazyList::new(Dripping(sent, at_a_time), Arc::new(AtomicBool::new(on)));
        stream.read_to_end(&mut got).await.unwrap();
        got
    }

    #[tokio::test]
    async fn lists_become_strings_and_everything_else_is_unchanged() {
        for at_a_time in 1..=ANSWERS.len() {
            let got = handed_on(true, ANSWERS, at_a_time).await;
            assert_eq!(
                String::from_utf8_lossy(&got),
                String::from_utf8_lossy(HANDED_ON),
                "{at_a_time} bytes at a time"
            );
            assert_eq!(handed_on(false, ANSWERS, at_a_time).await, ANSWERS);
        }
    }

    #[tokio::test]
    async fn invalid_data_is_passed_on_to_redis_rs() {
        for sent in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"*x\r\n", b"$-5\r\n", b"*1\r\n\xff\r\n"] {
            assert_eq!(handed_on(true, sent, 3).await, sent);
        }
    }

    #[test]
    fn truncated_or_invalid_lists_end_early() {
        for bytes in [
            &b"*2\r\n$1\r\na\r\n"[..],
            b"*2\r\n$1\r\na\r\n$9999\r\nb\r\n",
            b"*999999999\r\n$1\r\na\r\n",
            b"*2\r\n$1\r\na\r\n$18446744073709551615\r\n",
        ] {
            let items: Vec<_> = Raw::new(bytes).children().map(Raw::bytes).collect();
            assert_eq!(items, [Some(&b"a"[..])]);
        }
        for bytes in [&b""[..], b"*", b"*-1\r\n", b"$1\r\na\r\n", b"x"] {
            assert_eq!(Raw::new(bytes).children().count(), 0);
        }
    }
}
