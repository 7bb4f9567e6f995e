//! What a host says of itself besides its workloads: each condition is there while its cause is, and ends with it.

use std::collections::BTreeMap;

use bytesize::ByteSize;
use jiff::Timestamp;
use tandem_crds::{Condition, ConditionStatus};
use tandem_weights::FileState;

use super::Agent;

/// Longest message, in characters; the schema's limit.
const LONGEST: usize = 1024;
/// Files that a message names.
const MOST_NAMED: usize = 4;

/// Since when what is so.
#[derive(Default)]
pub(super) struct Conditions {
    since: BTreeMap<&'static str, Timestamp>,
}

/// One cause.
struct Cause {
    type_: &'static str,
    status: ConditionStatus,
    reason: &'static str,
    message: String,
}

impl Conditions {
    /// What is so now. One that was so before keeps its time.
    fn say(&mut self, causes: Vec<Cause>, now: Timestamp) -> Vec<Condition> {
        self.since.retain(|type_, _| causes.iter().any(|cause| cause.type_ == *type_));
        let condition = |cause: Cause| Condition {
            type_: cause.type_.to_owned(),
            status: cause.status,
            observed_generation: None,
            last_transition_time: *self.since.entry(cause.type_).or_insert(now),
            reason: cause.reason.to_owned(),
            message: cause.message.chars().take(LONGEST).collect(),
        };
        causes.into_iter().map(condition).collect()
    }
}

impl Agent {
    pub(super) fn conditions(&mut self) -> Vec<Condition> {
        let causes = [self.disobeys(), self.lacks_room(), self.damaged_weights(), self.changed_weights()];
        let causes = causes.into_iter().flatten().collect();
        self.conditions.say(causes, Timestamp::now())
    }

    fn disobeys(&self) -> Option<Cause> {
        let message = self.trouble.clone()?;
        let (type_, reason) = ("Obedient", "StateNotWritten");
        Some(Cause { type_, status: ConditionStatus::False, reason, message })
    }

    fn lacks_room(&self) -> Option<Cause> {
        let room = self.keeper.room(&self.stock, 0);
        let over = room.excess();
        let listed = self.spec.iter().flat_map(|spec| &spec.workloads);
        let cramped = listed.filter_map(|workload| self.extra.get(&workload.id)).any(|extra| extra.no_room);
        if over == 0 && !cramped {
            return None;
        }
        let size = |bytes: u64| ByteSize(bytes).display().iec().to_string();
        let free = room.free.map_or("an unknown amount".to_owned(), size);
        let budget =
            room.budget.map_or("no budget".to_owned(), |budget| format!("a budget of {}", size(budget)));
        let message = format!(
            "weights take {} with {budget}, {free} of the disk is free and {} shall be: free some of the disk, remove a \
             deployment from this host, or change --weights-budget or --weights-spare",
            size(room.used),
            size(room.spare),
        );
        let reason = if over > 0 { "TooLittleFree" } else { "NoRoomForWeights" };
        Some(Cause { type_: "DiskPressure", status: ConditionStatus::True, reason, message })
    }

    fn damaged_weights(&self) -> Option<Cause> {
        let named = named(self.damaged.values().map(|wrong| format!("`{}` ({})", wrong.name, wrong.why)))?;
        let message = format!(
            "{named}: taken out of use and fetched again; look for errors of this disk in the system's log if it comes back"
        );
        Some(Cause { type_: "WeightsDamaged", status: ConditionStatus::True, reason: "WrongOnDisk", message })
    }

    fn changed_weights(&self) -> Option<Cause> {
        let wanted = self.wanted();
        let files = self.stock.files.iter().filter(|file| wanted.contains(&file.sha256));
        let changed = files.filter_map(|file| match &file.state {
            FileState::Changed(how) => Some(format!("`{}` ({how})", file.path.display())),
            _ => None,
        });
        let message = format!(
            "{}: not used before it is hashed again; let nobody write to files that models are read from",
            named(changed)?
        );
        Some(Cause {
            type_: "WeightsChanged",
            status: ConditionStatus::True,
            reason: "ChangedOnDisk",
            message,
        })
    }
}

/// A few of them by name, and how many more; none if there are none.
fn named(all: impl Iterator<Item = String>) -> Option<String> {
    let all: Vec<String> = all.collect();
    let first = all.get(..MOST_NAMED.min(all.len())).filter(|first| !first.is_empty())?.join(", ");
    Some(match all.len() - MOST_NAMED.min(all.len()) {
        0 => first,
        more => format!("{first} and {more} more"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_and_ends_with_its_cause() {
        let cause = |message: &str| Cause {
            type_: "DiskPressure",
            status: ConditionStatus::True,
            reason: "TooLittleFree",
            message: message.to_owned(),
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Conditions::default();
        assert_eq!(conditions.say(vec![cause("one")], at(1))[0].last_transition_time, at(1));
        let again = conditions.say(vec![cause(&"x".repeat(5000))], at(2));
        assert_eq!((again[0].last_transition_time, again[0].message.len()), (at(1), LONGEST));
        assert!(conditions.say(vec![], at(3)).is_empty());
        assert_eq!(conditions.say(vec![cause("one")], at(4))[0].last_transition_time, at(4));
    }

    #[test]
    fn a_few_files_are_named() {
        let names = |count: usize| named((0..count).map(|n| n.to_string()));
        assert_eq!(names(0), None);
        assert_eq!(names(2).unwrap(), "0, 1");
        assert_eq!(names(6).unwrap(), "0, 1, 2, 3 and 2 more");
    }
}
