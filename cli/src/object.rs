//! Which object a person means: `infd/tiny`, `infd tiny`, `hosts`.

use std::str::FromStr;

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use thiserror::Error;

/// A command line that can't be meant: exit code 2, as for what clap refuses.
#[derive(Debug, Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// The kinds there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Deployment,
    Host,
}

impl Kind {
    /// As the API names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Deployment => "InferenceDeployment",
            Self::Host => "InferenceHost",
        }
    }

    /// As messages name it.
    pub(crate) fn lower(self) -> &'static str {
        match self {
            Self::Deployment => "inferencedeployment",
            Self::Host => "inferencehost",
        }
    }

    /// Whether its objects live in namespaces.
    pub(crate) fn namespaced(self) -> bool {
        self == Self::Deployment
    }

    /// Every kind.
    pub(crate) const ALL: [Self; 2] = [Self::Deployment, Self::Host];
}

impl From<tandem_crds::Kind> for Kind {
    fn from(kind: tandem_crds::Kind) -> Self {
        match kind {
            tandem_crds::Kind::InferenceDeployment => Self::Deployment,
            tandem_crds::Kind::InferenceHost => Self::Host,
        }
    }
}

impl FromStr for Kind {
    type Err = Usage;

    fn from_str(text: &str) -> Result<Self, Usage> {
        let lower = text.to_ascii_lowercase();
        let bare = lower.strip_suffix(".inference.tandem.dev").unwrap_or(&lower);
        match bare {
            "infd"
            | "inferencedeployment"
            | "inferencedeployments"
            | "deployment"
            | "deployments"
            | "deploy" => Ok(Self::Deployment),
            "infh" | "inferencehost" | "inferencehosts" | "host" | "hosts" => Ok(Self::Host),
            _ => Err(Usage(format!(
                "there is no kind `{text}`: say infd (InferenceDeployment) or infh (InferenceHost)"
            ))),
        }
    }
}

/// One object, as `KIND/NAME` or `KIND NAME`.
#[derive(Args, Debug)]
pub(crate) struct Target {
    /// infd or infh, alone or as KIND/NAME.
    #[arg(value_name = "KIND[/NAME]")]
    kind: String,
    /// The name, if it is not part of the first word.
    name: Option<String>,
}

impl Target {
    /// From one or two words of a command line.
    pub(crate) fn from_words(words: &[String]) -> Self {
        Self { kind: words.first().cloned().unwrap_or_default(), name: words.get(1).cloned() }
    }

    /// Kind and, if one was said, name.
    pub(crate) fn parse(&self) -> Result<(Kind, Option<&str>), Usage> {
        match (self.kind.split_once('/'), self.name.as_deref()) {
            (Some((_, first)), Some(second)) => {
                Err(Usage(format!("two names are given, `{first}` and `{second}`: say one")))
            }
            (Some((kind, name)), None) if !name.is_empty() => Ok((kind.parse()?, Some(name))),
            (Some(_), None) => Err(Usage(format!("`{}` lacks the name behind the slash", self.kind))),
            (None, name) => Ok((self.kind.parse()?, name)),
        }
    }

    /// Kind and name, where one object is meant.
    pub(crate) fn one(&self) -> Result<(Kind, &str), Usage> {
        match self.parse()? {
            (kind, Some(name)) => Ok((kind, name)),
            (_, None) => Err(Usage(format!("which one? Say {}/NAME", self.kind))),
        }
    }
}

/// A condition's status, reason and message.
pub(crate) fn condition<'a>(object: &'a Value, kind: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found =
        conditions.iter().find(|c| c["type"].as_str().is_some_and(|t| t.eq_ignore_ascii_case(kind)))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default();
    Some((text("status"), text("reason"), text("message")))
}

/// A text at a path of keys, or nothing.
pub(crate) fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    path.iter().fold(object, |value, key| &value[key]).as_str().unwrap_or_default()
}

/// The items of a list, or none.
pub(crate) fn items<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// An object's name.
pub(crate) fn name(object: &Value) -> &str {
    text(object, &["metadata", "name"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: &str, name: Option<&str>) -> Target {
        Target { kind: kind.to_owned(), name: name.map(str::to_owned) }
    }

    #[test]
    fn both_spellings_name_the_same_object() {
        assert_eq!(target("infd/tiny", None).parse().unwrap(), (Kind::Deployment, Some("tiny")));
        assert_eq!(
            target("InferenceDeployments", Some("tiny")).parse().unwrap(),
            (Kind::Deployment, Some("tiny"))
        );
        assert_eq!(target("hosts", None).parse().unwrap(), (Kind::Host, None));
    }

    #[test]
    fn mistakes_are_told_apart() {
        let said = |t: Target| t.one().unwrap_err().to_string();
        assert!(said(target("pods/x", None)).contains("infd"), "names the kinds there are");
        assert!(said(target("infd/a", Some("b"))).contains("two names"));
        assert!(said(target("infd/", None)).contains("lacks the name"));
        assert!(said(target("infd", None)).contains("which one"));
    }
}
