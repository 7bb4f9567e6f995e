//! Misbehaviour: what a test scripts, and what chance brings.

use std::collections::VecDeque;
use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::{Door, lock};

/// What goes wrong with one request. Where a hub or registry answers by itself, with a list or a redirect, only statuses and
/// redirects act, and [`Fault::OtherCommit`].
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Nothing: for scripts in which a later request goes wrong.
    None,
    /// Another status, without a body.
    Status(u16),
    /// 429, and how many seconds to wait.
    TooMany {
        /// What `Retry-After` says.
        retry_after: u64,
    },
    /// The connection ends after this many bytes of the body.
    Cut {
        /// Bytes that are still sent.
        after: u64,
    },
    /// The body ends after this many bytes as if it were whole: without a Content-Length, nothing but the range tells.
    Short {
        /// Bytes that are still sent.
        after: u64,
    },
    /// Nothing more comes after this many bytes of the body, and the connection stays.
    Stall {
        /// Bytes that are still sent.
        after: u64,
    },
    /// The body comes at most this fast.
    Slow {
        /// Bytes a second.
        bytes_per_second: u64,
    },
    /// One bit of the file is flipped where this byte is sent.
    Flip {
        /// Which byte of the whole file.
        at: u64,
    },
    /// 200 and the whole file, whatever range was asked for.
    Whole,
    /// Another Content-Range than that of the bytes.
    WrongRange,
    /// The body goes on for ever.
    Endless,
    /// 302 to this URL.
    Redirect(String),
    /// The hub says that what it sends is of another commit.
    OtherCommit,
}

/// Faults by chance, the same for the same seed and order of requests.
#[derive(Clone, Debug)]
pub struct Chaos {
    /// Of the generator.
    pub seed: u64,
    /// How many of a hundred requests for files go wrong.
    pub percent: u32,
}

#[derive(Default)]
pub(crate) struct Script(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    rules: Vec<Rule>,
    chaos: Option<(u32, StdRng)>,
}

struct Rule {
    door: Door,
    path: String,
    faults: VecDeque<Fault>,
    always: bool,
}

impl Script {
    pub(crate) fn then(&self, door: Door, path: &str, faults: VecDeque<Fault>) {
        lock(&self.0).rules.push(Rule { door, path: path.to_owned(), faults, always: false });
    }

    pub(crate) fn always(&self, door: Door, path: &str, fault: Fault) {
        let faults = VecDeque::from([fault]);
        lock(&self.0).rules.push(Rule { door, path: path.to_owned(), faults, always: true });
    }

    pub(crate) fn chaos(&self, chaos: Option<Chaos>) {
        lock(&self.0).chaos = chaos.map(|chaos| (chaos.percent, StdRng::seed_from_u64(chaos.seed)));
    }

    pub(crate) fn clear(&self) {
        *lock(&self.0) = Inner::default();
    }

    /// What happens to the next request for this; `sent` is what a file's body would be, and none for other answers.
    pub(crate) fn next(&self, door: Door, path: &str, sent: Option<std::ops::Range<u64>>) -> Fault {
        let inner = &mut *lock(&self.0);
        let fits =
            |rule: &&mut Rule| rule.door == door && path.ends_with(&rule.path) && !rule.faults.is_empty();
        if let Some(rule) = inner.rules.iter_mut().find(fits) {
            let next = if rule.always { rule.faults.front().cloned() } else { rule.faults.pop_front() };
            return next.unwrap_or(Fault::None);
        }
        let (Some((percent, random)), Some(sent)) = (&mut inner.chaos, sent) else { return Fault::None };
        if random.random_range(0..100) < *percent { by_chance(random, sent) } else { Fault::None }
    }
}

/// Every fault that ends by itself, so that a test by chance takes no longer than its bytes.
fn by_chance(random: &mut StdRng, sent: std::ops::Range<u64>) -> Fault {
    let length = sent.end - sent.start;
    let after = if length > 0 { random.random_range(0..length) } else { 0 };
    match random.random_range(0..9) {
        0 => Fault::Status(500),
        1 => Fault::TooMany { retry_after: 0 },
        2 => Fault::Short { after },
        3 => Fault::Flip { at: sent.start + after },
        4 => Fault::Whole,
        5 => Fault::WrongRange,
        6 => Fault::Endless,
        7 => Fault::Status(503),
        _ => Fault::Cut { after },
    }
}
