//! The digest that a frame carries of every id before it: equal digests mean equal prefixes, whoever computed them.

use sha2::{Digest, Sha256};
use thiserror::Error;

/// Domain of the first link, so that a digest of this chain is never mistaken for another use of SHA-256.
const DOMAIN: &[u8] = b"tandem prefix digest 1";

/// A chain over token ids: `d₀ = H(domain, prompt ids)`, `dᵢ₊₁ = H(dᵢ, idᵢ)`, each SHA-256 cut to 16 bytes.
///
/// A chain rather than a hash of the whole, so that both sides extend it by one id in constant time and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixDigest([u8; 16]);

/// The bytes received are not a digest.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("a prefix digest has 16 bytes, not {found}")]
pub struct NotADigest {
    /// How many bytes there were.
    pub found: usize,
}

impl PrefixDigest {
    /// Digest of a prompt alone: what the frame with index 0 carries.
    #[must_use]
    pub fn of_prompt(ids: &[u32]) -> Self {
        let mut hash = Sha256::new_with_prefix(DOMAIN);
        for id in ids {
            hash.update(id.to_le_bytes());
        }
        Self::cut(hash)
    }

    /// Digest of the prefix that ends with `id`.
    #[must_use]
    pub fn then(self, id: u32) -> Self {
        let mut hash = Sha256::new_with_prefix(self.0);
        hash.update(id.to_le_bytes());
        Self::cut(hash)
    }

    /// Digest of the prefix that ends with `ids`.
    #[must_use]
    pub fn then_all(self, ids: &[u32]) -> Self {
        ids.iter().fold(self, |digest, &id| digest.then(id))
    }

    /// For the wire.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_vec()
    }

    fn cut(hash: Sha256) -> Self {
        let full = hash.finalize();
        let mut short = [0; 16];
        short.copy_from_slice(&full[..16]);
        Self(short)
    }
}

impl TryFrom<&[u8]> for PrefixDigest {
    type Error = NotADigest;

    fn try_from(bytes: &[u8]) -> Result<Self, NotADigest> {
        bytes.try_into().map(Self).map_err(|_| NotADigest { found: bytes.len() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_id_and_its_place_count() {
        let base = PrefixDigest::of_prompt(&[1, 2]);
        assert_ne!(base.then(3).then(4), base.then(4).then(3));
        assert_ne!(base.then(3), PrefixDigest::of_prompt(&[1, 2, 3]), "where the prompt ends counts too");
        assert_eq!(base.then_all(&[3, 4]), base.then(3).then(4));
    }

    #[test]
    fn survives_the_wire_and_refuses_other_lengths() {
        let digest = PrefixDigest::of_prompt(&[]);
        assert_eq!(PrefixDigest::try_from(digest.to_bytes().as_slice()), Ok(digest));
        assert_eq!(PrefixDigest::try_from([0u8; 15].as_slice()), Err(NotADigest { found: 15 }));
    }
}
