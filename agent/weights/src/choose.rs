//! Which piece is fetched next, and from whom. Pure: what is known goes in, a choice comes out.
//!
//! Upstream is to be asked once for a piece, however many hosts want it. So each piece has an owner among the hosts that
//! want the file, by rendezvous hashing: every host ranks all hosts for a piece by a hash of file, piece and host, and the
//! highest one fetches it from the source; the others wait for it there. Nobody agrees on anything: hosts that see the same
//! hosts see the same owners. When one is gone, only its pieces get another owner. Hosts that see each other only in part
//! may fetch a piece twice; that costs bytes and nothing else.

use std::collections::BTreeSet;

use tandem_sources::Sha256Hex;

use crate::Digest;

/// Pieces are taken from peers in about this much order: near the front, so that the whole is hashed from memory, but not
/// all hosts the same one at once.
const WINDOW: usize = 32;
/// A slow owner keeps a piece that it is expected to have begun before so many of our own would be done.
const WORTH: f64 = 2.0;
/// And before so many seconds.
const PATIENTLY: f64 = 1.0;

/// A host's rank for a piece. The highest owns it.
pub(crate) fn score(file: &Sha256Hex, piece: u32, host: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(file.bytes()).update(&piece.to_le_bytes()).update(host.as_bytes());
    u64::from_le_bytes(hasher.finalize().as_bytes()[..8].try_into().expect("eight of 32 bytes"))
}

/// A host's ranks for all pieces of a file.
pub(crate) fn scores(file: &Sha256Hex, pieces: u32, host: &str) -> Vec<u64> {
    (0..pieces).map(|piece| score(file, piece, host)).collect()
}

/// What is known of another host that answered for the file.
pub(crate) struct PeerView<'a> {
    /// By piece.
    pub(crate) scores: &'a [u64],
    /// By piece.
    pub(crate) have: &'a [Option<Digest>],
    /// What it is fetching from the source.
    pub(crate) claims: &'a BTreeSet<u32>,
    /// Of the link by which it is reached; lower is faster.
    pub(crate) tier: u32,
    /// Pieces that are being fetched from it by this host.
    pub(crate) load: usize,
    /// Pieces can be fetched from it now.
    pub(crate) gives: bool,
    /// It fetches pieces from the source, and showed a sign of life lately.
    pub(crate) takes: bool,
    /// How long one of its own pieces took it lately, all its connections together; 0 as long as nobody knows.
    pub(crate) seconds_per_piece: f64,
}

/// What is known here.
pub(crate) struct View<'a> {
    /// This host's ranks, by piece.
    pub(crate) scores: &'a [u64],
    /// Not here, not being fetched, and not resting after a failure.
    pub(crate) missing: &'a BTreeSet<u32>,
    /// How long one piece takes this host from the source on one connection.
    pub(crate) seconds_per_piece: f64,
    pub(crate) peers: &'a [PeerView<'a>],
}

impl View<'_> {
    /// The piece that this host should fetch from the source now, if there is one.
    pub(crate) fn next_of_source(&self) -> Option<u32> {
        let free = || self.missing.iter().copied().filter(|piece| !self.comes_elsewhere(*piece));
        free().find(|piece| self.owner(*piece).is_none()).or_else(|| self.next_of_the_slowest(free()))
    }

    /// The piece that this host should fetch from a peer now, with that peer's index.
    pub(crate) fn next_of_peer(&self) -> Option<(u32, usize)> {
        let offered = |piece: &u32| self.peers.iter().any(|peer| peer.offers(*piece));
        let near = self.missing.iter().copied().filter(offered).take(WINDOW);
        let piece = near.min_by_key(|piece| self.scores[*piece as usize])?;
        let peers = self.peers.iter().enumerate().filter(|(_, peer)| peer.offers(piece));
        let best = peers.min_by_key(|(_, peer)| (peer.tier, peer.load, peer.scores[piece as usize]));
        best.map(|(peer, _)| (piece, peer))
    }

    fn comes_elsewhere(&self, piece: u32) -> bool {
        self.peers.iter().any(|peer| peer.offers(piece) || (peer.takes && peer.claims.contains(&piece)))
    }

    /// Which peer fetches a piece from the source; `None` is this host.
    fn owner(&self, piece: u32) -> Option<usize> {
        let others = self.peers.iter().enumerate().filter(|(_, peer)| peer.takes);
        let (highest, peer) = others.max_by_key(|(_, peer)| peer.scores[piece as usize])?;
        (peer.scores[piece as usize] > self.scores[piece as usize]).then_some(highest)
    }

    /// With nothing left of its own, a host relieves the one that would be busy longest, of the piece it would come to last.
    fn next_of_the_slowest(&self, free: impl Iterator<Item = u32>) -> Option<u32> {
        let mut left = vec![(0_u32, 0_u32); self.peers.len()];
        for piece in free {
            if let Some(owner) = self.owner(piece) {
                left[owner] = (left[owner].0 + 1, piece);
            }
        }
        let seconds = |(peer, (pieces, _)): &(usize, (u32, u32))| {
            f64::from(*pieces) * self.peers[*peer].seconds_per_piece
        };
        let slowest = left.into_iter().enumerate().max_by(|a, b| seconds(a).total_cmp(&seconds(b)))?;
        let worth = seconds(&slowest) > WORTH * self.seconds_per_piece + PATIENTLY;
        worth.then_some(slowest.1.1)
    }
}

impl PeerView<'_> {
    fn offers(&self, piece: u32) -> bool {
        self.gives && self.have[piece as usize].is_some()
    }
}
