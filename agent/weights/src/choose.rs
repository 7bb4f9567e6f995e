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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const FILE: [u8; 32] = [7; 32];

    /// A host of a swarm in which everybody hears everything at once.
    struct Simulated {
        scores: Vec<u64>,
        have: Vec<Option<Digest>>,
        claims: BTreeSet<u32>,
        /// Whether it lives.
        lives: bool,
    }

    struct Swarm {
        hosts: Vec<Simulated>,
        pieces: u32,
        /// How often each piece was fetched from the source.
        upstream: BTreeMap<u32, u32>,
    }

    impl Swarm {
        fn new(hosts: usize, pieces: u32) -> Self {
            let host = |n: usize| Simulated {
                scores: scores(&Sha256Hex::from(FILE), pieces, &format!("host-{n}")),
                have: vec![None; pieces as usize],
                claims: BTreeSet::new(),
                lives: true,
            };
            Self { hosts: (0..hosts).map(host).collect(), pieces, upstream: BTreeMap::new() }
        }

        fn missing(&self, host: usize) -> BTreeSet<u32> {
            let here = &self.hosts[host];
            let lacks = |piece: &u32| here.have[*piece as usize].is_none() && !here.claims.contains(piece);
            (0..self.pieces).filter(lacks).collect()
        }

        fn choose<T>(&self, host: usize, choice: impl FnOnce(View<'_>) -> T) -> T {
            let others = self.hosts.iter().enumerate().filter(|(n, other)| *n != host && other.lives);
            let peers: Vec<_> = others
                .map(|(_, other)| PeerView {
                    scores: &other.scores,
                    have: &other.have,
                    claims: &other.claims,
                    tier: 0,
                    load: 0,
                    gives: true,
                    takes: true,
                    seconds_per_piece: 0.01,
                })
                .collect();
            let missing = self.missing(host);
            choice(View {
                scores: &self.hosts[host].scores,
                missing: &missing,
                seconds_per_piece: 0.01,
                peers: &peers,
            })
        }

        /// Lets one host do one thing. False when there is nothing for it to do.
        fn step(&mut self, host: usize, finish: bool) -> bool {
            if !self.hosts[host].lives {
                return false;
            }
            if finish && let Some(piece) = self.hosts[host].claims.pop_first() {
                self.hosts[host].have[piece as usize] = Some(Digest::of(b"a piece"));
                return true;
            }
            if let Some((piece, _)) = self.choose(host, |view| view.next_of_peer()) {
                self.hosts[host].have[piece as usize] = Some(Digest::of(b"a piece"));
                return true;
            }
            if self.hosts[host].claims.len() < 3
                && let Some(piece) = self.choose(host, |view| view.next_of_source())
            {
                self.hosts[host].claims.insert(piece);
                *self.upstream.entry(piece).or_default() += 1;
                return true;
            }
            false
        }

        fn is_whole(&self, host: usize) -> bool {
            self.hosts[host].have.iter().all(Option::is_some)
        }

        /// Lets all live hosts work on, in the order that chance says, until nobody has anything to do.
        fn run(&mut self, order: &[(prop::sample::Index, bool)]) {
            let count = self.hosts.len();
            for (host, finish) in order {
                self.step(host.index(count), *finish);
            }
            // Everybody once a round, until a round in which nobody did anything.
            while (0..count).filter(|host| self.step(*host, true)).count() > 0 {}
        }
    }

    fn order() -> impl Strategy<Value = Vec<(prop::sample::Index, bool)>> {
        prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..200)
    }

    proptest! {
        #[test]
        fn every_piece_gets_to_everybody_and_leaves_the_source_once(
            hosts in 1_usize..7, pieces in 1_u32..60, order in order(),
        ) {
            let mut swarm = Swarm::new(hosts, pieces);
            swarm.run(&order);
            prop_assert!((0..hosts).all(|host| swarm.is_whole(host)));
            prop_assert_eq!(swarm.upstream.len(), pieces as usize);
            prop_assert!(swarm.upstream.values().all(|times| *times == 1), "{:?}", swarm.upstream);
        }

        #[test]
        fn nobody_waits_for_a_dead_host_and_only_what_it_alone_had_or_fetched_comes_again(
            hosts in 2_usize..7, pieces in 1_u32..60, before in order(), after in order(),
            dies in any::<prop::sample::Index>(),
        ) {
            let mut swarm = Swarm::new(hosts, pieces);
            for (host, finish) in &before {
                swarm.step(host.index(hosts), *finish);
            }
            let dies = dies.index(hosts);
            swarm.hosts[dies].lives = false;
            let elsewhere = |piece: &u32| {
                let others = swarm.hosts.iter().filter(|host| host.lives);
                others.into_iter().any(|host| host.have[*piece as usize].is_some() || host.claims.contains(piece))
            };
            let known: BTreeSet<u32> = swarm.upstream.keys().copied().filter(elsewhere).collect();
            let times = swarm.upstream.clone();
            swarm.run(&after);
            for host in (0..hosts).filter(|host| *host != dies) {
                prop_assert!(swarm.is_whole(host));
            }
            for (piece, now) in &swarm.upstream {
                let then = times.get(piece).copied().unwrap_or(0);
                prop_assert!(*now <= then + u32::from(!known.contains(piece)), "piece {piece}: {then}, then {now}");
            }
        }

        #[test]
        fn a_death_moves_the_pieces_of_the_dead_and_no_others(hosts in 2_usize..9, pieces in 1_u32..200) {
            let name = |n: usize| format!("host-{n}");
            let ranks: Vec<_> =
                (0..hosts).map(|n| scores(&Sha256Hex::from(FILE), pieces, &name(n))).collect();
            let owner = |piece: u32, alive: &dyn Fn(usize) -> bool| {
                (0..hosts).filter(|n| alive(*n)).max_by_key(|n| ranks[*n][piece as usize]).unwrap()
            };
            for piece in 0..pieces {
                let before = owner(piece, &|_| true);
                let after = owner(piece, &|n| n != 0);
                prop_assert!(before == 0 || after == before);
                // The choice of each host agrees with it.
                let swarm = Swarm::new(hosts, pieces);
                for host in 0..hosts {
                    let own = swarm.choose(host, |view| view.owner(piece).is_none());
                    prop_assert_eq!(own, host == before);
                }
            }
        }

        #[test]
        fn owners_are_spread(hosts in 2_usize..9) {
            let pieces = 2000;
            let ranks: Vec<_> =
                (0..hosts).map(|n| scores(&Sha256Hex::from(FILE), pieces, &format!("h{n}"))).collect();
            let mut owned = vec![0_usize; hosts];
            for piece in 0..pieces as usize {
                owned[(0..hosts).max_by_key(|n| ranks[*n][piece]).unwrap()] += 1;
            }
            let fair = pieces as usize / hosts;
            prop_assert!(owned.iter().all(|owned| (fair / 2..fair * 2).contains(owned)), "{owned:?}");
        }
    }

    #[test]
    fn the_better_link_and_then_the_less_busy_host_give_a_piece() {
        let (have, none) = (vec![Some(Digest::of(b"a")); 1], BTreeSet::new());
        let ranks = [0_u64];
        let peer = |tier, load| PeerView {
            scores: &ranks,
            have: &have,
            claims: &none,
            tier,
            load,
            gives: true,
            takes: false,
            seconds_per_piece: 0.0,
        };
        let missing = BTreeSet::from([0]);
        for (peers, chosen) in [
            (vec![peer(2, 0), peer(1, 5)], 1),
            (vec![peer(1, 3), peer(1, 2)], 1),
            (vec![PeerView { gives: false, ..peer(0, 0) }, peer(9, 9)], 1),
        ] {
            let view = View { scores: &ranks, missing: &missing, seconds_per_piece: 0.0, peers: &peers };
            assert_eq!(view.next_of_peer(), Some((0, chosen)));
        }
    }

    #[test]
    fn a_slow_owner_is_relieved_of_its_last_pieces() {
        let swarm = Swarm::new(2, 40);
        let missing: BTreeSet<u32> = (0..40)
            .filter(|piece| swarm.hosts[1].scores[*piece as usize] > swarm.hosts[0].scores[*piece as usize])
            .collect();
        let none = BTreeSet::new();
        let slow = |seconds_per_piece| {
            let peer = PeerView {
                scores: &swarm.hosts[1].scores,
                have: &swarm.hosts[1].have,
                claims: &none,
                tier: 0,
                load: 0,
                gives: true,
                takes: true,
                seconds_per_piece,
            };
            let view = View {
                scores: &swarm.hosts[0].scores,
                missing: &missing,
                seconds_per_piece: 0.5,
                peers: &[peer],
            };
            view.next_of_source()
        };
        assert_eq!(slow(0.01), None);
        assert_eq!(slow(60.0), missing.last().copied());
    }
}
