//! What passes between the monitor and Postgres, below the driver.
//!
//! It notes what the driver keeps to itself: the backend's process id at the greeting, and the SQLSTATE of each error.
//! And it makes the driver's named statements work behind a pooler that gives every transaction another server session,
//! where a name that was prepared a moment ago is unknown, or stands for the statement of another client: there every
//! statement goes unnamed, and is parsed again right before it is run, in the same message exchange. A search path is
//! set again for each transaction there.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, TlsStream};

/// Read from the network at a time.
const CHUNK: usize = 16 * 1024;
/// Errors whose SQLSTATE is remembered.
const NEWEST_ERRORS: usize = 64;
/// Message types: a byte, then a length that counts itself.
const HEAD: usize = 5;
/// Code of the authentication request for the password itself.
const CLEARTEXT_PASSWORD: [u8; 4] = [0, 0, 0, 3];
const CLEARTEXT_REFUSED: &str = "the server asks for the password in clear text on a connection without encryption: set \
    POSTGRES_SSLMODE=require, or better verify-full; or POSTGRES_SSLMODE=prefer, to send it anyway";

/// What is known of a connection, shared with whoever uses it.
#[derive(Debug, Default)]
pub(super) struct Observed {
    backend_pid: AtomicI32,
    /// The server's last word: a transaction is open.
    in_transaction: AtomicBool,
    /// Set behind a pooler.
    rewriting: OnceLock<Rewriting>,
    /// The password must not be sent as it is.
    keeps_password: bool,
}

/// How messages are rewritten behind a pooler. Statements always become unnamed.
#[derive(Debug)]
struct Rewriting {
    search_path: Option<SearchPath>,
}

/// Sets the search path for one transaction.
#[derive(Debug)]
struct SearchPath {
    /// For the extended protocol: three messages.
    messages: Vec<u8>,
    /// For the simple protocol: a statement that takes no snapshot, so that `BEGIN ISOLATION LEVEL` may follow.
    statement: String,
}

impl SearchPath {
    /// `path` is a list of quoted identifiers.
    fn new(path: &str) -> Self {
        let mut messages = Vec::new();
        let query = format!("SELECT pg_catalog.set_config('search_path', '{}', true)\0", path.replace('\'', "''"));
        put(&mut messages, b'P', &[b"\0", query.as_bytes(), b"\0\0"]);
        put(&mut messages, b'B', &[b"\0\0\0\0\0\0\0\0"]);
        put(&mut messages, b'E', &[b"\0\0\0\0\0"]);
        Self { messages, statement: format!("SET LOCAL search_path TO {path}; ") }
    }
}

impl Observed {
    /// Nothing is known yet. With `keeps_password`, a server that asks for the password itself, instead of a proof that
    /// the client knows it, does not get it.
    pub(super) fn new(keeps_password: bool) -> Self {
        Self { keeps_password, ..Self::default() }
    }

    /// The backend's process id as the greeting told it; 0: not told. A pooler tells one of its own making.
    pub(super) fn backend_pid(&self) -> i32 {
        self.backend_pid.load(Ordering::Acquire)
    }

    /// Rewrites statements for a pooler from now on: they are unnamed, and every transaction begins with `search_path`
    /// (a list of quoted identifiers), if there is one. No exchange may be in progress.
    pub(super) fn rewrite_for_pooler(&self, search_path: Option<&str>) {
        let _ = self.rewriting.set(Rewriting { search_path: search_path.map(SearchPath::new) });
    }
}

/// The newest errors' messages and SQLSTATEs: diesel hands on the one without the other.
static CODES: LazyLock<Mutex<VecDeque<(String, String)>>> = LazyLock::new(Mutex::default);

/// The SQLSTATE with which Postgres lately sent an error with this message, which may stand in a longer text.
pub(super) fn sqlstate_of(text: &str) -> Option<String> {
    let codes = CODES.lock().unwrap_or_else(PoisonError::into_inner);
    let whole = codes.iter().rev().find(|(of, _)| of == text);
    whole.or_else(|| codes.iter().rev().find(|(of, _)| text.contains(of.as_str()))).map(|(_, code)| code.clone())
}

fn note_error(body: &[u8]) {
    let (mut code, mut message) = (None, None);
    for field in body.split(|byte| *byte == 0) {
        match field.split_first() {
            Some((b'C', text)) => code = Some(String::from_utf8_lossy(text).into_owned()),
            Some((b'M', text)) => message = Some(String::from_utf8_lossy(text).into_owned()),
            _ => {}
        }
    }
    let (Some(code), Some(message)) = (code, message) else { return };
    if message.is_empty() {
        return;
    }
    let mut codes = CODES.lock().unwrap_or_else(PoisonError::into_inner);
    codes.retain(|(of, _)| *of != message);
    if codes.len() >= NEWEST_ERRORS {
        codes.pop_front();
    }
    codes.push_back((message, code));
}

/// A stream to Postgres that is observed, and rewritten where that is asked for.
pub(super) struct Wire<S> {
    inner: S,
    observed: Arc<Observed>,
    incoming: Incoming,
    outgoing: Outgoing,
    /// What the server is still to answer, while statements go unnamed.
    awaited: VecDeque<Awaited>,
}

/// An answer that is still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// To a statement that the driver prepared.
    Parsed,
    /// To a statement that was parsed again for being run: the driver does not know of it.
    ParsedAgain,
    /// To the statement that sets the search path, up to its completion: the driver does not know of it.
    SearchPath,
    /// The end of an exchange.
    Ready,
}

/// What came and is not handed on yet.
#[derive(Debug, Default)]
struct Incoming {
    /// Bytes from the server; a message begins at the first, unless `skip` are left of one that was looked at.
    came: Vec<u8>,
    skip: usize,
    /// What is handed on, from `given` on.
    out: Vec<u8>,
    given: usize,
}

/// What the driver sent and is not handed on yet.
#[derive(Debug, Default)]
struct Outgoing {
    came: Vec<u8>,
    out: Vec<u8>,
    given: usize,
    /// Text and parameter types of the driver's statements, by name.
    statements: HashMap<Vec<u8>, Vec<u8>>,
    /// The exchange in progress has set the search path.
    path_is_set: bool,
}

impl<S> Wire<S> {
    /// Observes `inner`, over which nothing was sent yet but the negotiation of TLS.
    pub(super) fn new(inner: S, observed: Arc<Observed>) -> Self {
        let (incoming, outgoing) = (Incoming::default(), Outgoing::default());
        Self { inner, observed, incoming, outgoing, awaited: VecDeque::new() }
    }
}

impl Incoming {
    /// Moves what may be handed on from `came` to `out`.
    fn hand_on(&mut self, observed: &Observed, awaited: &mut VecDeque<Awaited>) -> io::Result<()> {
        let mut at = 0;
        loop {
            let rest = self.came.get(at..).unwrap_or_default();
            if self.skip > 0 {
                let some = self.skip.min(rest.len());
                self.out.extend_from_slice(rest.get(..some).unwrap_or_default());
                self.skip -= some;
                at += some;
                if self.skip > 0 || some == 0 {
                    break;
                }
                continue;
            }
            let Some(message) = Message::begins(rest) else { break };
            // Looked into: what must be there as a whole.
            let sets_path = awaited.front() == Some(&Awaited::SearchPath);
            if matches!(message.kind, b'1' | b'E' | b'K' | b'R' | b'Z')
                || (sets_path && matches!(message.kind, b'2' | b'C' | b'D'))
            {
                let Some(body) = rest.get(HEAD..message.length) else { break };
                let mut hide = false;
                match message.kind {
                    b'E' => note_error(body),
                    b'R' => {
                        if observed.keeps_password && body.starts_with(&CLEARTEXT_PASSWORD) {
                            return Err(io::Error::new(io::ErrorKind::PermissionDenied, CLEARTEXT_REFUSED));
                        }
                    }
                    b'K' => {
                        let pid = body.first_chunk::<4>().map_or(0, |pid| i32::from_be_bytes(*pid));
                        observed.backend_pid.store(pid, Ordering::Release);
                    }
                    b'1' | b'2' | b'D' if sets_path => hide = true,
                    b'C' => {
                        awaited.pop_front();
                        hide = true;
                    }
                    b'1' => {
                        hide = awaited.front().is_some_and(|first| *first != Awaited::Ready)
                            && awaited.pop_front() == Some(Awaited::ParsedAgain)
                    }
                    // After an error the server passes over the rest of the exchange.
                    _ => {
                        observed.in_transaction.store(body.first() != Some(&b'I'), Ordering::Release);
                        while awaited.pop_front().is_some_and(|first| first != Awaited::Ready) {}
                    }
                }
                if !hide {
                    self.out.extend_from_slice(rest.get(..message.length).unwrap_or_default());
                }
                at += message.length;
            } else {
                self.skip = message.length;
            }
        }
        self.came.drain(..at);
        Ok(())
    }
}

impl Outgoing {
    /// Moves whole messages from `came` to `out`, with statements that have a name made unnamed. Each exchange first sets
    /// `search_path`.
    fn rewrite(&mut self, awaited: &mut VecDeque<Awaited>, search_path: Option<&SearchPath>) {
        let mut at = 0;
        while let Some(message) = self.came.get(at..).and_then(Message::begins) {
            let Some(bytes) = self.came.get(at..at + message.length) else { break };
            let body = bytes.get(HEAD..).unwrap_or_default();
            let path = search_path.filter(|_| !self.path_is_set && matches!(message.kind, b'P' | b'B' | b'Q'));
            if let Some(path) = path {
                awaited.push_back(Awaited::SearchPath);
                self.path_is_set = true;
                if message.kind != b'Q' {
                    self.out.extend_from_slice(&path.messages);
                }
            }
            match message.kind {
                b'P' => {
                    awaited.push_back(Awaited::Parsed);
                    let (name, statement) = cut(body);
                    if !name.is_empty() {
                        self.statements.insert(name.to_vec(), statement.to_vec());
                    }
                    put(&mut self.out, b'P', &[b"\0", statement]);
                }
                b'B' => {
                    let (portal, rest) = cut(body);
                    let (name, parameters) = cut(rest);
                    if let Some(statement) = self.statements.get(name) {
                        awaited.push_back(Awaited::ParsedAgain);
                        put(&mut self.out, b'P', &[b"\0", statement]);
                        put(&mut self.out, b'B', &[portal, b"\0\0", parameters]);
                    } else {
                        self.out.extend_from_slice(bytes);
                    }
                }
                // Of a statement: that of the exchange's own Parse.
                b'D' if body.first() == Some(&b'S') => put(&mut self.out, b'D', &[b"S\0"]),
                // The server knows no such name, which is no error.
                b'C' if body.first() == Some(&b'S') => {
                    self.statements.remove(cut(body.get(1..).unwrap_or_default()).0);
                    self.out.extend_from_slice(bytes);
                }
                kind => {
                    if matches!(kind, b'S' | b'Q') {
                        awaited.push_back(Awaited::Ready);
                        self.path_is_set = false;
                    }
                    match path {
                        Some(path) => put(&mut self.out, kind, &[path.statement.as_bytes(), body]),
                        None => self.out.extend_from_slice(bytes),
                    }
                }
            }
            at += message.length;
        }
        self.came.drain(..at);
    }
}

/// The head of a message: its type, and its length with the head.
#[derive(Debug, Clone, Copy)]
struct Message {
    kind: u8,
    length: usize,
}

impl Message {
    fn begins(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        let length = u32::from_be_bytes(*rest.first_chunk::<4>()?);
        Some(Self { kind: *kind, length: usize::try_from(length).unwrap_or(usize::MAX).saturating_add(1).max(HEAD) })
    }
}

/// A text that ends with a zero byte, and what follows.
fn cut(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    (bytes.get(..end).unwrap_or_default(), bytes.get(end + 1..).unwrap_or_default())
}

fn put(out: &mut Vec<u8>, kind: u8, parts: &[&[u8]]) {
    let length = 4 + parts.iter().map(|part| part.len()).sum::<usize>();
    out.push(kind);
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.incoming.given == this.incoming.out.len() {
            this.incoming.out.clear();
            this.incoming.given = 0;
            // Clearing the chunk for each read would cost a tenth of the monitor's instructions.
            let mut chunk = [const { MaybeUninit::uninit() }; CHUNK];
            let mut room = ReadBuf::uninit(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(context, &mut room))?;
            this.incoming.came.extend_from_slice(room.filled());
            if room.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.incoming.hand_on(&this.observed, &mut this.awaited)?;
        }
        let rest = this.incoming.out.get(this.incoming.given..).unwrap_or_default();
        let some = rest.get(..rest.len().min(to.remaining())).unwrap_or_default();
        to.put_slice(some);
        this.incoming.given += some.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    fn poll_hand_on(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.outgoing.given < self.outgoing.out.len() {
            let rest = self.outgoing.out.get(self.outgoing.given..).unwrap_or_default();
            let count = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.given += count;
        }
        self.outgoing.out.clear();
        self.outgoing.given = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let observed = Arc::clone(&this.observed);
        let Some(rewriting) = observed.rewriting.get() else {
            return Pin::new(&mut this.inner).poll_write(context, bytes);
        };
        let outside = !observed.in_transaction.load(Ordering::Acquire);
        ready!(this.poll_hand_on(context))?;
        this.outgoing.came.extend_from_slice(bytes);
        this.outgoing.rewrite(&mut this.awaited, rewriting.search_path.as_ref().filter(|_| outside));
        // What does not go now goes with the next write or flush.
        if let Poll::Ready(Err(error)) = this.poll_hand_on(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_hand_on(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_hand_on(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Wire<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let mut bytes = Vec::new();
        put(&mut bytes, kind, parts);
        bytes
    }

    /// Hands `messages` to `Outgoing` in pieces of `size` bytes.
    fn sent(outgoing: &mut Outgoing, awaited: &mut VecDeque<Awaited>, messages: &[Vec<u8>], size: usize) -> Vec<u8> {
        for piece in messages.concat().chunks(size) {
            outgoing.came.extend_from_slice(piece);
            outgoing.rewrite(awaited, None);
        }
        std::mem::take(&mut outgoing.out)
    }

    #[test]
    fn a_server_that_asks_for_the_password_itself_is_refused_where_it_is_to_be_kept() {
        let asked = |keeps_password, code: u8| {
            let (observed, mut incoming) = (Observed::new(keeps_password), Incoming::default());
            incoming.came = message(b'R', &[&[0, 0, 0, code], b"salt"]);
            incoming.hand_on(&observed, &mut VecDeque::new()).map(|()| incoming.out.len())
        };
        let why = asked(true, 3).unwrap_err().to_string();
        assert!(why.contains("clear text") && why.contains("POSTGRES_SSLMODE"), "{why}");
        // MD5 and SCRAM are proofs.
        assert_eq!((asked(false, 3).unwrap(), asked(true, 5).unwrap(), asked(true, 10).unwrap()), (13, 13, 13));
    }

    #[test]
    fn a_named_statement_is_parsed_again_without_a_name_whenever_it_is_run() {
        for size in [1, 3, 1000] {
            let (mut outgoing, mut awaited) = (Outgoing::default(), VecDeque::new());
            let statement: &[u8] = b"SELECT $1\0\0\x01\0\0\0\x17";
            let prepare = [message(b'P', &[b"s7\0", statement]), message(b'D', &[b"Ss7\0"]), message(b'S', &[])];
            let unnamed = [message(b'P', &[b"\0", statement]), message(b'D', &[b"S\0"]), message(b'S', &[])];
            assert_eq!(sent(&mut outgoing, &mut awaited, &prepare, size), unnamed.concat());
            let parameters: &[u8] = b"\0\x01\0\x01\0\x01\0\0\0\x041234\0\0";
            let run = [message(b'B', &[b"\0s7\0", parameters]), message(b'E', &[b"\0\0\0\0\0"]), message(b'S', &[])];
            let again = [
                message(b'P', &[b"\0", statement]),
                message(b'B', &[b"\0\0", parameters]),
                message(b'E', &[b"\0\0\0\0\0"]),
                message(b'S', &[]),
            ];
            for _ in 0..2 {
                assert_eq!(sent(&mut outgoing, &mut awaited, &run, size), again.concat());
            }
            let expected = [
                Awaited::Parsed,
                Awaited::Ready,
                Awaited::ParsedAgain,
                Awaited::Ready,
                Awaited::ParsedAgain,
                Awaited::Ready,
            ];
            assert_eq!(awaited, expected);
            sent(&mut outgoing, &mut awaited, &[message(b'C', &[b"Ss7\0"]), message(b'S', &[])], size);
            assert!(outgoing.statements.is_empty());
        }
    }

    #[test]
    fn each_exchange_outside_a_transaction_sets_the_search_path_first_and_the_driver_does_not_see_the_answer() {
        let path = SearchPath::new("\"own\"");
        let statement: &[u8] = b"SELECT 1\0\0\0";
        let exchange = [message(b'P', &[b"\0", statement]), message(b'S', &[])].concat();
        let (mut outgoing, mut awaited) = (Outgoing::default(), VecDeque::new());
        for _ in 0..2 {
            outgoing.came.extend_from_slice(&exchange);
            outgoing.rewrite(&mut awaited, Some(&path));
            assert_eq!(std::mem::take(&mut outgoing.out), [path.messages.clone(), exchange.clone()].concat());
        }
        outgoing.came.extend(message(b'Q', &[b"BEGIN\0"]));
        outgoing.rewrite(&mut awaited, Some(&path));
        let query = message(b'Q', &[b"SET LOCAL search_path TO \"own\"; BEGIN\0"]);
        assert_eq!(std::mem::take(&mut outgoing.out), query);

        let complete = || message(b'C', &[b"SET\0"]);
        let set = [message(b'1', &[]), message(b'2', &[]), message(b'D', &[b"\0\0"]), complete()].concat();
        let answer = [message(b'1', &[]), message(b'Z', &[b"I"])].concat();
        let failed = [message(b'E', &[b"C42601\0Mwrong path\0\0"]), message(b'Z', &[b"I"])].concat();
        let begun = [complete(), message(b'Z', &[b"T"])].concat();
        for size in [1, 1000] {
            let (mut incoming, observed, mut awaited) = (Incoming::default(), Observed::default(), awaited.clone());
            for piece in [set.clone(), answer.clone(), failed.clone(), complete(), begun.clone()].concat().chunks(size)
            {
                incoming.came.extend_from_slice(piece);
                incoming.hand_on(&observed, &mut awaited).unwrap();
            }
            assert_eq!(incoming.out, [answer.clone(), failed.clone(), begun.clone()].concat());
            assert!(awaited.is_empty() && observed.in_transaction.load(Ordering::Acquire));
        }
    }

    #[test]
    fn the_driver_sees_the_answers_to_what_it_asked_and_no_others() {
        let parsed = || message(b'1', &[]);
        let ready = || message(b'Z', &[b"I"]);
        let error = || message(b'E', &[b"SERROR\0C99T01\0Mhello from the test\0\0"]);
        let row = || message(b'D', &[b"\0\x01\0\0\0\x041111"]);
        for size in [1, 4, 1000] {
            let mut incoming = Incoming::default();
            let observed = Observed::default();
            let mut awaited = VecDeque::from([
                Awaited::Parsed,
                Awaited::Ready,
                Awaited::ParsedAgain,
                Awaited::Ready,
                // Parsing fails: the server sends no answer to it.
                Awaited::ParsedAgain,
                Awaited::Ready,
                Awaited::ParsedAgain,
                Awaited::Ready,
            ]);
            let came = [parsed(), ready(), parsed(), row(), ready(), error(), ready(), parsed(), row(), ready()];
            for piece in came.concat().chunks(size) {
                incoming.came.extend_from_slice(piece);
                incoming.hand_on(&observed, &mut awaited).unwrap();
            }
            let seen = [parsed(), ready(), row(), ready(), error(), ready(), row(), ready()];
            assert_eq!(incoming.out, seen.concat());
            assert!(awaited.is_empty());
        }
        assert_eq!(sqlstate_of("hello from the test").as_deref(), Some("99T01"));
        assert_eq!(sqlstate_of("never sent"), None);
    }

    #[test]
    fn the_greeting_tells_the_backends_process() {
        let (mut incoming, observed) = (Incoming::default(), Observed::default());
        incoming.came = [message(b'R', &[b"\0\0\0\0"]), message(b'K', &[&7_i32.to_be_bytes(), b"key!"])].concat();
        incoming.hand_on(&observed, &mut VecDeque::new()).unwrap();
        assert_eq!(observed.backend_pid(), 7);
        assert_eq!(incoming.out.len(), 9 + 13);
    }
}
