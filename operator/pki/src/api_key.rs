//! The API key: a text that a client shows with each request, and the hash that everybody else keeps.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// Digits after the prefix.
const DIGITS: usize = 40;

/// `tdm-` and 40 hexadecimal digits. Its `Debug` hides it; its `Display` is the key.
///
/// It has 160 random bits: a plain hash of it can't be searched for, so that it needs no salt and no slow hash, and can be looked
/// up with each request.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// What every key begins with: other programs' keys do not.
    pub const PREFIX: &'static str = "tdm-";

    /// A fresh key.
    #[must_use]
    pub fn generate() -> Self {
        let digits: [u8; DIGITS / 2] = rand::random();
        Self(format!("{}{}", Self::PREFIX, hex::encode(digits)))
    }

    /// SHA-256 of the whole text.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        Self::digest_of(&self.0)
    }

    /// SHA-256 of what somebody shows as a key.
    #[must_use]
    pub fn digest_of(text: &str) -> [u8; 32] {
        Sha256::digest(text).into()
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey({}…)", Self::PREFIX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_and_debug_hides_them() {
        let (one, other) = (ApiKey::generate(), ApiKey::generate());
        assert_ne!(one, other);
        assert_eq!(one.to_string().len(), ApiKey::PREFIX.len() + DIGITS);
        assert_eq!(one.digest(), ApiKey::digest_of(&one.to_string()));
        assert!(!format!("{one:?}").contains(&one.to_string()[4..]));
    }
}
