//! Names as they are stored: bounded, so that a long one fits into an index row of Postgres, and as text
//! that Postgres can hold.

use std::borrow::Cow;

use uuid::Uuid;

/// Names up to this length (bytes) are stored as they are. A row of Postgres' indexes holds 2,704 bytes.
const LONGEST: usize = 2000;
/// So much of a longer name is kept for people (bytes).
const KEPT: usize = 200;

/// The name under which `name` is stored. A long one keeps its beginning, followed by a hash of the whole;
/// a NUL, which no text in Postgres holds, is replaced. Applying it twice changes nothing.
#[must_use]
pub fn stored_name(name: &str) -> Cow<'_, str> {
    let name = without_nul(name);
    if name.len() <= LONGEST {
        return name;
    }
    let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
    Cow::Owned(format!("{}…{}", beginning(&name, KEPT), hash.simple()))
}

/// `text` if it has at most `most` bytes, else its beginning and an ellipsis, without NUL.
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
    fn only_what_does_not_fit_is_shortened_and_names_stay_different() {
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
    fn a_nul_is_replaced_before_the_length_counts() {
        assert_eq!(stored_name("a\0b"), "a\u{fffd}b");
        assert!(stored_name(&"\0".repeat(1999)).len() < 300);
        assert_eq!(bounded_text("a\0bc", 2), "a\u{fffd}…");
        assert_eq!(bounded_text("ab", 2), "ab");
    }
}
