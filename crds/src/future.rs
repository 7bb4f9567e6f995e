//! What the design names and this version can't do yet. Refused by name, so that nobody takes silence for support.

/// Fields below an `InferenceDeployment`'s spec.
const FIELDS: [&str; 4] = ["degradeTo", "overflow", "sharding", "contingencies"];

/// Values of fields that exist, by path with list indices left out.
const VALUES: [(&str, &str); 3] = [
    ("spec.redundancy.standby", "Cold"),
    ("spec.placement.accelerators[]", "CUDA"),
    ("spec.placement.accelerators[]", "Metal"),
];

/// Whether a later version will know a field.
pub(crate) fn is_field(path: &str) -> bool {
    path.starts_with("spec.") && path.rsplit('.').next().is_some_and(|name| FIELDS.contains(&name))
}

/// Whether a later version will know a value.
pub(crate) fn is_value(path: &str, value: &str) -> bool {
    let mut general = String::new();
    let mut inside = false;
    for c in path.chars() {
        inside = match c {
            '[' => true,
            ']' => false,
            _ => inside,
        };
        if !inside || c == '[' {
            general.push(c);
        }
    }
    VALUES.contains(&(general.as_str(), value))
}
