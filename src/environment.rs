//! Settings from the environment, parsed in the same way by the monitor and by workers: secrets in files, ports set
//! by Kubernetes, hosts with a port, and unknown variables.
//!
//! Values come from a lookup function, so that tests and programs can replace the environment.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::Path;

/// Variable with the directory of a service's systemd credentials.
pub const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Maximum size of a secret file, bytes. A larger file is not a secret, but probably a log.
const LARGEST_SECRET: u64 = 4096;

/// A setting with an invalid value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct BadSetting {
    /// Name of the setting.
    pub name: &'static str,
    /// The value; hidden for secrets.
    pub value: String,
    /// Description of valid values.
    pub expected: String,
}

impl BadSetting {
    /// For a setting whose value may be shown.
    pub fn new(name: &'static str, value: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { name, value: value.into(), expected: expected.into() }
    }

    /// For a setting whose value is hidden.
    pub fn secret(name: &'static str, expected: impl Into<String>) -> Self {
        Self::new(name, "(secret)", expected)
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {:?}: expected {}", self.name, self.value, self.expected)
    }
}

/// Value of a secret, trimmed: from its variable, else from the file in `file` (its variable with `_FILE`), else from
/// a systemd credential with the name of the variable.
///
/// # Errors
/// If the file cannot be used, or both variables are set.
pub fn secret(
    name: &'static str,
    file: &'static str,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Option<String>, BadSetting> {
    let set = |name: &str| lookup(name).filter(|text| !text.trim().is_empty());
    match (set(name), set(file)) {
        (Some(_), Some(path)) => Err(BadSetting::new(file, path, format!("nothing, since {name} is set"))),
        (Some(value), None) => Ok(Some(trimmed(name, &value).to_owned())),
        (None, Some(path)) => {
            let path = path.trim();
            let text = read_secret(Path::new(path)).map_err(|why| BadSetting::new(file, path, why))?;
            Ok(Some(trimmed(name, &text).to_owned()))
        }
        (None, None) => {
            let Some(directory) = set(CREDENTIALS_DIRECTORY) else { return Ok(None) };
            let path = Path::new(directory.trim()).join(name);
            if !path.exists() {
                return Ok(None);
            }
            let shown = path.display().to_string();
            let text = read_secret(&path).map_err(|why| BadSetting::new(CREDENTIALS_DIRECTORY, shown, why))?;
            Ok(Some(trimmed(name, &text).to_owned()))
        }
    }
}

/// Reads a regular file of at most `largest` bytes. Opening a FIFO would wait for its writer, and a device may never end.
///
/// # Errors
/// The expected file, if this is not one.
pub fn read_file(path: &Path, largest: u64) -> Result<Vec<u8>, String> {
    let cannot = |error: std::io::Error| format!("a readable file ({error})");
    let file = std::fs::metadata(path).map_err(cannot)?;
    if !file.is_file() {
        return Err("a regular file (this is not a regular file)".to_owned());
    }
    if file.len() > largest {
        return Err(format!("a file of at most {largest} bytes"));
    }
    std::fs::read(path).map_err(cannot)
}

fn read_secret(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(read_file(path, LARGEST_SECRET)?).map_err(|_| "UTF-8 text".to_owned())?;
    // Editors on Windows write a byte order mark.
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() { Err("a file that is not empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Removes the trailing line break that editors and `echo` add. Passwords keep their spaces.
#[must_use]
pub fn trimmed<'a>(name: &str, value: &'a str) -> &'a str {
    if name.ends_with("_PASSWORD") { value.trim_end_matches(['\r', '\n']) } else { value.trim() }
}

/// What an address should be instead, if it is enclosed in quotes, which `--env-file` and systemd hand on, or begins with
/// the byte order mark of an editor.
#[must_use]
pub fn enclosed(address: &str) -> Option<&'static str> {
    if address.starts_with('\u{feff}') {
        return Some("an address without a byte order mark at its start");
    }
    let quoted = ['"', '\''].into_iter().any(|quote| address.starts_with(quote) && address.ends_with(quote));
    quoted.then_some("an address without quotes around it")
}

/// A host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Name or address; IPv6 without brackets.
    pub host: String,
    /// The port, if specified.
    pub port: Option<u16>,
}

/// Parses `host`, `host:port`, an IPv6 address or `[address]:port`. `url` is the setting for a complete URL, which
/// the error suggests.
///
/// # Errors
/// If it is none of these.
pub fn host_and_port(name: &'static str, text: &str, url: &str) -> Result<HostPort, BadSetting> {
    let bad = |expected: String| BadSetting::new(name, text, expected);
    if text.contains("://") || text.contains('@') {
        return Err(BadSetting::secret(name, format!("a host name or an IP address; a whole URL belongs in {url}")));
    }
    if !text.is_ascii() {
        return Err(bad("an ASCII host name (the xn-- form of a name with other letters)".to_owned()));
    }
    let expected = || "a host name or an IP address, with or without :port".to_owned();
    let (host, port) = if text.parse::<Ipv6Addr>().is_ok() {
        (text, None)
    } else if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(|| bad(expected()))?;
        if host.parse::<Ipv6Addr>().is_err() {
            return Err(bad("an IPv6 address in the brackets".to_owned()));
        }
        match rest.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if rest.is_empty() => (host, None),
            None => return Err(bad(expected())),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let is_address = host.parse::<Ipv6Addr>().is_ok();
    let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if host.is_empty() || !(is_address || host.chars().all(good)) {
        return Err(bad(expected()));
    }
    let port = match port {
        Some(port) => Some(number(port).ok_or_else(|| bad("a port from 1 to 65535 after the colon".to_owned()))?),
        None => None,
    };
    Ok(HostPort { host: host.to_owned(), port })
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// A parsed port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GivenPort {
    /// A number.
    Set(u16),
    /// Port of a Kubernetes Service, with the variable from which it was read.
    OfService(u16, String),
}

/// Parses a port, or the `tcp://10.0.0.1:6379` that Kubernetes sets for a Service (`REDIS_PORT` for a Service called
/// `redis`).
///
/// # Errors
/// If it is neither.
pub fn port(name: &'static str, text: &str) -> Result<GivenPort, BadSetting> {
    if let Some(port) = number(text) {
        return Ok(GivenPort::Set(port));
    }
    match service_link(text) {
        Some(port) => Ok(GivenPort::OfService(port, service_warning(name, text))),
        None => Err(BadSetting::new(name, text, "a port from 1 to 65535")),
    }
}

fn service_warning(name: &str, text: &str) -> String {
    let service = name.strip_suffix("_PORT").unwrap_or(name).to_lowercase().replace('_', "-");
    format!(
        "{name} is {text:?}: Kubernetes sets it for the Service {service} (service links). Set {name} to a number, or \
         enableServiceLinks: false in the pod"
    )
}

/// Port in a service link of Kubernetes; `None` for other text.
#[must_use]
pub fn service_link(text: &str) -> Option<u16> {
    let (scheme, rest) = text.split_once("://")?;
    let (_, port) = rest.rsplit_once(':')?;
    ["tcp", "udp", "sctp"].contains(&scheme).then(|| number(port))?
}

/// Port to connect to: from the host setting, from the port setting, or `default`. A warning about service links is
/// added to `warnings`.
///
/// # Errors
/// If both settings are set to different ports.
pub fn chosen_port(
    (host_name, host_text): (&'static str, &str),
    host_port: Option<u16>,
    port_name: &'static str,
    given: Option<GivenPort>,
    default: u16,
    warnings: &mut Vec<String>,
) -> Result<u16, BadSetting> {
    match (host_port, given) {
        (Some(port), Some(GivenPort::Set(other))) if port != other => Err(BadSetting::new(
            host_name,
            host_text,
            format!("a host without a port, or the same port in {port_name}, which is {other}"),
        )),
        (Some(port), _) | (None, Some(GivenPort::Set(port))) => Ok(port),
        (None, Some(GivenPort::OfService(port, warning))) => {
            warnings.push(format!("{warning}. Port {port} is used"));
            Ok(port)
        }
        (None, None) => Ok(default),
    }
}

/// Percent-encodes all characters that are special in URLs.
#[must_use]
pub fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Percent-decodes; `None` if it is malformed or not UTF-8.
#[must_use]
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(hex, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Variables of the Postgres image, which often share a file with settings.
const OF_SERVER_IMAGES: [&str; 3] = ["POSTGRES_INITDB_ARGS", "POSTGRES_INITDB_WALDIR", "POSTGRES_HOST_AUTH_METHOD"];

/// Variables of libpq, which this program does not use, and the settings that do the same.
const OF_LIBPQ: [(&str, &str); 7] = [
    ("PGHOST", "POSTGRES_HOST"),
    ("PGPORT", "POSTGRES_PORT"),
    ("PGUSER", "POSTGRES_USER"),
    ("PGPASSWORD", "POSTGRES_PASSWORD"),
    ("PGDATABASE", "POSTGRES_DB"),
    ("PGSSLMODE", "POSTGRES_SSLMODE"),
    ("PGSSLROOTCERT", "POSTGRES_SSLROOTCERT"),
];

/// Warnings about variables that resemble settings but are unknown: with one of `prefixes`, or up to two letters
/// different from a setting. Variables that Kubernetes sets for Services are ignored.
#[must_use]
pub fn unknown_variables(
    variables: impl Iterator<Item = (String, String)>,
    prefixes: &[&str],
    known: &[&str],
) -> Vec<String> {
    let mut warnings: Vec<String> = variables
        .filter(|(name, value)| {
            !known.contains(&name.as_str())
                && !OF_SERVER_IMAGES.contains(&name.as_str())
                && !set_by_kubernetes(name, value)
        })
        .filter_map(|(name, _)| {
            if let Some((_, setting)) = OF_LIBPQ.iter().find(|(of_libpq, _)| *of_libpq == name) {
                return Some(format!("{name} is not a setting and is ignored; set {setting} or DATABASE_URL"));
            }
            let closest = known.iter().map(|known| (distance(&name, known), *known)).min();
            let suggestion = closest.filter(|(changes, known)| *changes <= 3 && known.len() > 3 * changes);
            let has_prefix = prefixes.iter().any(|prefix| name.starts_with(prefix));
            let nearly = closest.is_some_and(|(changes, known)| changes <= 2 && known.len() >= 10);
            if !has_prefix && !nearly {
                return None;
            }
            let hint = suggestion.map(|(_, known)| format!("; did you mean {known}?")).unwrap_or_default();
            Some(format!("{name} is not a setting and is ignored{hint}"))
        })
        .collect();
    warnings.sort();
    warnings
}

/// Whether Kubernetes sets this variable for a Service: `X_SERVICE_HOST`, `X_PORT=tcp://…`, `X_PORT_6379_TCP_ADDR`,
/// ...
fn set_by_kubernetes(name: &str, value: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.ends_with("_SERVICE_PORT") || name.contains("_SERVICE_PORT_") {
        return true;
    }
    if name.ends_with("_PORT") && service_link(value).is_some() {
        return true;
    }
    // Such as `REDIS_PORT_6379_TCP_PORT`: a number after the first `_PORT_`.
    let Some((_, rest)) = name.split_once("_PORT_") else { return false };
    rest.split('_').next().is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, above) in b.iter().zip(row.iter().skip(1)) {
            let changed = diagonal + usize::from(from != *to);
            diagonal = *above;
            left = changed.min(above + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    fn password(pairs: &[(&str, &str)]) -> Result<Option<String>, String> {
        secret("REDIS_PASSWORD", "REDIS_PASSWORD_FILE", lookup(pairs)).map_err(|bad| bad.to_string())
    }

    #[test]
    fn secrets_are_read_from_variables_files_and_credentials_without_trailing_line_break() {
        let folder = std::env::temp_dir().join(format!("environment-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("REDIS_PASSWORD");
        std::fs::write(&file, " s3cret \r\n").unwrap();
        let (file, folder_text) = (file.to_str().unwrap(), folder.to_str().unwrap());
        assert_eq!(password(&[]), Ok(None));
        assert_eq!(password(&[("REDIS_PASSWORD", " s3cret \n")]).unwrap().unwrap(), " s3cret ");
        assert_eq!(password(&[("REDIS_PASSWORD_FILE", file)]).unwrap().unwrap(), " s3cret ");
        assert_eq!(password(&[("CREDENTIALS_DIRECTORY", folder_text)]).unwrap().unwrap(), " s3cret ");
        // The credentials directory exists, but not this credential.
        assert_eq!(
            secret("SMTP_PASSWORD", "SMTP_PASSWORD_FILE", lookup(&[("CREDENTIALS_DIRECTORY", folder_text)])),
            Ok(None)
        );
        // An empty variable counts as unset.
        assert_eq!(password(&[("REDIS_PASSWORD", ""), ("REDIS_PASSWORD_FILE", file)]).unwrap().unwrap(), " s3cret ");
        let both = password(&[("REDIS_PASSWORD", "x"), ("REDIS_PASSWORD_FILE", file)]).unwrap_err();
        assert!(both.contains("REDIS_PASSWORD_FILE") && both.contains("since REDIS_PASSWORD is set"), "{both}");
        std::fs::write(folder.join("empty"), "\n").unwrap();
        let empty = folder.join("empty");
        let empty = password(&[("REDIS_PASSWORD_FILE", empty.to_str().unwrap())]).unwrap_err();
        assert!(empty.contains("REDIS_PASSWORD_FILE") && empty.contains("not empty"), "{empty}");
        let missing = password(&[("REDIS_PASSWORD_FILE", "/no/such/file")]).unwrap_err();
        assert!(missing.contains("/no/such/file") && missing.contains("No such file"), "{missing}");
        assert!(password(&[("REDIS_PASSWORD_FILE", folder_text)]).is_err(), "a directory");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_host_may_include_only_a_port() {
        let read = |text: &str| host_and_port("REDIS_HOST", text, "REDIS_URL").map(|at| (at.host, at.port));
        for (text, host, port) in [
            ("redis", "redis", None),
            ("redis:6379", "redis", Some(6379)),
            ("my_redis.ns.svc", "my_redis.ns.svc", None),
            ("10.0.0.1:7", "10.0.0.1", Some(7)),
            ("::1", "::1", None),
            ("[::1]", "::1", None),
            ("[fe80::1]:6380", "fe80::1", Some(6380)),
        ] {
            assert_eq!(read(text), Ok((host.to_owned(), port)), "{text}");
        }
        for text in
            ["redis:", "redis:0", "redis:99999", ":6379", "a b", "a/b", "[::1", "[x]:1", "[::1]x", "a:b:1", "müller"]
        {
            let said = read(text).unwrap_err().to_string();
            assert!(said.starts_with("REDIS_HOST is "), "{text}: {said}");
        }
        let url = read("redis://:secret@host").unwrap_err().to_string();
        assert!(url.contains("REDIS_URL") && !url.contains(":secret"), "{url}");
    }

    #[test]
    fn a_service_link_is_used_with_a_warning_unless_a_port_is_set() {
        let link = || Some(port("REDIS_PORT", "tcp://10.0.0.1:6380").unwrap());
        let mut warnings = Vec::new();
        let mut chosen =
            |host_port, given| chosen_port(("REDIS_HOST", "h:1"), host_port, "REDIS_PORT", given, 6379, &mut warnings);
        assert_eq!(chosen(None, None), Ok(6379));
        assert_eq!(chosen(Some(1), link()), Ok(1));
        assert_eq!(chosen(None, link()), Ok(6380));
        assert_eq!(chosen(Some(1), Some(GivenPort::Set(1))), Ok(1));
        let differ = chosen(Some(1), Some(GivenPort::Set(2))).unwrap_err().to_string();
        assert!(differ.contains("REDIS_HOST") && differ.contains("REDIS_PORT, which is 2"), "{differ}");
        assert_eq!(warnings.len(), 1);
        for part in ["REDIS_PORT", "Service redis", "enableServiceLinks", "Port 6380 is used"] {
            assert!(warnings[0].contains(part), "{warnings:?}");
        }
        for text in ["tcp://10.0.0.1", "http://10.0.0.1:80", "tcp://10.0.0.1:0", "x", "0", "99999"] {
            assert!(port("REDIS_PORT", text).is_err(), "{text}");
        }
    }

    #[test]
    fn misspelled_settings_are_reported_and_foreign_variables_are_not() {
        let known = ["MONITOR_PORT", "MONITOR_POLL_INTERVAL_SEC", "REDIS_PORT", "REDIS_PASSWORD", "DATABASE_URL"];
        let warnings = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            unknown_variables(pairs, &["MONITOR_", "REDIS_"], &known)
        };
        assert_eq!(
            warnings(&[
                ("MONITOR_POL_INTERVAL_SEC", "1"),
                ("REDIS_TIMEOUT_ABC", "1"),
                ("DATABSE_URL", "x"),
                ("PGHOST", "h")
            ]),
            [
                "DATABSE_URL is not a setting and is ignored; did you mean DATABASE_URL?",
                "MONITOR_POL_INTERVAL_SEC is not a setting and is ignored; did you mean MONITOR_POLL_INTERVAL_SEC?",
                "PGHOST is not a setting and is ignored; set POSTGRES_HOST or DATABASE_URL",
                "REDIS_TIMEOUT_ABC is not a setting and is ignored",
            ]
        );
        assert!(
            warnings(&[
                ("REDIS_PORT", "tcp://10.0.0.1:6379"),
                ("REDIS_SERVICE_HOST", "10.0.0.1"),
                ("REDIS_SERVICE_PORT", "6379"),
                ("REDIS_SERVICE_PORT_REDIS", "6379"),
                ("REDIS_PORT_6379_TCP", "tcp://10.0.0.1:6379"),
                ("REDIS_PORT_6379_TCP_ADDR", "10.0.0.1"),
                ("REDIS_PORT_6379_TCP_PORT", "6379"),
                ("REDIS_MASTER_PORT", "tcp://10.0.0.2:6379"),
                ("REDIS_PASSWORD", "x"),
                ("PATH", "/bin"),
                ("HOME", "/root"),
            ])
            .is_empty()
        );
    }

    #[test]
    fn percent_encoding_round_trips() {
        let text = "p@ss/w:r d?#ä%";
        assert_eq!(percent_decoded(&percent_encoded(text)).as_deref(), Some(text));
        for malformed in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(percent_decoded(malformed), None, "{malformed}");
        }
    }
}
