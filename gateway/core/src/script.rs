//! A worker for tests, whose token is a hash of the prompt and **all** earlier tokens: a wrong prefix, a lost or a
//! doubled token changes everything after it.

use tandem_worker_api::{
    AttemptId, Finished, Frame, GenerateEvent, PrefixDigest, Started, finished, generate_event::Event,
};

use crate::ledger::Opening;

pub(crate) const PROMPT: [u32; 3] = [11, 12, 13];

/// One attempt's worth of events.
pub(crate) struct Script {
    id: AttemptId,
    numerics_id: &'static str,
    salt: u32,
    ids: Vec<u32>,
    digest: PrefixDigest,
    last: u32,
    started: bool,
    over: bool,
}

impl Script {
    /// Speaks `last` tokens in all. Another `salt` is another model's choice of tokens.
    pub(crate) fn new(opening: &Opening, numerics_id: &'static str, salt: u32, last: u32) -> Self {
        let ids = opening.resume.as_ref().map(|resume| resume.ids.clone()).unwrap_or_default();
        let digest = PrefixDigest::of_prompt(&PROMPT).then_all(&ids);
        if let Some(resume) = &opening.resume {
            assert_eq!(resume.digest, digest.to_bytes(), "a resume carries the digest of what it resumes");
        }
        Self { id: opening.id.clone(), numerics_id, salt, ids, digest, last, started: false, over: false }
    }

    fn token(&self) -> u32 {
        let digest = self.digest.to_bytes();
        u32::from_le_bytes([digest[0], digest[1], digest[2], 0]) ^ self.salt
    }
}

impl Iterator for Script {
    type Item = GenerateEvent;

    fn next(&mut self) -> Option<GenerateEvent> {
        let event = if !self.started {
            self.started = true;
            Event::Started(Started {
                prompt_tokens: 3,
                prompt_digest: PrefixDigest::of_prompt(&PROMPT).to_bytes(),
                numerics_id: self.numerics_id.to_owned(),
                ..Started::default()
            })
        } else if (self.ids.len() as u32) < self.last {
            let (index, id) = (self.ids.len() as u32, self.token());
            let frame = Frame {
                attempt: Some(self.id.clone()),
                index,
                id,
                bytes: format!("{id} ").into_bytes(),
                digest: self.digest.to_bytes(),
                ..Frame::default()
            };
            self.ids.push(id);
            self.digest = self.digest.then(id);
            Event::Frame(frame)
        } else if !self.over {
            self.over = true;
            let reason = finished::Reason::Context.into();
            Event::Finished(Finished { reason, tokens: self.last, message: String::new() })
        } else {
            return None;
        };
        Some(GenerateEvent { event: Some(event) })
    }
}

/// What an undisturbed run says.
pub(crate) fn undisturbed(salt: u32, last: u32) -> Vec<u32> {
    let opening = crate::ledger::Ledger::new("s", 0, crate::ledger::Limits::default()).open();
    Script::new(&opening, "x", salt, last)
        .filter_map(|event| match event.event {
            Some(Event::Frame(frame)) => Some(frame.id),
            _ => None,
        })
        .collect()
}
