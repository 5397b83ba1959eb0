//! Limits names to a length and character set that Postgres can store and index.

use std::borrow::Cow;

use uuid::Uuid;

/// Longest name that is stored unchanged, bytes. A Postgres index row holds 2,704 bytes.
const LONGEST: usize = 2000;
/// Length of the readable prefix of a shortened name, bytes.
const KEPT: usize = 200;

/// Returns the name to store for `name`. A long name becomes its prefix and a hash of the whole; NUL, which Postgres
/// text cannot contain, is replaced. The function is idempotent.
#[must_use]
pub fn stored_name(name: &str) -> Cow<'_, str> {
    let name = without_nul(name);
    if name.len() <= LONGEST {
        return name;
    }
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    Cow::Owned(format!("{}…{}", beginning(&name, KEPT), hash.simple()))
}

/// Returns `text` without NUL, truncated with an ellipsis to at most `most` bytes.
#[must_use]
pub fn bounded_text(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return without_nul(text);
    }
    Cow::Owned(format!("{}…", without_nul(beginning(text, most))))
}

fn without_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

fn beginning(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_names_are_shortened_and_names_stay_unique() {
        for name in ["arax", &"x".repeat(LONGEST), ""] {
            assert_eq!(stored_name(name), name);
        }
        let (a, b) = (format!("xlen:{}a", "é".repeat(3000)), format!("xlen:{}b", "é".repeat(3000)));
        let (stored_a, stored_b) = (stored_name(&a).into_owned(), stored_name(&b).into_owned());
        assert!(stored_a.starts_with("xlen:éé") && stored_a.len() < 300, "{stored_a}");
        assert_ne!(stored_a, stored_b);
        assert_eq!(stored_name(&stored_a), stored_a);
    }

    #[test]
    fn nul_is_replaced_before_measuring_the_length() {
        assert_eq!(stored_name("a\0b"), "a\u{fffd}b");
        assert!(stored_name(&"\0".repeat(1999)).len() < 300);
        assert_eq!(bounded_text("a\0bc", 2), "a\u{fffd}…");
        assert_eq!(bounded_text("ab", 2), "ab");
    }
}
