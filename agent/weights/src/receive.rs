//! One piece on its way from a connection to the disk: hashed and written in blocks on threads that may block, while the
//! next block arrives. Holds two blocks of memory, however long the piece is.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use leaky_bucket::RateLimiter;
use tandem_sources::{Body, TransferError};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::Digest;
use crate::error::{StoreError, at_byte};
use crate::hash::BLOCK;
use crate::partial::Partial;

/// A connection that brings less than this while it is waited for one patience long stands still, in bytes.
const LEAST: u64 = 16 << 10;

/// Where bytes come from.
pub(crate) enum Inflow {
    Source(Body),
    Peer(reqwest::Response),
}

/// Why a piece did not come.
#[derive(Debug)]
pub(crate) enum PieceError {
    /// The source failed.
    Source(TransferError),
    /// The peer failed, in words.
    Peer(String),
    /// It sent bytes whose digest is not what it announced.
    WrongPiece,
    /// The connection ended before the piece did.
    Short,
    /// More bytes than were asked for, or a whole file of another length.
    WrongLength,
    /// Too little for too long.
    Stalled,
    /// The disk failed.
    Store(StoreError),
}

/// Bounds that all connections of a host share.
#[derive(Clone)]
pub(crate) struct Bounds {
    pub(crate) limiter: Option<Arc<RateLimiter>>,
    pub(crate) patience: Duration,
}

impl Inflow {
    async fn next(&mut self) -> Result<Option<Bytes>, PieceError> {
        match self {
            Self::Source(body) => body.next().await.map_err(PieceError::Source),
            Self::Peer(response) => {
                response.chunk().await.map_err(|error| PieceError::Peer(error.to_string()))
            }
        }
    }
}

impl Bounds {
    /// The next bytes, as soon as the cap on bandwidth allows. Waiting for the cap is nobody's standing still.
    pub(crate) async fn next(
        &self,
        inflow: &mut Inflow,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, PieceError> {
        let asked = Instant::now();
        let next = timeout(self.patience, inflow.next()).await.map_err(|_| PieceError::Stalled)??;
        let Some(bytes) = next else { return Ok(None) };
        pace.waited += asked.elapsed();
        pace.bytes += bytes.len() as u64;
        if pace.waited > self.patience {
            if pace.bytes < LEAST {
                return Err(PieceError::Stalled);
            }
            *pace = Pace::default();
        }
        if let Some(limiter) = &self.limiter {
            limiter.acquire(bytes.len()).await;
        }
        Ok(Some(bytes))
    }
}

/// What a connection brought lately.
#[derive(Default)]
pub(crate) struct Pace {
    waited: Duration,
    bytes: u64,
}

/// Receives one piece that was asked for alone, and says what it hashes to. `count` is told of all bytes that came.
pub(crate) async fn receive(
    inflow: &mut Inflow,
    partial: &Arc<Partial>,
    piece: u32,
    bounds: &Bounds,
    count: impl Fn(u64),
) -> Result<Digest, PieceError> {
    if let Inflow::Source(body) = inflow
        && body.file_length.is_some_and(|length| length != partial.cut.bytes())
    {
        return Err(PieceError::WrongLength);
    }
    let (mut sink, mut pace) = (Sink::new(partial, piece), Pace::default());
    while let Some(bytes) = bounds.next(inflow, &mut pace).await? {
        count(bytes.len() as u64);
        if bytes.len() as u64 > sink.left() {
            return Err(PieceError::WrongLength);
        }
        sink.push(&bytes).await?;
        // The end of the answer is not waited for.
        if sink.left() == 0 {
            break;
        }
    }
    sink.finish().await
}

/// A block, to be filled again, and the hash of the piece so far.
type Written = Result<(Vec<u8>, blake3::Hasher), StoreError>;

/// A piece being written.
pub(crate) struct Sink {
    partial: Arc<Partial>,
    /// Where the next byte goes, and where the piece ends.
    at: u64,
    end: u64,
    filling: Vec<u8>,
    idle: Option<(Vec<u8>, blake3::Hasher)>,
    writing: Option<JoinHandle<Written>>,
}

impl Sink {
    pub(crate) fn new(partial: &Arc<Partial>, piece: u32) -> Self {
        let range = partial.cut.range(piece);
        Self {
            partial: partial.clone(),
            at: range.start,
            end: range.end,
            filling: Vec::new(),
            idle: Some((Vec::new(), blake3::Hasher::new())),
            writing: None,
        }
    }

    /// Bytes that are still missing.
    pub(crate) fn left(&self) -> u64 {
        self.end - self.at
    }

    /// Takes the next bytes, at most [`Sink::left`].
    pub(crate) async fn push(&mut self, bytes: &[u8]) -> Result<(), PieceError> {
        if self.filling.capacity() == 0 {
            let block = BLOCK.min(usize::try_from(self.left()).unwrap_or(BLOCK));
            // Connections bring some hundred KiB at most at once, so that it seldom grows.
            self.filling.reserve_exact(block + block / 4);
        }
        self.filling.extend_from_slice(bytes);
        self.at += bytes.len() as u64;
        if self.filling.len() >= BLOCK { self.write().await } else { Ok(()) }
    }

    /// Writes what is left, and says what the piece hashes to.
    pub(crate) async fn finish(mut self) -> Result<Digest, PieceError> {
        if self.left() > 0 {
            return Err(PieceError::Short);
        }
        if !self.filling.is_empty() {
            self.write().await?;
        }
        let (_, hasher) = self.written().await?;
        Ok(hasher.finalize().into())
    }

    async fn write(&mut self) -> Result<(), PieceError> {
        let (empty, mut hasher) = self.written().await?;
        let mut block = std::mem::replace(&mut self.filling, empty);
        let (partial, at) = (self.partial.clone(), self.at - block.len() as u64);
        let leave = partial.leave_to_write().await;
        self.writing = Some(tokio::task::spawn_blocking(move || {
            hasher.update(&block);
            let written = partial.file.write_all_at(&block, at).map_err(at_byte(&partial.path, at));
            drop(leave);
            block.clear();
            written.map(|()| (block, hasher))
        }));
        Ok(())
    }

    /// Waits until the block before is on its way to the disk.
    async fn written(&mut self) -> Result<(Vec<u8>, blake3::Hasher), PieceError> {
        match self.writing.take() {
            Some(writing) => writing.await.expect("writing does not panic").map_err(PieceError::Store),
            None => Ok(self.idle.take().expect("a block is idle or being written")),
        }
    }
}
