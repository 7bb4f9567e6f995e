//! Where files lie that a hub or registry redirects to: remembered, so that a piece of a file is one request and not two.
//! Such places are signed for some minutes; one that no longer answers is asked for again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::Url;

use crate::Body;
use crate::TransferError;
use crate::http::{Answer, Ask, Http};

/// How long a place is believed without asking again. Signatures live some minutes to an hour; a shorter one costs one
/// refused request.
const BELIEVED: Duration = Duration::from_secs(300);
/// More files than a model has.
const MOST_FILES: usize = 2048;

#[derive(Default)]
pub(super) struct Located(Mutex<HashMap<String, (Url, Instant)>>);

impl Located {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Url, Instant)>> {
        self.0.lock().expect("no panic while places are changed")
    }

    /// Reads from where the file was last, if that is known and still answers.
    pub(super) async fn read(
        &self,
        http: &Http,
        name: &str,
        ask: &Ask,
    ) -> Option<Result<Body, TransferError>> {
        let url = match self.lock().get(name) {
            Some((url, since)) if since.elapsed() < BELIEVED => url.clone(),
            _ => return None,
        };
        // It carries its own signature; the credential is the hub's.
        let ask = Ask { range: ask.range.clone(), ..Ask::new(url) };
        match http.get(&ask).await {
            Ok(answer) if answer.response.status().is_success() => {
                Some(Body::of_answer(answer, ask.range.as_ref()))
            }
            Ok(answer) if matches!(answer.response.status().as_u16(), 400 | 401 | 403 | 404 | 410) => {
                self.lock().remove(name);
                None
            }
            Ok(answer) => Some(Err(answer.refusal(&ask).await)),
            Err(error) => {
                self.lock().remove(name);
                Some(Err(error))
            }
        }
    }

    /// Notes where a file was found, if that is elsewhere than where it was asked for.
    pub(super) fn note(&self, name: &str, asked: &Url, answer: &Answer) {
        if answer.url.origin() == asked.origin() {
            return;
        }
        let mut places = self.lock();
        if places.len() >= MOST_FILES {
            places.clear();
        }
        places.insert(name.to_owned(), (answer.url.clone(), Instant::now()));
    }
}
