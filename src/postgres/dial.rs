//! Opening a connection to Postgres: the hosts of an address one after the other, their addresses side by side; TLS; and
//! whether a pooler is between.

use std::error::Error;
use std::fmt;
use std::future::{Ready, poll_fn, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{Host, SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres::{Client, Config, Connection, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::wire::{Observed, Wire};
use crate::{tcp, tls};

/// What a client sends to ask whether the server speaks TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
const DEFAULT_PORT: u16 = 5432;

/// An open connection.
pub(super) struct Dialled {
    pub(super) client: Client,
    /// The task that moves its bytes; it ends with the client.
    pub(super) driver: tokio::task::AbortHandle,
    /// A pooler is between: the session may be another one with each transaction.
    pub(super) pooler: bool,
}

/// Why there is no connection, in words.
#[derive(Debug)]
pub(super) struct NotDialled(String);

impl NotDialled {
    /// For a server that offers no TLS. The words by which it says that the connection is not encrypted would mean that it
    /// requires TLS.
    fn without_tls_there(self) -> Self {
        Self(self.0.replace(", no encryption", "").replace(", SSL off", ""))
    }
}

impl fmt::Display for NotDialled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&explained(self.0.clone()))
    }
}

impl From<tokio_postgres::Error> for NotDialled {
    fn from(error: tokio_postgres::Error) -> Self {
        Self(words_of(&error))
    }
}

impl From<io::Error> for NotDialled {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

/// What is wrong with a certificate, and what to do, where that is what failed.
fn explained(said: String) -> String {
    match tls::explain(&said, &tls::POSTGRES) {
        Some(failure) => failure.append_to(&said),
        None => said,
    }
}

/// What an error says, and what to do about a certificate.
pub(super) fn said(error: &tokio_postgres::Error) -> String {
    explained(words_of(error))
}

/// tokio-postgres says only "db error": the server's own words are in the source.
fn words_of(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!("{} ({})", db.message(), db.code().code()),
        None => error.source().map_or_else(|| error.to_string(), ToString::to_string),
    }
}

/// Connects to the first host of `config` that answers and is what `target_session_attrs` asks for. With `tls` unless
/// the server or `sslmode` does without. `keeps_password`: it is not sent as it is over an unencrypted connection to
/// another machine. `pooler`: there is one between, whatever the server says.
///
/// # Errors
/// That of the last host.
pub(super) async fn open(
    config: &Config,
    tls: Option<ClientConfig>,
    timeout: Duration,
    keeps_password: bool,
    pooler: bool,
) -> Result<Dialled, NotDialled> {
    let mut tls = tls.map(MakeRustlsConnect::new);
    let mut error = NotDialled("the address names no host".to_owned());
    for n in 0..config.get_hosts().len().max(config.get_hostaddrs().len()) {
        let opening = open_host(config, n, tls.as_mut(), keeps_password, pooler);
        match tokio::time::timeout(timeout, opening).await {
            Ok(Ok(dialled)) => return Ok(dialled),
            Ok(Err(because)) => error = because,
            Err(_) => error = NotDialled("connection timed out".to_owned()),
        }
    }
    Err(error)
}

async fn open_host(
    config: &Config,
    n: usize,
    tls: Option<&mut MakeRustlsConnect>,
    keeps_password: bool,
    pooler: bool,
) -> Result<Dialled, NotDialled> {
    let port = config.get_ports().get(n).or_else(|| config.get_ports().first()).copied().unwrap_or(DEFAULT_PORT);
    let name = match config.get_hosts().get(n) {
        Some(Host::Tcp(name)) => Some(name.as_str()),
        Some(Host::Unix(folder)) => {
            let socket = UnixStream::connect(folder.join(format!(".s.PGSQL.{port}"))).await?;
            return greet(config, Plain(socket), Observed::default(), false, pooler).await;
        }
        None => None,
    };
    let address = config.get_hostaddrs().get(n).map(ToString::to_string);
    let to = address.as_deref().or(name).unwrap_or_default();
    let mut stream = tcp::connect(to, port).await?;
    let is_remote = stream.peer_addr().is_ok_and(|peer| !peer.ip().to_canonical().is_loopback());
    let unencrypted = Observed::new(keeps_password && is_remote);
    let Some(tls) = tls else { return greet(config, Plain(stream), unencrypted, false, pooler).await };
    stream.write_all(&SSL_REQUEST).await?;
    if stream.read_u8().await? == b'S' {
        let connect = MakeTlsConnect::<TcpStream>::make_tls_connect(tls, name.unwrap_or(to));
        let stream = connect.map_err(|e| NotDialled(e.to_string()))?.connect(stream).await?;
        greet(config, stream, Observed::default(), true, pooler).await
    } else if config.get_ssl_mode() == SslMode::Require {
        Err(NotDialled("server does not support TLS".to_owned()))
    } else {
        greet(config, Plain(stream), unencrypted, false, pooler).await.map_err(NotDialled::without_tls_there)
    }
}

/// Logs in over `stream` and looks who is there.
async fn greet<S: TlsStream + Unpin + Send + 'static>(
    config: &Config,
    stream: S,
    observed: Observed,
    encrypted: bool,
    pooler: bool,
) -> Result<Dialled, NotDialled> {
    let observed = Arc::new(observed);
    let stream = Wire::new(stream, Arc::clone(&observed));
    let (client, connection) = session_of(config, encrypted).connect_raw(stream, AsItIs).await?;
    let driver = tokio::spawn(drive(connection)).abort_handle();
    let rows = client.simple_query("SELECT pg_backend_pid(), current_setting('transaction_read_only')").await?;
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    let column = |n| row.and_then(|row| row.get(n)).unwrap_or_default();
    match (config.get_target_session_attrs(), column(1)) {
        (TargetSessionAttrs::ReadWrite, "on") => return Err(NotDialled("database does not allow writes".to_owned())),
        (TargetSessionAttrs::ReadOnly, "off") => return Err(NotDialled("database is not read only".to_owned())),
        _ => {}
    }
    let pooler = pooler || column(0) != observed.backend_pid().to_string();
    if pooler {
        let options = settings(config.get_options().unwrap_or_default());
        let (paths, others): (Vec<_>, Vec<_>) = options.into_iter().partition(|(name, _)| name == "search_path");
        if !others.is_empty() {
            let names: Vec<String> = others.into_iter().map(|(name, _)| name).collect();
            return Err(NotDialled(format!(
                "options in the address set {}, which a connection pooler in between does not keep: connect to Postgres \
                 itself, or set it for the role (ALTER ROLE ... SET)",
                names.join(", ")
            )));
        }
        observed.rewrite_for_pooler(paths.last().map(|(_, path)| quoted_identifiers(path)).as_deref());
    }
    Ok(Dialled { client, driver, pooler })
}

/// Who logs in where. `options` are left out: poolers refuse them at the greeting.
fn session_of(config: &Config, encrypted: bool) -> Config {
    let mut session = Config::new();
    config.get_user().map(|user| session.user(user));
    config.get_password().map(|password| session.password(password));
    config.get_dbname().map(|name| session.dbname(name));
    config.get_application_name().map(|name| session.application_name(name));
    session.channel_binding(config.get_channel_binding());
    if encrypted {
        // What is to be negotiated is negotiated.
        session.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
    } else {
        session.ssl_mode(SslMode::Disable);
    }
    session
}

/// Moves the connection's bytes until its client is gone or it breaks.
async fn drive<S, T>(mut connection: Connection<S, T>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin + TlsStream,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        if let Err(error) = message {
            tracing::debug!(error = said(&error), "a connection to Postgres ended");
            return;
        }
    }
}

/// The settings in a connection's `options`, as libpq words them: `-c name=value` or `--name=value`, with `\` before
/// spaces that belong to a value.
pub(super) fn settings(options: &str) -> Vec<(String, String)> {
    let mut words = vec![String::new()];
    let mut chars = options.chars();
    while let Some(char) = chars.next() {
        match (char, words.last_mut()) {
            ('\\', Some(word)) => word.extend(chars.next()),
            (char, _) if char.is_whitespace() => words.push(String::new()),
            (char, Some(word)) => word.push(char),
            (_, None) => {}
        }
    }
    let named = words.iter().map(String::as_str).filter(|word| !word.is_empty() && *word != "-c");
    let pair = |word: &str| {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
        word.split_once('=').map(|(name, value)| (name.trim().replace('-', "_"), value.to_owned()))
    };
    named.filter_map(pair).collect()
}

/// A search path with every name quoted: what is not is lower-cased, as the server does.
fn quoted_identifiers(path: &str) -> String {
    let mut names = vec![String::new()];
    let mut in_quotes = false;
    for char in path.chars() {
        match (char, names.last_mut()) {
            (',', _) if !in_quotes => names.push(String::new()),
            (char, Some(name)) => {
                in_quotes ^= char == '"';
                name.extend((in_quotes || !char.is_whitespace()).then_some(char));
            }
            (_, None) => {}
        }
    }
    let quoted = names.iter().map(|name| match name.starts_with('"') {
        true => name.clone(),
        false => format!("\"{}\"", name.to_lowercase()),
    });
    quoted.collect::<Vec<_>>().join(", ")
}

/// Takes a stream for encrypted as it is.
struct AsItIs;

impl<S: TlsStream + Unpin> TlsConnect<S> for AsItIs {
    type Stream = S;
    type Error = io::Error;
    type Future = Ready<io::Result<S>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(stream))
    }
}

/// A stream without TLS.
struct Plain<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Plain<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Plain<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, to)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Plain<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_libpq_reads_them() {
        let read = |options: &str| -> Vec<String> {
            settings(options).iter().map(|(name, value)| format!("{name}={value}")).collect()
        };
        assert_eq!(read("-c search_path=a,\"$user\",public"), ["search_path=a,\"$user\",public"]);
        assert_eq!(read("-c geqo=off  --statement-timeout=5min"), ["geqo=off", "statement_timeout=5min"]);
        assert_eq!(read(r"-csearch_path=a,\ b -c x.y=1"), ["search_path=a, b", "x.y=1"]);
        assert!(read("").is_empty());
    }

    #[test]
    fn a_search_path_is_quoted_name_by_name() {
        assert_eq!(quoted_identifiers("Own,\"$user\", public"), "\"own\", \"$user\", \"public\"");
        assert_eq!(quoted_identifiers("\"A, \"\"b\"\"\""), "\"A, \"\"b\"\"\"");
    }
}
