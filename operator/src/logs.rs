//! Log lines from hosts to people: one bounded channel per request, fed by the sessions of the hosts asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use tandem_control_api::LogChunk;
use tokio::sync::mpsc;

/// Chunks that may wait for one reader.
const WAITING: usize = 256;
/// Longest text of one chunk, in bytes; the rest is cut.
const LONGEST: usize = 64 * 1024;
/// Readers at once.
const READERS: usize = 64;

/// Everybody who reads logs now.
#[derive(Default)]
pub(crate) struct LogRelay {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    opened: u64,
    readers: BTreeMap<String, Reader>,
}

struct Reader {
    /// (host, workload) that have not ended yet.
    sources: Vec<(String, String)>,
    chunks: mpsc::Sender<LogChunk>,
    /// Chunks that found no room since the last one that did.
    missed: u64,
}

impl LogRelay {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while log readers are changed")
    }

    /// Opens a request to these sources; none when there are too many readers already.
    pub(crate) fn open(&self, sources: Vec<(String, String)>) -> Option<(String, mpsc::Receiver<LogChunk>)> {
        let (chunks, receiver) = mpsc::channel(WAITING);
        let mut inner = self.lock();
        inner.readers.retain(|_, reader| !reader.chunks.is_closed());
        if inner.readers.len() >= READERS {
            return None;
        }
        inner.opened += 1;
        let request = format!("log-{}", inner.opened);
        inner.readers.insert(request.clone(), Reader { sources, chunks, missed: 0 });
        Some((request, receiver))
    }

    /// Passes a chunk from a host on. A host can only speak for itself, and only to whoever asked it. False when nobody
    /// reads this request any more, so that the host can stop.
    pub(crate) fn pass(&self, host: &str, mut chunk: LogChunk) -> bool {
        let mut inner = self.lock();
        let Some(reader) = inner.readers.get_mut(&chunk.request) else { return false };
        let source = |(from, workload): &(String, String)| from == host && *workload == chunk.workload;
        let Some(at) = reader.sources.iter().position(source) else { return false };
        let request = chunk.request.clone();
        let ended = chunk.end;
        chunk.host = host.to_owned();
        truncate(&mut chunk.text);
        if reader.missed > 0 {
            chunk
                .text
                .insert_str(0, &format!("[{} chunks left out: the reader is too slow]\n", reader.missed));
        }
        match reader.chunks.try_send(chunk) {
            Ok(()) => reader.missed = 0,
            Err(mpsc::error::TrySendError::Full(_)) => reader.missed += 1,
            Err(mpsc::error::TrySendError::Closed(_)) => {
                inner.readers.remove(&request);
                return false;
            }
        }
        if ended {
            reader.sources.remove(at);
            if reader.sources.is_empty() {
                // Dropping the channel ends the reader's stream.
                inner.readers.remove(&request);
            }
        }
        true
    }

    /// A host is gone: nothing more comes from it.
    pub(crate) fn host_gone(&self, host: &str) {
        self.lock().readers.retain(|_, reader| {
            reader.sources.retain(|(from, _)| from != host);
            !reader.sources.is_empty()
        });
    }
}

fn truncate(text: &mut String) {
    if text.len() > LONGEST {
        let cut = (0..=LONGEST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(request: &str, workload: &str, text: &str, end: bool) -> LogChunk {
        LogChunk {
            request: request.into(),
            host: "liar".into(),
            workload: workload.into(),
            text: text.into(),
            end,
        }
    }

    #[tokio::test]
    async fn a_stream_ends_with_its_last_source() {
        let relay = LogRelay::default();
        let sources = vec![("a".into(), "w1".into()), ("b".into(), "w2".into())];
        let (request, mut reader) = relay.open(sources).unwrap();
        assert!(relay.pass("a", chunk(&request, "w1", "one", true)));
        assert!(!relay.pass("a", chunk(&request, "w2", "not mine", false)));
        assert!(relay.pass("b", chunk(&request, "w2", "two", true)));
        let first = reader.recv().await.unwrap();
        assert_eq!((first.host.as_str(), first.text.as_str()), ("a", "one"));
        assert_eq!(reader.recv().await.unwrap().text, "two");
        assert!(reader.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed() {
        let relay = LogRelay::default();
        let (request, mut reader) = relay.open(vec![("a".into(), "w".into())]).unwrap();
        for _ in 0..WAITING + 3 {
            assert!(relay.pass("a", chunk(&request, "w", "x", false)));
        }
        for _ in 0..WAITING {
            assert_eq!(reader.recv().await.unwrap().text, "x");
        }
        assert!(relay.pass("a", chunk(&request, "w", "y", false)));
        assert!(reader.recv().await.unwrap().text.starts_with("[3 chunks left out"));
    }

    #[tokio::test]
    async fn a_host_that_is_gone_ends_its_part_and_a_reader_that_is_gone_is_forgotten() {
        let relay = LogRelay::default();
        let (_, mut reader) = relay.open(vec![("a".into(), "w".into())]).unwrap();
        relay.host_gone("a");
        assert!(reader.recv().await.is_none());
        let (request, reader) = relay.open(vec![("a".into(), "w".into())]).unwrap();
        drop(reader);
        assert!(!relay.pass("a", chunk(&request, "w", "x", false)));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let mut text = "ä".repeat(LONGEST);
        truncate(&mut text);
        assert!(text.len() <= LONGEST && text.len() > LONGEST - 2);
    }
}
