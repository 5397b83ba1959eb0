//! Lua scripts: called by hash, and loaded if the server does not have them.

use std::io::Write;
use std::sync::OnceLock;

use redis::{Cmd, Value};

use super::LinkError;
use super::link::Sender;

/// A script and, once computed, its hash.
pub(super) struct Script {
    code: &'static str,
    script: OnceLock<redis::Script>,
}

/// Keys and arguments of a call, each list in one buffer.
#[derive(Debug, Default)]
pub(super) struct Call {
    keys: Strings,
    args: Strings,
}

#[derive(Debug, Default)]
struct Strings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Strings {
    fn push(&mut self, string: &[u8]) {
        self.bytes.extend_from_slice(string);
        self.ends.push(self.bytes.len());
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).filter_map(|(start, end)| self.bytes.get(*start..*end))
    }
}

impl Call {
    pub(super) fn key(&mut self, key: &[u8]) -> &mut Self {
        self.keys.push(key);
        self
    }

    pub(super) fn arg(&mut self, arg: &[u8]) -> &mut Self {
        self.args.push(arg);
        self
    }

    /// Adds a number as an argument.
    pub(super) fn number(&mut self, number: impl std::fmt::Display) -> &mut Self {
        // Writing to a vector cannot fail.
        let _ = write!(self.args.bytes, "{number}");
        self.args.ends.push(self.args.bytes.len());
        self
    }

    /// Adds `key` unless it is present, and its index (from 1) as an argument.
    pub(super) fn key_index(&mut self, key: &[u8]) -> &mut Self {
        let known = self.keys.iter().position(|known| known == key);
        let at = known.unwrap_or(self.keys.ends.len());
        if known.is_none() {
            self.keys.push(key);
        }
        self.number(at + 1)
    }
}

impl Script {
    pub(super) const fn new(code: &'static str) -> Self {
        Self { code, script: OnceLock::new() }
    }

    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the EVALSHA command of a call.
    pub(super) fn call(&self, call: &Call) -> Cmd {
        let hash = self.script.get_or_init(|| redis::Script::new(self.code)).get_hash();
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(hash).arg(call.keys.ends.len());
        for string in call.keys.iter().chain(call.args.iter()) {
            cmd.arg(string);
        }
        cmd
    }

    pub(super) async fn run(&self, link: &mut impl Sender, call: &Call) -> Result<Value, LinkError> {
        let mut pipe = redis::pipe();
        pipe.add_command(self.call(call));
        match next(&mut link.send_all(&mut pipe).await?.into_iter()) {
            Err(e) if e.code() == "NOSCRIPT" => self.reload_and_run(link, call).await,
            other => other,
        }
    }

    pub(super) async fn reload_and_run(&self, link: &mut impl Sender, call: &Call) -> Result<Value, LinkError> {
        let mut pipe = redis::pipe();
        pipe.cmd("SCRIPT").arg("LOAD").arg(self.code);
        pipe.add_command(self.call(call));
        let mut replies = link.send_all(&mut pipe).await?.into_iter();
        next(&mut replies)?;
        next(&mut replies)
    }
}

/// Returns the next reply of a pipeline.
pub(super) fn next(replies: &mut impl Iterator<Item = Result<Value, LinkError>>) -> Result<Value, LinkError> {
    replies.next().unwrap_or_else(|| Err(LinkError::Unusable("incomplete reply from a script".to_owned())))
}
