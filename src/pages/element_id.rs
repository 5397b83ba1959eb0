//! Element IDs derived from arbitrary names.

use uuid::Uuid;

use crate::contract::Name;

/// Longest name that is used unchanged.
const PLAIN_MAX: usize = 48;

/// Returns the part of an ID that represents `name`: the name itself if it is short and plain, otherwise a dash and a
/// hash. Plain names never start with a dash, so IDs do not collide.
pub(super) fn key(name: &Name) -> String {
    plain(name.as_bytes()).map_or_else(|| format!("-{}", Uuid::new_v5(&NAMES, name.as_bytes()).simple()), str::to_owned)
}

/// UUID namespace of hashed names.
const NAMES: Uuid = Uuid::from_u128(0x8f1d_3a52_6c0b_4f7e_9a44_21d7_55e0_c3b6);

fn plain(bytes: &[u8]) -> Option<&str> {
    let begins_well = bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    let safe = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    if begins_well && bytes.len() <= PLAIN_MAX && bytes.iter().all(safe) {
        std::str::from_utf8(bytes).ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_names_stay_readable() {
        assert_eq!(key(&"aragorn.lookup".into()), "aragorn.lookup");
    }

    proptest! {
        #[test]
        fn ids_are_unique_and_contain_only_plain_characters(
            names in proptest::collection::btree_set(
                prop_oneof![
                    proptest::collection::vec(any::<u8>(), 0..80),
                    "[-a-c.]{0,6}".prop_map(String::into_bytes),
                    "-[0-9a-f]{32}".prop_map(String::into_bytes),
                ],
                0..60,
            )
        ) {
            let ids: std::collections::BTreeSet<String> = names.iter().map(|n| key(&Name::from(n.clone()))).collect();
            prop_assert_eq!(ids.len(), names.len());
            for id in ids {
                prop_assert!(id.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) && id.len() <= 50);
            }
        }
    }
}
