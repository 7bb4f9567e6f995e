//! When every piece came and the whole is wrong: somebody upstream gave wrong bytes somewhere, and only where is not known.
//!
//! First the pieces that other hosts have otherwise are fetched from these. If that does not help, all pieces are fetched
//! again over fresh connections, and those that differ from the first time replace them, until the whole is right. When
//! nothing differs, the source has other bytes than were asked for.

use std::sync::Arc;

use backon::BackoffBuilder;
use futures::future::join_all;
use tandem_sources::{Origin, Sha256Hex};
use tokio::sync::{OnceCell, watch};
use tokio::time::{sleep, timeout};

use crate::Digest;
use crate::download::{Source, open, write_down};
use crate::error::FetchError;
use crate::fetch::{Fetcher, Order, follow};
use crate::hash::Follower;
use crate::partial::Partial;
use crate::peers::{Dial, FIRST_NEWS_WITHIN, Remote};
use crate::progress::Part;
use crate::receive::{Bounds, Inflow, PieceError, receive};

struct Doubt<'a> {
    fetcher: &'a Fetcher,
    order: &'a Order,
    partial: &'a Arc<Partial>,
    part: &'a Arc<Part>,
    bounds: Bounds,
}

impl Fetcher {
    /// Mends a whole whose sha256 is wrong, and says what it hashes to in the end.
    pub(crate) async fn doubt(
        &self,
        order: &Order,
        partial: &Arc<Partial>,
        part: &Arc<Part>,
        found: Sha256Hex,
    ) -> Result<Sha256Hex, FetchError> {
        tracing::warn!(file = order.file.name, expected = %order.file.sha256, %found, "a file came with wrong bytes: its pieces are fetched again");
        partial.set_takes(false);
        let shared = self.shared();
        let bounds = Bounds { limiter: shared.limiter.clone(), patience: shared.options.patience };
        let doubt = Doubt { fetcher: self, order, partial, part, bounds };
        let found = doubt.with_the_others(found).await?;
        if found == order.file.sha256 { Ok(found) } else { doubt.with_the_source(found).await }
    }
}

impl Doubt<'_> {
    /// Replaces the pieces that other hosts have otherwise.
    async fn with_the_others(&self, mut found: Sha256Hex) -> Result<Sha256Hex, FetchError> {
        let Some(dials) = &self.fetcher.shared().dials else { return Ok(found) };
        let fresh = Source::new(OnceCell::new());
        let peers: Vec<_> = self.order.peers.borrow().clone();
        for peer in peers.into_iter().filter(|peer| peer.host != self.order.own_host) {
            let told = watch::Sender::new(0);
            let mut news = told.subscribe();
            let (sha256, cut) = (self.partial.sha256, self.partial.cut);
            let remote =
                Remote::follow(peer, (sha256, cut), dials.clone(), told, self.fetcher.store().callers());
            let answered = news.wait_for(|_| remote.state().answered);
            if timeout(FIRST_NEWS_WITHIN * 4, answered).await.is_err() {
                continue;
            }
            let (link, theirs) = {
                let state = remote.state();
                (state.link.clone().filter(|_| state.aside.is_none()), state.digests.clone())
            };
            let Some(link) = link else { continue };
            let ours = self.partial.have().digests.clone();
            let differ = |piece: &u32| {
                let (ours, theirs) = (ours[*piece as usize], theirs[*piece as usize]);
                theirs.is_some() && ours != theirs
            };
            let suspects: Vec<u32> = (0..cut.count()).filter(differ).collect();
            if suspects.is_empty() {
                continue;
            }
            tracing::warn!(host = remote.peer.host, ?suspects, "another host has these pieces otherwise");
            for piece in suspects {
                let came = match self.ask_peer(&link, piece).await {
                    Ok(digest) => Ok(digest),
                    // It may be half overwritten now.
                    Err(_) => self.ask_source(&fresh, piece).await,
                };
                self.replace(piece, came).await?;
            }
            found = self.whole().await?;
            if found == self.order.file.sha256 {
                break;
            }
        }
        Ok(found)
    }

    /// Fetches every piece again, over connections that were not used before.
    async fn with_the_source(&self, mut found: Sha256Hex) -> Result<Sha256Hex, FetchError> {
        let fresh = Source::new(OnceCell::new());
        let at_once = u32::try_from(self.fetcher.shared().options.connections.max(1)).unwrap_or(u32::MAX);
        let (mut replaced, mut looked_at) = (0_u64, 0_u64);
        for first in (0..self.partial.cut.count()).step_by(at_once as usize) {
            let last = first.saturating_add(at_once).min(self.partial.cut.count());
            let pieces = join_all((first..last).map(|piece| self.ask_source(&fresh, piece))).await;
            for (piece, digest) in (first..last).zip(pieces) {
                replaced += u64::from(self.replace(piece, digest).await?);
            }
            // Hashing the whole after every piece would cost more than the pieces when many differ.
            if replaced > 0 && replaced >= looked_at * 2 {
                looked_at = replaced;
                found = self.whole().await?;
                if found == self.order.file.sha256 {
                    return Ok(found);
                }
            }
        }
        if replaced > looked_at { self.whole().await } else { Ok(found) }
    }

    /// Whether a piece that came again is another one than before. One that did not come may be half overwritten.
    async fn replace(&self, piece: u32, came: Result<Digest, FetchError>) -> Result<bool, FetchError> {
        let before = self.partial.have().digests[piece as usize];
        match came {
            Ok(digest) if before == Some(digest) => Ok(false),
            Ok(digest) => {
                self.partial.withdraw(&[piece]);
                let digest = write_down(self.partial, piece, digest).await;
                self.partial.add(piece, digest.map_err(|error| self.failed(error))?);
                tracing::warn!(file = self.order.file.name, piece, "a piece came otherwise than before");
                Ok(true)
            }
            Err(error) => {
                self.partial.withdraw(&[piece]);
                Err(error)
            }
        }
    }

    async fn whole(&self) -> Result<Sha256Hex, FetchError> {
        self.partial.quiet().await;
        Ok(follow(self.partial.clone(), Follower::new()).await?)
    }

    async fn ask_peer(&self, link: &Dial, piece: u32) -> Result<Digest, FetchError> {
        let response = link.read(&self.partial.sha256, &self.partial.cut, piece, self.bounds.patience).await;
        let came = match response {
            Ok(response) => {
                let count = |bytes| self.part.add_peer(bytes);
                receive(&mut Inflow::Peer(response), self.partial, piece, &self.bounds, count).await
            }
            Err(why) => Err(PieceError::Peer(why)),
        };
        came.map_err(|error| self.failed(error))
    }

    async fn ask_source(&self, source: &Source, piece: u32) -> Result<Digest, FetchError> {
        let _permit = self.fetcher.shared().at_source.acquire().await.expect("it is never closed");
        let once = || async move {
            let came = async {
                let origin: &Origin = open(source, self.order).await.map_err(PieceError::Source)?;
                let range = self.partial.cut.range(piece);
                let body =
                    origin.read(&self.order.file.name, Some(range)).await.map_err(PieceError::Source)?;
                let count = |bytes| self.part.add_source(bytes);
                receive(&mut Inflow::Source(body), self.partial, piece, &self.bounds, count).await
            };
            came.await.map_err(|error| self.failed(error))
        };
        let mut delays = self.order.access.backoff().build();
        loop {
            let error = match once().await {
                Err(error) if error.is_transient() => error,
                result => return result,
            };
            match error.wait(delays.next()) {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            }
        }
    }

    fn failed(&self, error: PieceError) -> FetchError {
        let name = self.order.file.name.clone();
        match error {
            PieceError::Source(error) => FetchError::Source(error),
            PieceError::Store(error) => FetchError::Store(error),
            PieceError::WrongLength => FetchError::WrongLength { name, expected: self.order.file.bytes },
            _ => FetchError::Stalled { name },
        }
    }
}
