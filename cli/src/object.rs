//! Which object a person means: `infd/tiny`, `infd tiny`, `hosts`.

use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::Value;

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

    /// The kind of a manifest or an answer.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        object["kind"].as_str()?.parse().ok()
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
            _ => Err(format!(
                "there is no kind `{text}`: say infd (InferenceDeployment) or infh (InferenceHost)"
            )),
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
    pub(crate) fn parse(&self) -> Result<(Kind, Option<&str>)> {
        let parse = |kind: &str| kind.parse::<Kind>().map_err(anyhow::Error::msg);
        match (self.kind.split_once('/'), self.name.as_deref()) {
            (Some((_, first)), Some(second)) => {
                bail!("two names are given, `{first}` and `{second}`: say one")
            }
            (Some((kind, name)), None) if !name.is_empty() => Ok((parse(kind)?, Some(name))),
            (Some(_), None) => bail!("`{}` lacks the name behind the slash", self.kind),
            (None, name) => Ok((parse(&self.kind)?, name)),
        }
    }

    /// Kind and name, where one object is meant.
    pub(crate) fn one(&self) -> Result<(Kind, &str)> {
        match self.parse()? {
            (kind, Some(name)) => Ok((kind, name)),
            (_, None) => bail!("which one? Say {}/NAME", self.kind),
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
