//! What an operator hands over so that weights can be fetched: credentials, peers, allowed sources, mirrors, authorities. It is held in
//! memory only, is never logged, and outlives the session, so that fetching goes on without an operator.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use tandem_control_api as api;
use tandem_crds::DeploymentRef;
use tandem_sources::{Access, Secret};
use tandem_weights::{Link, Peer};

/// The newest word of an operator about sources.
#[derive(Clone, Default, PartialEq)]
pub(crate) struct Supply {
    /// Whether an operator has said anything yet.
    pub(crate) heard: bool,
    /// By deployment, as `namespace/name`.
    secrets: BTreeMap<String, Secret>,
    /// Other hosts that keep or want what this one keeps or wants.
    peers: Vec<api::WeightPeer>,
    /// Prefixes of sources; empty: all.
    allowed: Vec<String>,
    /// `FROM=TO`, in the order to try.
    mirrors: Vec<String>,
    /// Of S3 stores; empty: what this agent would take by itself.
    s3_region: String,
    /// To trust beside those that this agent trusts by itself, as PEM; empty: none.
    extra_ca: Bytes,
}

impl Supply {
    /// What a deployment's source asks for.
    pub(crate) fn secret(&self, deployment: &DeploymentRef) -> Option<Secret> {
        self.secrets.get(&deployment.to_string()).cloned()
    }

    /// Whether a deployment's source is reached in the same way as with another word.
    pub(crate) fn reaches_like(&self, other: &Self, deployment: &DeploymentRef) -> bool {
        let way = |of: &Self| {
            let Self { allowed, mirrors, s3_region, extra_ca, .. } = of.clone();
            (of.secret(deployment), allowed, mirrors, s3_region, extra_ca)
        };
        way(self) == way(other)
    }

    /// How sources are reached: as this agent was told by its command line, and as the operator says.
    ///
    /// # Errors
    /// A sentence, when the operator's word can't be used. It is not half used: a list of what is allowed must not allow more
    /// than it says.
    pub(crate) fn access(&self, own: &Access) -> Result<Access, String> {
        let mut access = own.clone();
        for prefix in &self.allowed {
            access =
                access.allowing(prefix).map_err(|error| format!("the list of allowed sources: {error}"))?;
        }
        for mirror in &self.mirrors {
            access = access.mirrored(mirror).map_err(|error| format!("the list of mirrors: {error}"))?;
        }
        if !self.s3_region.is_empty() {
            access = access
                .s3(None, &self.s3_region)
                .map_err(|error| format!("the region of S3 stores: {error}"))?;
        }
        if !self.extra_ca.is_empty() {
            access = access
                .trusting(&self.extra_ca)
                .map_err(|error| format!("the list of authorities: {error}"))?;
        }
        Ok(access)
    }

    /// The other hosts, as the fetcher wants them.
    pub(crate) fn peers(&self) -> Vec<Peer> {
        let link = |link: &api::WeightLink| Link { address: link.address.clone(), tier: link.tier };
        let peer = |peer: &api::WeightPeer| Peer {
            host: peer.host.clone(),
            server_name: peer.server_name.clone(),
            links: peer.links.iter().map(link).collect(),
        };
        self.peers.iter().map(peer).collect()
    }
}

impl From<api::Supply> for Supply {
    fn from(said: api::Supply) -> Self {
        let secrets = said.credentials.into_iter();
        Self {
            heard: true,
            secrets: secrets.map(|one| (one.deployment, Secret::new(&one.secret))).collect(),
            peers: said.peers,
            allowed: said.allowed_sources,
            mirrors: said.mirrors,
            s3_region: said.s3_region,
            extra_ca: said.extra_ca_pem,
        }
    }
}

/// Without the credentials.
impl fmt::Debug for Supply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supply")
            .field("secrets", &self.secrets.keys())
            .field("peers", &self.peers.iter().map(|peer| &peer.host).collect::<Vec<_>>())
            .field("allowed", &self.allowed)
            .field("mirrors", &self.mirrors)
            .field("s3_region", &self.s3_region)
            .field("extra_ca_bytes", &self.extra_ca.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_its_deployments_and_is_not_shown() {
        let said = api::Supply {
            credentials: vec![api::Credential {
                deployment: "llm/kimi".to_owned(),
                secret: "hf_hush\n".to_owned(),
            }],
            ..api::Supply::default()
        };
        let supply = Supply::from(said);
        let of = |namespace: &str, name: &str| {
            supply.secret(&DeploymentRef { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        assert_eq!(of("llm", "kimi").unwrap().reveal(), "hf_hush");
        assert!(of("other", "kimi").is_none() && of("llm", "kim").is_none());
        let kimi = DeploymentRef { namespace: "llm".to_owned(), name: "kimi".to_owned() };
        let other = DeploymentRef { namespace: "llm".to_owned(), name: "other".to_owned() };
        let nothing = Supply::default();
        assert!(!supply.reaches_like(&nothing, &kimi) && supply.reaches_like(&nothing, &other));
        let shown = format!("{supply:?}");
        assert!(shown.contains("llm/kimi") && !shown.contains("hush"), "{shown}");
    }

    #[test]
    fn a_list_that_cannot_be_used_allows_nothing() {
        let access = |allowed: &[&str], mirrors: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
            let (allowed_sources, mirrors) = (list(allowed), list(mirrors));
            Supply::from(api::Supply { allowed_sources, mirrors, ..api::Supply::default() })
                .access(&Access::default())
        };
        let only = access(&["hf://unsloth/"], &["hf://=https://hub.example.com/"]).unwrap();
        assert!(only.allows(&"hf://unsloth/r".parse().unwrap()).is_ok());
        assert!(only.allows(&"hf://other/r".parse().unwrap()).is_err());
        assert!(access(&["nonsense"], &[]).unwrap_err().contains("allowed sources"));
        assert!(access(&[], &["nonsense"]).unwrap_err().contains("mirrors"));
        let region = |region: &str| {
            let said = api::Supply { s3_region: region.to_owned(), ..api::Supply::default() };
            Supply::from(said).access(&Access::default())
        };
        assert!(region("eu-west-1").is_ok());
        assert!(region("not a region").unwrap_err().contains("region of S3"));
    }
}
