//! The join token: a secret to be spent once, and the hash of the authority it may be shown to.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};
use thiserror::Error;

const PREFIX: &str = "tandem1";

/// SHA-256 of an authority's certificate in DER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Not 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a fingerprint of an authority is 64 hexadecimal digits")]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let mut digest = [0; 32];
        hex::decode_to_slice(text, &mut digest).map_err(|_| BadFingerprint)?;
        Ok(Self(digest))
    }
}

/// `tandem1.ID.SECRET.CA`: 8, 32 and 64 hexadecimal digits. Its `Debug` hides the secret; its `Display` is the token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: [u8; 4],
    secret: [u8; 16],
    ca: Fingerprint,
}

impl JoinToken {
    /// A fresh token for the authority with this fingerprint.
    #[must_use]
    pub fn generate(ca: Fingerprint) -> Self {
        Self { id: rand::random(), secret: rand::random(), ca }
    }

    /// Under which the operator remembers it.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(self.id)
    }

    /// What the operator stores instead of the secret, and compares on use.
    #[must_use]
    pub fn secret_hash(&self) -> String {
        hex::encode(Sha256::digest(self.secret))
    }

    /// The authority that an operator must show before the token is sent to it.
    #[must_use]
    pub fn ca(&self) -> Fingerprint {
        self.ca
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}.{}", self.id(), hex::encode(self.secret), self.ca)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({PREFIX}.{}.…)", self.id())
    }
}

/// The text is no join token. It does not repeat the text, which may hold a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "this is not a join token (tandem1.ID.SECRET.CA): make one with `tandem join-token`, and copy it whole"
)]
pub struct BadToken;

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let mut parts = text.trim().split('.');
        if parts.next() != Some(PREFIX) {
            return Err(BadToken);
        }
        let (Some(id), Some(secret), Some(ca), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(BadToken);
        };
        let mut token = Self { id: [0; 4], secret: [0; 16], ca: Fingerprint([0; 32]) };
        hex::decode_to_slice(id, &mut token.id).map_err(|_| BadToken)?;
        hex::decode_to_slice(secret, &mut token.secret).map_err(|_| BadToken)?;
        hex::decode_to_slice(ca, &mut token.ca.0).map_err(|_| BadToken)?;
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_keeps_its_secret_out_of_debug() {
        let token = JoinToken::generate(Fingerprint::of(b"ca"));
        assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        assert_eq!(token.ca().to_string().parse(), Ok(token.ca()));
        assert_eq!("00".parse::<Fingerprint>(), Err(BadFingerprint));
        let secret = token.to_string().split('.').nth(2).unwrap().to_owned();
        assert!(!format!("{token:?}").contains(&secret));
    }

    #[test]
    fn half_a_token_is_refused_without_being_repeated() {
        let whole = JoinToken::generate(Fingerprint::of(b"ca")).to_string();
        for cut in [0, 7, 16, 49, whole.len() - 1] {
            let error = whole[..cut].parse::<JoinToken>().unwrap_err();
            assert!(cut < 8 || !error.to_string().contains(&whole[..cut]));
        }
    }
}
