//! Traces of passes that change what hosts are told: what woke one, what it took, and which specs carry it to hosts. Without a collector
//! nothing is kept here.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::time::SystemTime;

use tandem_crds::InferenceHostSpec;
use tandem_traces::{Span, Traces};

/// What wakes passes, and what goes on with them at hosts.
#[derive(Default)]
pub(crate) struct Traced {
    traces: Traces,
    woken: Mutex<Woken>,
    /// By host: the newest spec that a traced pass wrote.
    carried: Mutex<BTreeMap<String, Carried>>,
}

/// What has changed since the last pass.
#[derive(Default)]
struct Woken {
    first: Option<String>,
    changes: i64,
}

/// A spec, and who goes on with the trace that it came of.
struct Carried {
    term: u64,
    generation: u64,
    traceparent: String,
}

impl Traced {
    pub(crate) fn new(traces: Traces) -> Self {
        Self { traces, ..Self::default() }
    }

    /// Something has changed, which wakes the next pass.
    pub(crate) fn wakes(&self, what: impl fmt::Display) {
        if self.traces.are_on() {
            let mut woken = self.woken.lock().expect("nothing panics with it");
            woken.changes += 1;
            woken.first.get_or_insert_with(|| what.to_string());
        }
    }

    /// A pass begins. It is told to nobody unless it acts.
    pub(crate) fn pass(&self) -> Pass {
        let woken = std::mem::take(&mut *self.woken.lock().expect("nothing panics with it"));
        let now = SystemTime::now();
        Pass { traces: self.traces.clone(), woken, began: now, last: now, parts: Vec::new() }
    }

    /// A host's spec is about to be written because of this.
    pub(crate) fn carry(&self, host: &str, spec: &InferenceHostSpec, because: &Span) {
        if because.is_on() {
            let (term, generation, traceparent) = (spec.term, spec.generation, because.traceparent());
            let carried = Carried { term, generation, traceparent };
            self.carried.lock().expect("nothing panics with it").insert(host.to_owned(), carried);
        }
    }

    /// Who goes on with the trace that a host's spec came of; empty if there is none.
    pub(crate) fn traceparent(&self, host: &str, term: u64, generation: u64) -> String {
        let carried = self.carried.lock().expect("nothing panics with it");
        let carried = carried.get(host).filter(|spec| (spec.term, spec.generation) == (term, generation));
        carried.map(|spec| spec.traceparent.clone()).unwrap_or_default()
    }

    /// Hosts that are gone need no word.
    pub(crate) fn keep(&self, is_there: impl Fn(&str) -> bool) {
        self.carried.lock().expect("nothing panics with it").retain(|host, _| is_there(host));
    }
}

/// A pass while it goes on.
pub(crate) struct Pass {
    traces: Traces,
    woken: Woken,
    began: SystemTime,
    last: SystemTime,
    parts: Vec<(&'static str, SystemTime, SystemTime)>,
}

impl Pass {
    /// What was done since the part before, or since the beginning.
    pub(crate) fn part(&mut self, name: &'static str) {
        if self.traces.are_on() {
            let now = SystemTime::now();
            self.parts.push((name, std::mem::replace(&mut self.last, now), now));
        }
    }

    /// It acts: its trace, with all that it took until now.
    pub(crate) fn acts(self) -> Span {
        let span = self.traces.begin("pass", self.began);
        if span.is_on() {
            span.note("woken.by", self.woken.first.unwrap_or_else(|| "time".to_owned()));
            span.note("woken.changes", self.woken.changes);
            self.parts.iter().for_each(|(name, began, ended)| span.had(name, *began, *ended));
        }
        span
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_for_nobody() {
        let traced = Traced::default();
        traced.wakes("InferenceDeployment llm/kimi");
        let mut pass = traced.pass();
        pass.part("plan");
        assert!(pass.woken.first.is_none() && pass.parts.is_empty());
        let span = pass.acts();
        traced.carry("mac-a", &InferenceHostSpec::default(), &span);
        assert_eq!(traced.traceparent("mac-a", 0, 0), "");
        assert!(traced.carried.lock().unwrap().is_empty());
    }
}
