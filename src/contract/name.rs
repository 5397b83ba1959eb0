//! Names of streams, groups and consumers: bytes in Redis, escaped text in the UI.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A stream, group or consumer name, exactly as in Redis.
///
/// Redis names are bytes and need not be UTF-8. `Display` and JSON escape invalid bytes as `\xNN`. No two names have the same
/// `Display`: it escapes the backslash of a literal `\xNN` as `\x5c`, and control characters beyond ASCII byte by byte.
/// Cloning is cheap. Ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

impl Name {
    /// The name as bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The name as text; invalid UTF-8 is escaped as `\xNN`.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nearly all names; each poll formats some for every stream.
        if let Some(plain) = ascii_without_backslash(&self.0) {
            return f.write_str(plain);
        }
        for chunk in self.0.utf8_chunks() {
            let mut rest = chunk.valid();
            while let Some(at) = rest.find(|c| c == '\\' || is_c1(c)) {
                let (plain, after) = rest.split_at(at);
                f.write_str(plain)?;
                let mut chars = after.chars();
                let odd = chars.next().unwrap_or_default();
                rest = chars.as_str();
                let hex = |text: &str| text.len() >= 2 && text.bytes().take(2).all(|byte| byte.is_ascii_hexdigit());
                if is_c1(odd) {
                    for byte in odd.encode_utf8(&mut [0; 4]).bytes() {
                        write!(f, "\\x{byte:02x}")?;
                    }
                } else if rest.strip_prefix('x').is_some_and(hex) {
                    f.write_str("\\x5c")?;
                } else {
                    f.write_str("\\")?;
                }
            }
            f.write_str(rest)?;
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Returns `name` as text if no part of it is escaped.
fn ascii_without_backslash(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name).ok().filter(|_| name.is_ascii() && !name.contains(&b'\\'))
}

/// Whether a control character is one of those that two bytes stand for in UTF-8.
fn is_c1(character: char) -> bool {
    ('\u{80}'..='\u{9f}').contains(&character)
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => serializer.serialize_str(text),
            Err(_) => serializer.collect_str(self),
        }
    }
}

#[cfg(feature = "monitor")]
impl schemars::JsonSchema for Name {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string"})
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<Vec<u8>> for Name {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().into())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self(text.into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::Name;

    #[test]
    fn invalid_utf8_is_escaped_for_display_and_preserved() {
        let name = Name::from(&b"caf\xe9\xff"[..]);
        assert_eq!(name.to_text(), "caf\\xe9\\xff");
        assert_eq!(name.as_bytes(), b"caf\xe9\xff");
        assert_eq!(serde_json::to_string(&name).unwrap(), r#""caf\\xe9\\xff""#);
    }

    #[test]
    fn no_two_names_are_shown_alike() {
        let names: [&[u8]; 10] = [
            b"\xe9",
            br"\xe9",
            br"\x5cxe9",
            br"\\xe9",
            br"\x",
            br"\xe",
            br"\xe9\xe9",
            b"\xe9\\xe9",
            b"\x85",
            "\u{85}".as_bytes(),
        ];
        let mut shown: Vec<String> = names.iter().map(|name| Name::from(*name).to_text()).collect();
        assert_eq!(shown[0], r"\xe9");
        assert_eq!((shown[1].as_str(), shown[4].as_str()), (r"\x5cxe9", r"\x"));
        shown.sort();
        shown.dedup();
        assert_eq!(shown.len(), names.len(), "{shown:?}");
        assert_eq!(serde_json::to_string(&Name::from(r"\xe9")).unwrap(), r#""\\xe9""#, "as a heartbeat has it");
    }
}
