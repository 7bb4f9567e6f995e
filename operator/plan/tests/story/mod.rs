//! Tells the life of a fleet as an incident report.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::fleet::Fleet;

/// A fleet and its report.
pub(crate) struct Story {
    pub(crate) fleet: Fleet,
    pub(crate) report: String,
    told: BTreeMap<(String, String), String>,
    routed: BTreeMap<String, String>,
}

impl Story {
    pub(crate) fn new() -> Self {
        Self { fleet: Fleet::new(), report: String::new(), told: BTreeMap::new(), routed: BTreeMap::new() }
    }

    /// What a person or the world does.
    pub(crate) fn then(&mut self, what: &str, act: impl FnOnce(&mut Fleet)) {
        act(&mut self.fleet);
        let clock = self.fleet.now.strftime("%H:%M:%S").to_string();
        writeln!(self.report, "{clock} {what}").unwrap();
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..40 {
            let plan = self.fleet.plan();
            for step in &plan.steps {
                writeln!(self.report, "           {step}").unwrap();
            }
            for waiting in &plan.waiting {
                let line = format!("{} on {} stays: {}", waiting.workload, waiting.host, waiting.reason);
                self.tell(("waiting".to_owned(), waiting.workload.clone()), &line);
            }
            for (key, status) in &plan.statuses {
                for condition in &status.conditions {
                    // Those that say that all is as it should be are told when something was not.
                    let calm = matches!(condition.reason.as_str(), "AsAsked" | "Moving" | "Applied");
                    let about = (key.to_string(), condition.type_.clone());
                    if calm && !self.told.contains_key(&about) {
                        continue;
                    }
                    let line = format!(
                        "{key} {}={:?} {}: {}",
                        condition.type_, condition.status, condition.reason, condition.message
                    );
                    self.tell(about, &line);
                }
                self.tell(
                    (key.to_string(), "ready".to_owned()),
                    &format!("{key} is {} ready, cover {}", status.ready, status.cover),
                );
            }
            for route in &plan.routes {
                let replicas = route.replicas.iter().map(|replica| {
                    let draining = if replica.draining { " (draining)" } else { "" };
                    format!("{}@{}{draining}", replica.workload, replica.host)
                });
                let line = format!(
                    "route {}{}: {}",
                    route.deployment,
                    if route.owns_short_name { "" } else { " (not the oldest)" },
                    replicas.collect::<Vec<_>>().join(", ")
                );
                if self.routed.insert(route.deployment.to_string(), line.clone()).as_ref() != Some(&line) {
                    writeln!(self.report, "         → {line}").unwrap();
                }
            }
            if !self.fleet.obey() && plan.steps.is_empty() && plan.specs.is_empty() {
                return;
            }
        }
        panic!("the story does not come to rest:\n{}", self.report);
    }

    fn tell(&mut self, about: (String, String), line: &str) {
        if self.told.insert(about, line.to_owned()).as_deref() != Some(line) {
            writeln!(self.report, "         · {line}").unwrap();
        }
    }
}
