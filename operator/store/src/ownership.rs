//! Who owns which field, pure: the rules of Kubernetes' server-side apply, in its own `metadata.managedFields` format.
//!
//! Maps are owned leaf by leaf, lists as a whole. Spec, labels and annotations can be owned; defaulted fields have no owner.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::error::OwnedField;
use crate::object::API_VERSION;

/// A field, from the object's root.
pub(crate) type Path = Vec<String>;

/// How a manager came to own fields. The same manager's applies and updates are apart, as in Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Apply,
    Update,
    /// An update through the scale subresource.
    Scale,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    manager: String,
    operation: Operation,
    time: String,
    fields: BTreeSet<Path>,
}

/// Every owner of an object's fields.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owners(Vec<Owner>);

impl Owners {
    /// Reads `metadata.managedFields`.
    pub(crate) fn of(object: &Value) -> Self {
        let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
        Self(entries.into_iter().flatten().filter_map(Owner::from_json).collect())
    }

    /// What `metadata.managedFields` is to say.
    pub(crate) fn to_json(&self) -> Value {
        self.0.iter().map(Owner::to_json).collect()
    }

    fn entry(&mut self, manager: &str, operation: Operation) -> Option<&mut Owner> {
        self.0.iter_mut().find(|owner| owner.manager == manager && owner.operation == operation)
    }

    /// Adds fields to an owner without asking anybody else.
    fn give(
        &mut self,
        manager: &str,
        operation: Operation,
        fields: impl IntoIterator<Item = Path>,
        now: Timestamp,
    ) {
        let mut fields = fields.into_iter().peekable();
        if fields.peek().is_none() {
            return;
        }
        if let Some(owner) = self.entry(manager, operation) {
            owner.fields.extend(fields);
            owner.time = now.to_string();
        } else {
            let fields = fields.collect();
            self.0.push(Owner { manager: manager.to_owned(), operation, time: now.to_string(), fields });
        }
    }

    fn prune(&mut self) {
        self.0.retain(|owner| !owner.fields.is_empty());
    }
}

impl Owner {
    fn from_json(entry: &Value) -> Option<Self> {
        let text = |name: &str| entry.get(name).and_then(Value::as_str);
        let operation = match (text("operation")?, text("subresource")) {
            ("Apply", _) => Operation::Apply,
            (_, Some("scale")) => Operation::Scale,
            _ => Operation::Update,
        };
        let mut fields = BTreeSet::new();
        paths_of_fields_v1(entry.get("fieldsV1")?, &mut Vec::new(), &mut fields);
        let time = text("time").unwrap_or_default().to_owned();
        Some(Self { manager: text("manager")?.to_owned(), operation, time, fields })
    }

    fn to_json(&self) -> Value {
        let mut root = Map::new();
        for path in &self.fields {
            let mut at = &mut root;
            for segment in path {
                at = at
                    .entry(format!("f:{segment}"))
                    .or_insert_with(|| Value::Object(Map::new()))
                    .as_object_mut()
                    .expect("this loop inserts only maps");
            }
        }
        let mut entry = json!({
            "manager": self.manager,
            "operation": if self.operation == Operation::Apply { "Apply" } else { "Update" },
            "apiVersion": API_VERSION,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": root,
        });
        if self.operation == Operation::Scale {
            entry["subresource"] = json!("scale");
        }
        entry
    }

    /// How an error names this owner.
    fn display(&self) -> String {
        match self.operation {
            Operation::Scale => format!("{} (by scale)", self.manager),
            Operation::Apply | Operation::Update => self.manager.clone(),
        }
    }
}

fn paths_of_fields_v1(fields: &Value, at: &mut Path, into: &mut BTreeSet<Path>) {
    let Some(map) = fields.as_object() else { return };
    let children: Vec<_> =
        map.iter().filter_map(|(key, value)| Some((key.strip_prefix("f:")?, value))).collect();
    if children.is_empty() && !at.is_empty() {
        into.insert(at.clone());
    }
    for (key, value) in children {
        at.push(key.to_owned());
        paths_of_fields_v1(value, at, into);
        at.pop();
    }
}

/// The fields that an object states, of those that can be owned.
pub(crate) fn stated(object: &Value) -> BTreeSet<Path> {
    let mut fields = BTreeSet::new();
    for root in [&["spec"][..], &["metadata", "labels"], &["metadata", "annotations"]] {
        let mut at: Path = root.iter().map(|&segment| segment.to_owned()).collect();
        if let Some(value) = lookup(object, &at)
            && value.as_object().is_some_and(|map| !map.is_empty())
        {
            leaves(value, &mut at, &mut fields);
        }
    }
    fields
}

fn leaves(value: &Value, at: &mut Path, into: &mut BTreeSet<Path>) {
    match value.as_object() {
        Some(map) if !map.is_empty() => {
            for (key, value) in map {
                at.push(key.clone());
                leaves(value, at, into);
                at.pop();
            }
        }
        _ => {
            into.insert(at.clone());
        }
    }
}

/// The value at a path.
pub(crate) fn lookup<'a>(object: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(object, |value, segment| value.get(segment))
}

/// Takes the value at a path out, and maps that this leaves empty, below the roots.
fn remove(object: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    let Some(map) = object.as_object_mut() else { return };
    if rest.is_empty() {
        map.remove(first);
        return;
    }
    if let Some(child) = map.get_mut(first) {
        remove(child, rest);
        let emptied = child.as_object().is_some_and(Map::is_empty);
        if emptied && first != "spec" && first != "metadata" {
            map.remove(first);
        }
    }
}

/// Lays `stated` over `live`: maps are merged, all else is replaced.
fn merge(live: &mut Value, stated: &Value) {
    match (live.as_object_mut(), stated.as_object()) {
        (Some(live), Some(stated)) => {
            for (key, value) in stated {
                merge(live.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        _ => *live = stated.clone(),
    }
}

/// Whether stating `value` at `path` leaves the owned field at `owned` as it is.
fn agrees(live: &Value, path: &Path, value: &Value, owned: &Path) -> bool {
    if owned == path {
        return lookup(live, path) == Some(value);
    }
    if owned.starts_with(path) {
        // Stating an empty map asks only that there be a map.
        return value.as_object().is_some_and(Map::is_empty);
    }
    if path.starts_with(owned) {
        return lookup(live, owned).is_some_and(Value::is_object);
    }
    true
}

/// An apply of `manifest` (spec, labels, annotations) by `manager` onto `live`: the object with its owners as they would be,
/// or the fields that others own and that the manifest would change.
pub(crate) fn apply(
    live: &Value,
    owners: &Owners,
    manifest: &Value,
    manager: &str,
    force: bool,
    now: Timestamp,
) -> Result<(Value, Owners), Vec<OwnedField>> {
    let states = stated(manifest);
    let mut owners = owners.clone();
    let mut conflicts = Vec::new();
    for owner in &mut owners.0 {
        if owner.manager == manager && owner.operation == Operation::Apply {
            continue;
        }
        let name = owner.display();
        owner.fields.retain(|owned| {
            let disputed = states.iter().find(|path| {
                let value = lookup(manifest, path).expect("stated() lists what is there");
                !agrees(live, path, value, owned)
            });
            if let Some(path) = disputed {
                conflicts.push(OwnedField { path: path.join("."), manager: name.clone() });
            }
            disputed.is_none()
        });
    }
    if !conflicts.is_empty() && !force {
        conflicts.dedup();
        return Err(conflicts);
    }

    let mut object = live.clone();
    let before = owners
        .entry(manager, Operation::Apply)
        .map(|own| std::mem::take(&mut own.fields))
        .unwrap_or_default();
    for dropped in before.difference(&states) {
        let kept = owners.0.iter().any(|owner| owner.fields.contains(dropped));
        let restated = states.iter().any(|path| path.starts_with(dropped) || dropped.starts_with(path));
        if !kept && !restated {
            remove(&mut object, dropped);
        }
    }
    for root in ["/spec", "/metadata/labels", "/metadata/annotations"] {
        if let Some(value) = manifest.pointer(root) {
            let path: Path = root.split('/').skip(1).map(str::to_owned).collect();
            let mut wrapped = value.clone();
            for segment in path.iter().rev() {
                wrapped = json!({ segment.as_str(): wrapped });
            }
            merge(&mut object, &wrapped);
        }
    }
    if before == states {
        // Nothing has changed hands: the entry keeps its time, so that an apply again changes nothing.
        if let Some(own) = owners.entry(manager, Operation::Apply) {
            own.fields = states;
        }
    } else {
        owners.give(manager, Operation::Apply, states, now);
    }
    owners.prune();
    Ok((object, owners))
}

/// The owners after `manager` has turned `before` into `after`: what changed is its own, what is gone is nobody's.
pub(crate) fn update(
    owners: &Owners,
    before: &Value,
    after: &Value,
    manager: &str,
    operation: Operation,
    now: Timestamp,
) -> Owners {
    let mut owners = owners.clone();
    let changed: BTreeSet<Path> =
        stated(after).into_iter().filter(|path| lookup(before, path) != lookup(after, path)).collect();
    for owner in &mut owners.0 {
        owner.fields.retain(|path| lookup(after, path).is_some() && !changed.contains(path));
    }
    owners.give(manager, operation, changed, now);
    owners.prune();
    owners
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(spec: Value) -> Value {
        json!({"metadata": {"name": "kimi"}, "spec": spec})
    }

    fn time() -> Timestamp {
        Timestamp::UNIX_EPOCH
    }

    #[test]
    fn managed_fields_survive_their_format() {
        let manifest = json!({"metadata": {"labels": {"a.b/c": "d"}}, "spec": {"model": {"name": "k"}, "list": [1], "empty": {}}});
        let (mut live, owners) =
            apply(&object(json!({})), &Owners::default(), &manifest, "ci", false, time()).unwrap();
        live["metadata"]["managedFields"] = owners.to_json();
        assert_eq!(Owners::of(&live), owners);
        assert_eq!(owners.0[0].fields.len(), 4);
    }

    #[test]
    fn a_field_no_longer_stated_goes_unless_another_states_it() {
        let none = object(json!({}));
        let full = object(json!({"a": 1, "b": {"c": 2}}));
        let (live, owners) = apply(&none, &Owners::default(), &full, "one", false, time()).unwrap();
        let (live, owners) = apply(&live, &owners, &object(json!({"a": 1})), "two", false, time()).unwrap();
        let (live, _) = apply(&live, &owners, &object(json!({})), "one", false, time()).unwrap();
        assert_eq!(live["spec"], json!({"a": 1}));
    }

    #[test]
    fn a_scaled_count_is_kept_disputed_and_taken_by_force() {
        let (live, owners) =
            apply(&object(json!({})), &Owners::default(), &object(json!({"q": "Q8"})), "ci", false, time())
                .unwrap();
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(3);
        let owners = update(&owners, &live, &scaled, "oncall", Operation::Scale, time());

        let (kept, _) = apply(&scaled, &owners, &object(json!({"q": "Q4"})), "ci", false, time()).unwrap();
        assert_eq!(kept["spec"], json!({"q": "Q4", "replicas": 3}));
        let disputed =
            apply(&scaled, &owners, &object(json!({"replicas": 1})), "ci", false, time()).unwrap_err();
        assert_eq!(
            disputed,
            [OwnedField { path: "spec.replicas".into(), manager: "oncall (by scale)".into() }]
        );
        let (taken, owners) =
            apply(&scaled, &owners, &object(json!({"replicas": 1})), "ci", true, time()).unwrap();
        assert_eq!(taken["spec"]["replicas"], 1);
        assert!(owners.0.iter().all(|owner| owner.operation != Operation::Scale));
    }

    const FIELDS: [&str; 4] = ["replicas", "quant", "tokens", "standby"];

    #[derive(Debug, Clone)]
    enum Step {
        Apply { manager: usize, fields: Vec<(usize, u8)>, force: bool },
        Scale { replicas: u8 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let fields = proptest::collection::vec((0..FIELDS.len(), 0..3u8), 0..5);
        prop_oneof![
            (0..3usize, fields, any::<bool>()).prop_map(|(manager, fields, force)| Step::Apply {
                manager,
                fields,
                force
            }),
            (0..3u8).prop_map(|replicas| Step::Scale { replicas }),
        ]
    }

    fn nested(fields: &[(usize, u8)]) -> Value {
        let mut spec = json!({});
        for &(field, value) in fields {
            // `tokens` and `standby` lie deeper, so that emptied maps are seen too.
            match FIELDS[field] {
                name @ ("tokens" | "standby") => spec["deep"][name] = json!(value),
                name => spec[name] = json!(value),
            }
        }
        object(spec)
    }

    proptest! {
        /// Against a plain model: per field its value, and who owns it.
        #[test]
        fn ownership_is_as_in_the_model(steps in proptest::collection::vec(step(), 1..30)) {
            use std::collections::BTreeMap;
            let mut live = object(json!({}));
            let mut owners = Owners::default();
            let mut model: BTreeMap<Path, (Value, BTreeSet<String>)> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Apply { manager, fields, force } => {
                        let manager = format!("m{manager}");
                        let manifest = nested(&fields);
                        let states = stated(&manifest);
                        let expected: usize = states.iter().filter(|path| {
                            model.get(*path).is_some_and(|(value, by)| {
                                lookup(&manifest, path) != Some(value) && by.iter().any(|owner| *owner != manager)
                            })
                        }).count();
                        let result = apply(&live, &owners, &manifest, &manager, force, time());
                        if expected > 0 && !force {
                            let conflicts = result.expect_err("others own what would change");
                            prop_assert!(conflicts.len() >= expected);
                            continue;
                        }
                        (live, owners) = result.expect("nobody objects");
                        for (path, (value, by)) in &mut model {
                            match lookup(&manifest, path) {
                                Some(new) if states.contains(path) => {
                                    if new != value {
                                        by.clear();
                                        *value = new.clone();
                                    }
                                    by.insert(manager.clone());
                                }
                                _ => { by.remove(&manager); }
                            }
                        }
                        for path in states {
                            let value = lookup(&manifest, &path).expect("stated").clone();
                            model.entry(path).or_insert_with(|| (value, BTreeSet::from([manager.clone()])));
                        }
                        model.retain(|_, (_, by)| !by.is_empty());
                    }
                    Step::Scale { replicas } => {
                        let before = live.clone();
                        live["spec"]["replicas"] = json!(replicas);
                        owners = update(&owners, &before, &live, "oncall", Operation::Scale, time());
                        let path = vec!["spec".to_owned(), "replicas".to_owned()];
                        let new = json!(replicas);
                        if model.get(&path).is_none_or(|(value, _)| *value != new) {
                            model.insert(path, (new, BTreeSet::from(["oncall".to_owned()])));
                        }
                    }
                }
                let shown: BTreeMap<Path, Value> =
                    stated(&live).into_iter().map(|path| { let v = lookup(&live, &path).expect("stated").clone(); (path, v) }).collect();
                let modelled: BTreeMap<Path, Value> =
                    model.iter().map(|(path, (value, _))| (path.clone(), value.clone())).collect();
                prop_assert_eq!(shown, modelled);
                for owner in &owners.0 {
                    for path in &owner.fields {
                        prop_assert!(model[path].1.contains(&owner.manager), "{} does not own {:?}", owner.manager, path);
                    }
                }
            }
        }
    }
}
