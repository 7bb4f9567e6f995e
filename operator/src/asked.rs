//! Questions about the weights that hosts keep, and their answers: one bounded channel per question, fed by the sessions of the
//! hosts asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use tandem_control_api::ModelsReply;
use tandem_control_api::models_reply::Said;
use tokio::sync::mpsc;

/// Replies that may wait for one asker.
const WAITING: usize = 1024;
/// Questions at once.
const QUESTIONS: usize = 32;
/// Longest text in a reply, in bytes; the rest is cut.
const LONGEST: usize = 4096;

/// Every question that is open.
#[derive(Default)]
pub(crate) struct Asked {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    opened: u64,
    questions: BTreeMap<String, Question>,
}

struct Question {
    /// Hosts that have not ended their part yet.
    hosts: BTreeSet<String>,
    replies: mpsc::Sender<ModelsReply>,
    /// Digests of files that the hosts are asked to fetch.
    files: BTreeSet<String>,
    /// Replies that found no room since the last one that did.
    missed: u64,
}

impl Question {
    /// Puts a reply where it has room. Each host's last word always has: room for those is left.
    fn put(&mut self, reply: ModelsReply) {
        let room = self.replies.capacity().saturating_sub(self.hosts.len());
        if !reply.end {
            let moves = matches!(reply.said, Some(Said::Progress(_)));
            // The next figures tell more than these.
            if moves && room < WAITING / 2 {
                return;
            }
            if room < 2 {
                self.missed += 1;
                return;
            }
        }
        if self.missed > 0 && room > 1 {
            let note = format!("{} lines left out: the reader is too slow", self.missed);
            let (request, host) = (reply.request.clone(), reply.host.clone());
            self.send(ModelsReply { request, host, said: Some(Said::Note(note)), end: false });
            self.missed = 0;
        }
        self.send(reply);
    }

    fn send(&self, reply: ModelsReply) {
        if let Err(mpsc::error::TrySendError::Full(reply)) = self.replies.try_send(reply) {
            tracing::error!(request = reply.request, "a reply found no room although some was left for it");
        }
    }
}

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while questions are changed")
    }

    /// Opens a question to these hosts, which are fewer than replies may wait; none when there are too many questions.
    pub(crate) fn open(&self, hosts: BTreeSet<String>) -> Option<(String, mpsc::Receiver<ModelsReply>)> {
        let (replies, receiver) = mpsc::channel(WAITING);
        let mut inner = self.lock();
        if inner.questions.len() >= QUESTIONS || hosts.len() >= WAITING / 4 {
            return None;
        }
        inner.opened += 1;
        let request = format!("models-{}", inner.opened);
        inner
            .questions
            .insert(request.clone(), Question { hosts, replies, files: BTreeSet::new(), missed: 0 });
        Some((request, receiver))
    }

    /// Passes a host's reply on. A host can only speak for itself, and only to whoever asked it. False when nobody listens any
    /// more, so that the host can stop.
    pub(crate) fn pass(&self, host: &str, mut reply: ModelsReply) -> bool {
        let mut inner = self.lock();
        let Some(question) = inner.questions.get_mut(&reply.request) else { return false };
        if !question.hosts.contains(host) || question.replies.is_closed() {
            return false;
        }
        host.clone_into(&mut reply.host);
        cut(&mut reply);
        let (request, ended) = (reply.request.clone(), reply.end);
        question.put(reply);
        if ended {
            question.hosts.remove(host);
            if question.hosts.is_empty() {
                // Dropping the channel ends the asker's stream.
                inner.questions.remove(&request);
            }
        }
        true
    }

    /// The hosts of this question are asked to fetch these files.
    pub(crate) fn want(&self, request: &str, digests: impl Iterator<Item = String>) {
        if let Some(question) = self.lock().questions.get_mut(request) {
            question.files.extend(digests);
        }
    }

    /// By host, digests of the files that it was asked to fetch and has not ended with.
    pub(crate) fn wanted(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut wanted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for question in self.lock().questions.values().filter(|question| !question.files.is_empty()) {
            for host in &question.hosts {
                wanted.entry(host.clone()).or_default().extend(question.files.iter().cloned());
            }
        }
        wanted
    }

    /// Ends a host's part of a question with an error.
    pub(crate) fn fail(&self, request: &str, host: &str, sentence: &str) {
        let said = Some(Said::Error(sentence.to_owned()));
        let reply = ModelsReply { request: request.to_owned(), host: host.to_owned(), said, end: true };
        self.pass(host, reply);
    }

    /// A host is gone: nothing more comes from it.
    pub(crate) fn host_gone(&self, host: &str) {
        let asked: Vec<String> = {
            let inner = self.lock();
            let asked = inner.questions.iter().filter(|(_, question)| question.hosts.contains(host));
            asked.map(|(request, _)| request.clone()).collect()
        };
        for request in asked {
            self.fail(&request, host, "its agent's session ended before it was done: ask again");
        }
    }

    /// Nobody listens to a question any more: the hosts that have not ended their part.
    pub(crate) fn close(&self, request: &str) -> BTreeSet<String> {
        self.lock().questions.remove(request).map(|question| question.hosts).unwrap_or_default()
    }
}

fn cut(reply: &mut ModelsReply) {
    let texts = match &mut reply.said {
        Some(Said::File(file)) => {
            vec![&mut file.sha256, &mut file.name, &mut file.path, &mut file.pinned, &mut file.state]
        }
        Some(Said::Progress(progress)) => vec![&mut progress.what],
        Some(Said::Note(text) | Said::Error(text)) => vec![text],
        None => Vec::new(),
    };
    for text in texts {
        text.truncate(text.floor_char_boundary(LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use tandem_control_api::ModelsProgress;

    use super::*;

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn reply(request: &str, said: Said, end: bool) -> ModelsReply {
        ModelsReply { request: request.into(), host: "liar".into(), said: Some(said), end }
    }

    fn note(text: &str) -> Said {
        Said::Note(text.to_owned())
    }

    fn text(reply: Option<ModelsReply>) -> String {
        match reply.and_then(|reply| reply.said) {
            Some(Said::Note(text) | Said::Error(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_question_ends_with_its_last_host_and_hosts_speak_for_themselves() {
        let asked = Asked::default();
        let (request, mut replies) = asked.open(hosts(&["a", "b"])).unwrap();
        assert!(!asked.pass("c", reply(&request, note("not asked"), false)));
        assert!(asked.pass("a", reply(&request, note("one"), true)));
        assert!(!asked.pass("a", reply(&request, note("after the end"), false)));
        asked.host_gone("b");
        let first = replies.recv().await.unwrap();
        assert_eq!((first.host.as_str(), first.end), ("a", true));
        let gone = replies.recv().await.unwrap();
        assert!(gone.end && gone.host == "b" && text(Some(gone)).contains("session ended"));
        assert!(replies.recv().await.is_none());
        assert!(!asked.pass("b", reply(&request, note("late"), false)));
    }

    #[tokio::test]
    async fn a_slow_reader_misses_figures_first_then_lines_and_never_an_end() {
        let asked = Asked::default();
        let (request, mut replies) = asked.open(hosts(&["a", "b"])).unwrap();
        for done in 0..2 * WAITING as u64 {
            let progress = Said::Progress(ModelsProgress { done, ..ModelsProgress::default() });
            assert!(asked.pass("a", reply(&request, progress, false)));
        }
        for _ in 0..WAITING {
            assert!(asked.pass("a", reply(&request, note("line"), false)));
        }
        assert!(asked.pass("a", reply(&request, Said::Error("the end".into()), true)));
        let mut lines = 0;
        let last = loop {
            match replies.recv().await.unwrap() {
                ModelsReply { end: true, said, .. } => break said,
                ModelsReply { said: Some(Said::Note(_)), .. } => lines += 1,
                _ => {}
            }
        };
        assert_eq!(last, Some(Said::Error("the end".into())));
        assert!((WAITING / 2 - 8..WAITING).contains(&lines), "{lines}");
        assert!(asked.pass("b", reply(&request, note("after"), false)));
        assert!(text(replies.recv().await).contains("lines left out"));
        assert_eq!(text(replies.recv().await), "after");
    }

    #[tokio::test]
    async fn who_listens_no_more_is_told_to_the_hosts_that_still_work() {
        let asked = Asked::default();
        let (request, replies) = asked.open(hosts(&["a", "b"])).unwrap();
        asked.want(&request, ["f".to_owned()].into_iter());
        asked.pass("a", reply(&request, note("done"), true));
        assert_eq!(asked.wanted(), BTreeMap::from([("b".to_owned(), hosts(&["f"]))]));
        drop(replies);
        assert!(!asked.pass("b", reply(&request, note("x"), false)));
        assert_eq!(asked.close(&request), hosts(&["b"]));
        assert_eq!(asked.close(&request), hosts(&[]));
    }

    #[tokio::test]
    async fn questions_and_texts_are_bounded() {
        let asked = Asked::default();
        let open: Vec<_> = (0..QUESTIONS).map(|_| asked.open(hosts(&["a"])).unwrap()).collect();
        assert!(asked.open(hosts(&["a"])).is_none());
        let (request, mut replies) = open.into_iter().next_back().unwrap();
        asked.pass("a", reply(&request, note(&"ä".repeat(LONGEST)), false));
        assert_eq!(text(replies.recv().await).len(), LONGEST);
    }
}
