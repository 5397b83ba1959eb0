//! Proofs that a monitor with the same secret wrote a row.
//!
//! Without them, access to the database would suffice to become an admin.

use std::num::NonZeroU32;

use ring::hmac::{self, HMAC_SHA256, Key};
use ring::pbkdf2::{self, PBKDF2_HMAC_SHA256};

/// PBKDF2 iterations. The key is derived slowly, so that guessing the secret from a proof is slow.
const STRETCHED: NonZeroU32 = NonZeroU32::MIN.saturating_add(99_999);

/// Key of the proofs of one kind of rows.
#[derive(Clone)]
pub struct SealingKey(Key);

impl SealingKey {
    /// Derives the key from a secret; `purpose` separates the keys of one secret.
    #[must_use]
    pub fn derive(secret: &[u8], purpose: &str) -> Self {
        let mut stretched = [0; 32];
        let salt = format!("shepherd-monitor {purpose}");
        pbkdf2::derive(PBKDF2_HMAC_SHA256, STRETCHED, salt.as_bytes(), secret, &mut stretched);
        Self(Key::new(HMAC_SHA256, &stretched))
    }

    /// MAC over `text` that only a holder of the secret can create.
    #[must_use]
    pub fn seal(&self, text: &[u8]) -> Vec<u8> {
        hmac::sign(&self.0, text).as_ref().to_vec()
    }

    /// Whether `proof` is the MAC of `text`.
    #[must_use]
    pub fn is_sealed(&self, text: &[u8], proof: &[u8]) -> bool {
        hmac::verify(&self.0, text, proof).is_ok()
    }
}

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}
